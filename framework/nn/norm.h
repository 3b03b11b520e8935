// Layer norm or RMS norm as a layer. Every tensor rank holds it whole.
#pragma once

#include <string>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/ops/norm.h"
#include "framework/parallel/tensor.h"

namespace choir {

class Norm {
 public:
  struct Saved {
    Tensor x;                        // [rows held, D]: the input
    ops::NormStatistics statistics;  // [rows held]
  };

  /// `of_heads`: its rows are those of the heads held here, so its gradients are summed over the tensor ranks.
  Norm(const std::string& name, std::int64_t width, bool rms, bool bias, double epsilon, const TensorShare&,
       ParameterStore&, bool of_heads = false);

  /// x, y [rows held, D]
  Tensor forward(const Tensor& x, Saved&, Context&) const;
  /// The residual stream x [rows held, D] after `branch`, and its norm.
  ops::SumAndNorm forward_sum(const Tensor& x, const ops::Branch& branch, Saved&, Context&) const;
  /// Returns residual + the gradient through the norm. `residual` may be empty. `residual_sum` [D] (or empty) += the
  /// sum over rows of residual: the gradient of a bias.
  Tensor backward(const Tensor& dy, const Tensor& residual, const Saved&, Context&,
                  const Tensor& residual_sum = {}) const;

 private:
  bool rms_;
  double epsilon_;
  Weight* weight_ = nullptr;
  Weight* bias_ = nullptr;
};

/// x [N, heads * E], in place: the norm of each head, by a norm made `of_heads`.
void normalise_heads(const Norm&, std::int64_t head_width, const Tensor& x, Norm::Saved&, Context&);
/// dy [N, heads * E] becomes dx.
void normalise_heads_backward(const Norm&, std::int64_t head_width, const Tensor& dy, const Norm::Saved&, Context&);

}  // namespace choir
