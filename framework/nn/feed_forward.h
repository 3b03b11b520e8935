// The feed-forward layer, its hidden columns split over the tensor axis, with the residual add behind it.
//
//   gelu, gelu_erf   y = residual + dropout(gelu(x Wup^T + bup) Wdown^T + bdown)
//   swiglu           y = residual + dropout((silu(x Wgate^T) * (x Wup^T)) Wdown^T)       gate and up are one product
#pragma once

#include <string>

#include "framework/nn/linear.h"
#include "framework/nn/recompute.h"
#include "framework/ops/activation.h"
#include "framework/ops/residual.h"

namespace choir {

struct FeedForwardShape {
  std::int64_t width = 0, hidden = 0;
  ops::Activation activation = ops::Activation::gelu;
  bool bias = true;
  double dropout = 0;
  float deviation = 0.02f, down_deviation = 0.02f;
};

/// The hidden columns that a tensor rank holds: of a feed-forward layer, and of each expert.
Slice feed_forward_columns(std::int64_t hidden, const TensorShare&);

class FeedForward {
 public:
  struct Saved {
    Tensor x;       // [rows held, D]: the input
    Tensor hidden;  // [N, F held], or [N, 2 F held] gated: before the activation
    Tensor active;  // [N, F held]: after it

    void set_input(const Tensor& input) { x = input; }
  };

  FeedForward(const std::string& name, const FeedForwardShape&, const TensorShare&, ParameterStore&);

  /// x and residual [rows held, D] -> y [rows held, D]
  Tensor forward(const Tensor& x, const Tensor& residual, Saved&, Context&) const;
  /// dy [rows held, D] -> dx [rows held, D]; the gradient of `residual` is dy itself. If `sum_of_dy` is given and
  /// nothing is dropped, it becomes the gradient of the last bias, to which the caller then adds the sum over rows of
  /// dy.
  Tensor backward(const Tensor& dy, const Saved&, Context&, Tensor* sum_of_dy = nullptr) const;

  /// Of Recompute, and what it asks for (recompute.h).
  static constexpr Recompute recomputed_by = Recompute::feed_forward;
  void forget(Saved&) const;
  void compute_again(Saved&, Context&) const;

 private:
  ops::Dropout dropout(const Context&) const;

  FeedForwardShape shape_;
  std::string name_;
  ColumnLinear up_;
  RowLinear down_;
};

}  // namespace choir
