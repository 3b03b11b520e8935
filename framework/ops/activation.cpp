#include "framework/ops/activation.h"

#include "framework/ops/dispatch.h"

namespace choir::ops {

Tensor activation(Runtime& runtime, Activation kind, const Tensor& x) {
  check(x.contiguous(), "activation: x is contiguous");
  check(x.width() % kernels::inputs_per_output(kind) == 0, "activation: gate and up are of equal width");
  Tensor y = runtime.empty({x.rows(), x.width() / kernels::inputs_per_output(kind)}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const kernels::ActivationForward<T> args{
        .kind = kind, .x = x.data<T>(), .y = y.data<T>(), .rows = y.rows(), .width = y.width()};
    launch<T>(runtime, "activation forward",
              {.flops = activation_flops * static_cast<double>(y.count()), .bytes = bytes_of({x, y})},
              [args](auto device) { kernels::activation_forward(device, args); });
  });
  return y;
}

Tensor activation_backward(Runtime& runtime, Activation kind, const Tensor& dy, const Tensor& x) {
  check(x.contiguous() && dy.contiguous() && x.rows() == dy.rows() &&
            x.width() == dy.width() * kernels::inputs_per_output(kind),
        "activation backward: dy [N, F], x [N, F or 2 F]");
  const Tensor dx = dy.width() == x.width() ? dy : runtime.empty({x.rows(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const kernels::ActivationBackward<T> args{
        .kind = kind, .dy = dy.data<T>(), .x = x.data<T>(), .dx = dx.data<T>(), .rows = dy.rows(), .width = dy.width()};
    launch<T>(runtime, "activation backward",
              {.flops = activation_backward_flops * static_cast<double>(dy.count()), .bytes = bytes_of({dy, x, dx})},
              [args](auto device) { kernels::activation_backward(device, args); });
  });
  return dx;
}

}  // namespace choir::ops
