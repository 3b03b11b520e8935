#include "kernels/norm.h"

#include "framework/ops/dispatch.h"
#include "framework/ops/norm.h"

namespace choir::ops {

/// The arguments of the kernel that writes the norm `y` of x, and the statistics, which are made here; checked.
template <class T>
static kernels::NormForward<T> norm_arguments(Runtime& runtime, const Tensor& x, const Tensor& weight,
                                              const Tensor& bias, bool rms, double epsilon, NormStatistics& statistics,
                                              const Tensor& y) {
  using A = Accumulate<T>;
  check(x.contiguous() && weight.count() == x.width(), "norm: x [N, D], weight [D]");
  check(!bias || bias.count() == x.width(), "norm: bias [D]");
  const DType type = accumulate_type(x.dtype());
  statistics = {.mean = rms ? Tensor{} : runtime.empty({x.rows()}, type), .rstd = runtime.empty({x.rows()}, type)};
  return {.x = x.data<T>(),
          .weight = weight.data<A>(),
          .bias = data_or_null<A>(bias),
          .y = y.data<T>(),
          .mean = data_or_null<A>(statistics.mean),
          .rstd = statistics.rstd.data<A>(),
          .rows = x.rows(),
          .width = x.width(),
          .epsilon = epsilon};
}

Tensor norm(Runtime& runtime, const Tensor& x, const Tensor& weight, const Tensor& bias, bool rms, double epsilon,
            NormStatistics& statistics) {
  Tensor y = runtime.empty({x.rows(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const auto args = norm_arguments<T>(runtime, x, weight, bias, rms, epsilon, statistics, y);
    launch<T>(runtime, "norm forward", {.flops = 8.0 * static_cast<double>(x.count()), .bytes = bytes_of({x, y})},
              [args](auto device) { kernels::norm_forward(device, args); });
  });
  return y;
}

SumAndNorm residual_norm(Runtime& runtime, const Tensor& x, const Branch& branch, const Tensor& weight,
                         const Tensor& bias, bool rms, double epsilon, NormStatistics& statistics) {
  const Tensor& delta = branch.delta;
  const auto empty = [&] { return runtime.empty({delta.rows(), delta.width()}, delta.dtype()); };
  const SumAndNorm result{.sum = empty(), .norm = empty()};
  with_type(delta.dtype(), [&]<class T>() {
    const auto sum = residual_arguments<T>(x, branch, result.sum);
    const auto norm = norm_arguments<T>(runtime, result.sum, weight, bias, rms, epsilon, statistics, result.norm);
    launch<T>(
        runtime, "residual and norm forward",
        {.flops = 10.0 * static_cast<double>(delta.count()), .bytes = bytes_of({x, delta, result.sum, result.norm})},
        [sum, norm](auto device) { kernels::residual_norm_forward(device, sum, norm); });
  });
  return result;
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
