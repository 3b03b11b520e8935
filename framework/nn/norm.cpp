#include "framework/nn/norm.h"

#include "framework/ops/elementwise.h"

namespace choir {

Norm::Norm(const std::string& name, std::int64_t width, bool rms, bool bias, double epsilon, const TensorShare& share,
           ParameterStore& store, bool of_heads)
    : rms_(rms), epsilon_(epsilon) {
  const auto add = [&](const char* which, float start) {
    Weight* weight = store.add_weight(width, 1, false);
    store.add({.name = name + which,
               .shape = {width},
               .held = {0, width, 0, 1},
               .owned_end = share.rank == 0 ? width : 0,
               .tensor_sum = of_heads ? TensorSum::all : share.whole_tensor_sum(),
               .initial = {start, 0},
               .decays = false,
               .weight = weight});
    return weight;
  };
  weight_ = add(".weight", 1.0f);
  if (bias && !rms) bias_ = add(".bias", 0.0f);
}

static void keep_statistics(Norm::Saved& saved) {
  keep(saved.statistics.rstd);
  if (saved.statistics.mean) keep(saved.statistics.mean);
}

Tensor Norm::forward(const Tensor& x, Saved& saved, Context& context) const {
  saved.x = keep(x);
  Tensor y =
      ops::norm(context.runtime, x, weight_->value, bias_ ? bias_->value : Tensor{}, rms_, epsilon_, saved.statistics);
  keep_statistics(saved);
  return y;
}

ops::SumAndNorm Norm::forward_sum(const Tensor& x, const ops::Branch& branch, Saved& saved, Context& context) const {
  const ops::SumAndNorm result = ops::residual_norm(context.runtime, x, branch, weight_->value,
                                                    bias_ ? bias_->value : Tensor{}, rms_, epsilon_, saved.statistics);
  saved.x = keep(result.sum);
  keep_statistics(saved);
  return result;
}

Tensor Norm::backward(const Tensor& dy, const Tensor& residual, const Saved& saved, Context& context,
                      const Tensor& residual_sum) const {
  return ops::norm_backward(context.runtime, dy, saved.x, weight_->value, saved.statistics, residual, weight_->gradient,
                            bias_ ? bias_->gradient : Tensor{}, residual_sum);
}

/// A copy of x [N, heads * E] as [N * heads, E].
static Tensor by_heads(Runtime& runtime, const Tensor& x, std::int64_t head_width) {
  const Tensor copy = runtime.empty({x.rows(), x.width()}, x.dtype());
  ops::copy(runtime, x, copy);
  return copy.reshape({copy.count() / head_width, head_width});
}

void normalise_heads(const Norm& norm, std::int64_t head_width, const Tensor& x, Norm::Saved& saved, Context& context) {
  const Tensor y = norm.forward(by_heads(context.runtime, x, head_width), saved, context);
  ops::copy(context.runtime, y.reshape({x.rows(), x.width()}), x);
}

void normalise_heads_backward(const Norm& norm, std::int64_t head_width, const Tensor& dy, const Norm::Saved& saved,
                              Context& context) {
  const Tensor dx = norm.backward(by_heads(context.runtime, dy, head_width), {}, saved, context);
  ops::copy(context.runtime, dx.reshape({dy.rows(), dy.width()}), dy);
}

}  // namespace choir
