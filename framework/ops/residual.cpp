#include "framework/ops/residual.h"

#include "framework/ops/dispatch.h"

namespace choir::ops {

Dropout dropout_for(Runtime& runtime, double p, std::string_view what, const kernels::RowMap& rows) {
  return {.p = p, .key = random_key(runtime.seed, what), .scalars = runtime.step_scalars(), .rows = rows};
}

template <class T>
kernels::ResidualForward<T> residual_arguments(const Tensor& x, const Branch& branch, const Tensor& y) {
  const auto& [delta, bias, dropout] = branch;
  check(delta.contiguous() && (!x || (x.contiguous() && x.count() == delta.count())), "residual: x and delta [N, D]");
  check(!bias || bias.count() == delta.width(), "residual: bias [D]");
  return {.x = data_or_null<T>(x),
          .delta = delta.data<T>(),
          .bias = data_or_null<Accumulate<T>>(bias),
          .y = y.data<T>(),
          .rows = delta.rows(),
          .width = delta.width(),
          .dropout = dropout};
}

template kernels::ResidualForward<float> residual_arguments(const Tensor&, const Branch&, const Tensor&);
template kernels::ResidualForward<bf16> residual_arguments(const Tensor&, const Branch&, const Tensor&);
template kernels::ResidualForward<double> residual_arguments(const Tensor&, const Branch&, const Tensor&);

Tensor residual(Runtime& runtime, const Tensor& x, const Tensor& delta, const Tensor& bias, const Dropout& dropout) {
  Tensor y = runtime.empty({delta.rows(), delta.width()}, delta.dtype());
  with_type(delta.dtype(), [&]<class T>() {
    const auto args = residual_arguments<T>(x, {delta, bias, dropout}, y);
    launch<T>(runtime, "residual forward",
              {.flops = 2.0 * static_cast<double>(y.count()), .bytes = bytes_of({x, delta, y})},
              [args](auto device) { kernels::residual_forward(device, args); });
  });
  return y;
}

Tensor residual_backward(Runtime& runtime, const Tensor& dy, const Dropout& dropout) {
  if (dropout.p == 0) return dy;
  check(dy.contiguous(), "residual backward: dy is contiguous");
  Tensor ddelta = runtime.empty({dy.rows(), dy.width()}, dy.dtype());
  with_type(dy.dtype(), [&]<class T>() {
    const kernels::ResidualBackward<T> args{
        .dy = dy.data<T>(), .ddelta = ddelta.data<T>(), .rows = dy.rows(), .width = dy.width(), .dropout = dropout};
    launch<T>(runtime, "residual backward", {.flops = static_cast<double>(dy.count()), .bytes = bytes_of({dy, ddelta})},
              [args](auto device) { kernels::residual_backward(device, args); });
  });
  return ddelta;
}

}  // namespace choir::ops
