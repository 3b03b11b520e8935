// Linear layers with their weights split over the tensor axis. y = x W^T + b, W [out, in].
//
//   ColumnLinear  splits the outputs: each rank computes some columns of y from all of x
//   RowLinear     splits the inputs: each rank computes a partial sum of all of y; the bias is added after the sum
//
// If Context::fp8, forward and the input gradient multiply numbers of 8 bits (ops/fp8.h), each row with a scale of its
// own: a token's, a channel's of the weight. Where the ranks have parts of what a product sums over, they agree about
// the scales, so that a row is scaled alike in every layout. Weight gradients are products of bf16.
//
// Rule of this folder: parameter gradients accumulate (+=), activation gradients overwrite (=). The first product of a
// step that adds to a large gradient overwrites it, so that nobody has to zero it (Weight::overwritten).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/ops/activation.h"
#include "framework/ops/linear.h"
#include "framework/ops/residual.h"
#include "framework/parallel/tensor.h"

namespace choir {

/// What the next product does with the gradient of `weight`, which then is not new any longer.
ops::Into into_gradient(Weight& weight);

/// Runs `work`, which computes the gradient of a weight, now or when the schedule says so.
void compute_weight_gradient(Context&, std::function<void(Context&)> work);

/// One named tensor inside a column-split weight: q, k or v; gate or up.
struct ColumnPart {
  std::string name;         ///< "blocks.3.attention.q"; ".weight" and ".bias" are appended
  std::int64_t outputs;     ///< global rows of the weight
  Slice held, owned;        ///< rows of the global weight: here, and counted here
  bool replicated = false;  ///< some rows are held by several ranks
};

class ColumnLinear {
 public:
  ColumnLinear(std::vector<ColumnPart> parts, std::int64_t inputs, bool bias, float deviation, ParameterStore&);

  /// x [N, in] -> y [N, outputs held], the parts side by side.
  Tensor forward(const char* name, const Tensor& x, Context&) const;
  /// The activation of y, and y itself in `before`, which backward needs.
  Tensor forward_activation(const char* name, ops::Activation kind, const Tensor& x, Tensor& before, Context&) const;
  /// Returns dx [N, in], this rank's part of the sum over ranks.
  Tensor backward_input(const char* name, const Tensor& dy, Context&) const;
  void backward_weight(const char* name, const Tensor& dy, const Tensor& x, Context&) const;

 private:
  Weight* weight_ = nullptr;
  Weight* bias_ = nullptr;  // null: none
};

class RowLinear {
 public:
  RowLinear(const std::string& name, std::int64_t outputs, std::int64_t inputs, Slice inputs_held, bool bias,
            float deviation, const TensorShare&, ParameterStore&);

  /// x [N, inputs held] -> y [rows held, out], summed over the ranks under `label` (parallel/tensor.h), without bias.
  Tensor forward(const char* name, const Tensor& x, Context&, const char* label) const;
  Tensor backward_input(const char* name, const Tensor& dy, Context&) const;
  /// The gradient of `before`, whose activation is x.
  Tensor backward_input_activation(const char* name, ops::Activation kind, const Tensor& dy, const Tensor& before,
                                   Context&) const;
  void backward_weight(const char* name, const Tensor& dy, const Tensor& x, Context&) const;

  /// [out] f32, or empty: added once, after the sum over ranks; its gradient is the column sum of dy on the rows held.
  Tensor bias() const;
  /// Of ops::residual() with this bias: dy [rows held, D] -> the gradient of the sum over ranks. The gradient of the
  /// bias is added; but if `sum_of_dy` is given and nothing is dropped, it becomes that gradient (or empty), to which
  /// the caller then adds the sum over rows of dy.
  Tensor backward_residual(const Tensor& dy, const ops::Dropout&, Tensor* sum_of_dy, Context&) const;

 private:
  Weight* weight_ = nullptr;
  Weight* bias_ = nullptr;
};

}  // namespace choir
