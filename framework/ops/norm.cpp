#include "kernels/norm.h"

#include "framework/ops/dispatch.h"
#include "framework/ops/norm.h"

namespace choir::ops {

Tensor norm(Runtime& runtime, const Tensor& x, const Tensor& weight, const Tensor& bias, bool rms, double epsilon,
            NormStatistics& statistics) {
  check(x.contiguous() && weight.count() == x.width(), "norm: x [N, D], weight [D]");
  check(!bias || bias.count() == x.width(), "norm: bias [D]");
  Tensor y = runtime.empty({x.rows(), x.width()}, x.dtype());
  const DType type = accumulate_type(x.dtype());
  statistics = {.mean = rms ? Tensor{} : runtime.empty({x.rows()}, type), .rstd = runtime.empty({x.rows()}, type)};
  with_type(x.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    const kernels::NormForward<T> args{.x = x.data<T>(),
                                       .weight = weight.data<A>(),
                                       .bias = data_or_null<A>(bias),
                                       .y = y.data<T>(),
                                       .mean = data_or_null<A>(statistics.mean),
                                       .rstd = statistics.rstd.data<A>(),
                                       .rows = x.rows(),
                                       .width = x.width(),
                                       .epsilon = epsilon};
    launch<T>(runtime, "norm forward", {.flops = 8.0 * static_cast<double>(x.count()), .bytes = bytes_of({x, y})},
              [args](auto device) { kernels::norm_forward(device, args); });
  });
  return y;
}

Tensor norm_backward(Runtime& runtime, const Tensor& dy, const Tensor& x, const Tensor& weight,
                     const NormStatistics& statistics, const Tensor& residual, const Tensor& dweight,
                     const Tensor& dbias, const Tensor& residual_sum) {
  check(dy.contiguous() && x.contiguous() && dy.count() == x.count(), "norm backward: dy and x [N, D]");
  check(weight.count() == x.width() && dweight.count() == x.width() && (!dbias || dbias.count() == x.width()),
        "norm backward: weight, dweight and dbias [D]");
  check(statistics.rstd.count() == x.rows() && (!statistics.mean || statistics.mean.count() == x.rows()),
        "norm backward: statistics [N]");
  check(!residual || (residual.contiguous() && residual.count() == x.count()), "norm backward: residual [N, D]");
  check(!residual_sum || (residual && residual_sum.count() == x.width()), "norm backward: the sum of residual [D]");
  Tensor dx = runtime.empty({x.rows(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    kernels::NormBackward<T> args{.dy = dy.data<T>(),
                                  .x = x.data<T>(),
                                  .weight = weight.data<A>(),
                                  .mean = data_or_null<A>(statistics.mean),
                                  .rstd = statistics.rstd.data<A>(),
                                  .residual = data_or_null<T>(residual),
                                  .dx = dx.data<T>(),
                                  .dweight = dweight.data<A>(),
                                  .dbias = data_or_null<A>(dbias),
                                  .residual_sum = data_or_null<A>(residual_sum),
                                  .rows = x.rows(),
                                  .width = x.width()};
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return kernels::norm_backward_workspace_bytes<T>(device, x.rows(), x.width());
    }));
    args.workspace = scratch.raw();
    launch<T>(runtime, "norm backward",
              {.flops = 12.0 * static_cast<double>(x.count()), .bytes = bytes_of({dy, x, residual, dx})},
              [args](auto device) { kernels::norm_backward(device, args); });
  });
  return dx;
}

}  // namespace choir::ops
