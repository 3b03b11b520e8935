#include "framework/nn/norm.h"

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

Tensor Norm::forward(const Tensor& x, Saved& saved, Context& context) const {
  saved.x = keep(x);
  Tensor y =
      ops::norm(context.runtime, x, weight_->value, bias_ ? bias_->value : Tensor{}, rms_, epsilon_, saved.statistics);
  keep(saved.statistics.rstd);
  if (saved.statistics.mean) keep(saved.statistics.mean);
  return y;
}

Tensor Norm::backward(const Tensor& dy, const Tensor& residual, const Saved& saved, Context& context) const {
  return ops::norm_backward(context.runtime, dy, saved.x, weight_->value, saved.statistics, residual, weight_->gradient,
                            bias_ ? bias_->gradient : Tensor{});
}

}  // namespace choir
