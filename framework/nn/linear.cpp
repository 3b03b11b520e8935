#include "framework/nn/linear.h"

#include <utility>

#include "framework/ops/fp8.h"

namespace choir {
namespace {

using ops::ScaledBy;

/// What a rank has of the dim that a product sums over.
enum class Summed : std::uint8_t { whole, split };

/// y = x w^T + bias in 8 bits, if w is scaled by rows; x w if by columns.
void multiply_8_bits(const char* name, const Tensor& x, const Tensor& w, ScaledBy by, const Tensor& bias, Summed summed,
                     const Tensor& y, Context& context) {
  Runtime& runtime = context.runtime;
  if (summed == Summed::whole) {
    const ops::ScaledRows scaled_x = ops::quantise(runtime, x, ScaledBy::rows);
    return ops::scaled_linear(runtime, name, scaled_x, ops::quantise(runtime, w, by), bias, y);
  }
  const std::int64_t rows = x.rows(), channels = by == ScaledBy::rows ? w.rows() : w.width();
  const Tensor exponents = runtime.empty({rows + channels}, DType::u8);
  const Tensor of_x = exponents.slice_columns(0, rows), of_w = exponents.slice_columns(rows, rows + channels);
  ops::scale_exponents(runtime, x, ScaledBy::rows, of_x);
  ops::scale_exponents(runtime, w, by, of_w);
  context.mesh.tensor->all_reduce(exponents, Reduce::max, runtime.device.compute(), "scales of 8 bits");
  const ops::ScaledRows scaled_x = ops::quantise(runtime, x, ScaledBy::rows, of_x);
  ops::scaled_linear(runtime, name, scaled_x, ops::quantise(runtime, w, by, of_w), bias, y);
}

/// y = x weight^T + bias
void multiply(const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias, Summed summed,
              const Tensor& y, Context& context) {
  if (context.fp8) return multiply_8_bits(name, x, weight, ScaledBy::rows, bias, summed, y, context);
  ops::linear(context.runtime, name, x, weight, bias, y);
}

/// dx = dy weight
Tensor multiply_gradient(const char* name, const Tensor& dy, const Tensor& weight, Summed summed, Context& context) {
  Tensor dx = context.runtime.empty({dy.rows(), weight.width()}, weight.dtype());
  if (context.fp8)
    multiply_8_bits(name, dy, weight, ScaledBy::columns, {}, summed, dx, context);
  else
    ops::linear_input_gradient(context.runtime, name, dy, weight, dx);
  return dx;
}

}  // namespace

ops::Into into_gradient(Weight& weight) {
  return std::exchange(weight.is_new, false) ? ops::Into::overwrite : ops::Into::sum;
}

void compute_weight_gradient(Context& context, std::function<void(Context&)> work) {
  if (context.deferred)
    context.deferred->push_back(std::move(work));
  else
    work(context);
}

ColumnLinear::ColumnLinear(std::vector<ColumnPart> parts, std::int64_t inputs, bool bias, float deviation,
                           ParameterStore& store) {
  std::int64_t rows = 0;
  for (const ColumnPart& part : parts) rows += part.held.count();
  weight_ = store.add_weight(rows, inputs, true);
  weight_->overwritten = true;
  if (bias) bias_ = store.add_weight(rows, 1, true);  // the product reads it in its own type
  std::int64_t first_row = 0;
  for (const ColumnPart& part : parts) {
    Parameter parameter{.name = part.name + ".weight",
                        .shape = {part.outputs, inputs},
                        .held = {part.held.begin, part.held.end, 0, inputs},
                        .owned_begin = part.owned.begin - part.held.begin,
                        .owned_end = part.owned.end - part.held.begin,
                        .tensor_sum = part.replicated ? TensorSum::replicas : TensorSum::none,
                        .initial = {0, deviation},
                        .weight = weight_,
                        .first_row = first_row};
    store.add(parameter);
    if (bias) {
      parameter.name = part.name + ".bias";
      parameter.shape = {part.outputs};
      parameter.held = {part.held.begin, part.held.end, 0, 1};
      parameter.initial = {};
      parameter.decays = false;
      parameter.weight = bias_;
      store.add(parameter);
    }
    first_row += part.held.count();
  }
}

static Tensor flat(const Weight* weight, const Tensor Weight::*tensor) {
  return weight ? (weight->*tensor).reshape({weight->rows * weight->width}) : Tensor{};
}

Tensor ColumnLinear::forward(const char* name, const Tensor& x, Context& context) const {
  Tensor y = context.runtime.empty({x.rows(), weight_->rows}, x.dtype());
  multiply(name, x, weight_->value, flat(bias_, &Weight::value), Summed::whole, y, context);
  return y;
}

Tensor ColumnLinear::forward_activation(const char* name, ops::Activation kind, const Tensor& x, Tensor& before,
                                        Context& context) const {
  if (context.fp8) {
    before = forward(name, x, context);
    return ops::activation(context.runtime, kind, before);
  }
  return ops::linear_activation(context.runtime, name, kind, x, weight_->value, flat(bias_, &Weight::value), before);
}

Tensor ColumnLinear::backward_input(const char* name, const Tensor& dy, Context& context) const {
  return multiply_gradient(name, dy, weight_->value, Summed::split, context);
}

void ColumnLinear::backward_weight(const char* name, const Tensor& dy, const Tensor& x, Context& context) const {
  ops::linear_weight_gradient(context.runtime, name, dy, x, weight_->gradient, flat(bias_, &Weight::gradient),
                              into_gradient(*weight_));
}

RowLinear::RowLinear(const std::string& name, std::int64_t outputs, std::int64_t inputs, Slice inputs_held, bool bias,
                     float deviation, const TensorShare& share, ParameterStore& store) {
  weight_ = store.add_weight(outputs, inputs_held.count(), true);
  weight_->overwritten = true;
  store.add({.name = name + ".weight",
             .shape = {outputs, inputs},
             .held = {0, outputs, inputs_held.begin, inputs_held.end},
             .owned_end = outputs,
             .initial = {0, deviation},
             .weight = weight_});
  if (!bias) return;
  bias_ = store.add_weight(outputs, 1, false);
  store.add({.name = name + ".bias",
             .shape = {outputs},
             .held = {0, outputs, 0, 1},
             .owned_end = share.rank == 0 ? outputs : 0,
             .tensor_sum = share.whole_tensor_sum(),
             .decays = false,
             .weight = bias_});
}

Tensor RowLinear::forward(const char* name, const Tensor& x, Context& context, const char* label) const {
  // In 8 bits all rows are scaled at once; in generation they are few.
  const std::int64_t pieces = context.fp8 || context.cache ? 1 : context.tensor_chunks;
  const auto multiply_rows = [&](const Slice& rows, const Tensor& to) {
    multiply(name, x.slice_rows(rows.begin, rows.end), weight_->value, {}, Summed::split, to, context);
  };
  return multiply_and_leave(pieces, x.rows(), weight_->rows, x.dtype(), multiply_rows, context, label);
}

Tensor RowLinear::backward_input(const char* name, const Tensor& dy, Context& context) const {
  return multiply_gradient(name, dy, weight_->value, Summed::whole, context);
}

Tensor RowLinear::backward_input_activation(const char* name, ops::Activation kind, const Tensor& dy,
                                            const Tensor& before, Context& context) const {
  if (context.fp8) return ops::activation_backward(context.runtime, kind, backward_input(name, dy, context), before);
  return ops::linear_input_gradient_activation(context.runtime, name, kind, dy, weight_->value, before);
}

void RowLinear::backward_weight(const char* name, const Tensor& dy, const Tensor& x, Context& context) const {
  ops::linear_weight_gradient(context.runtime, name, dy, x, weight_->gradient, {}, into_gradient(*weight_));
}

Tensor RowLinear::bias() const { return flat(bias_, &Weight::value); }

Tensor RowLinear::backward_residual(const Tensor& dy, const ops::Dropout& dropout, Tensor* sum_of_dy,
                                    Context& context) const {
  const Tensor dbranch = ops::residual_backward(context.runtime, dy, dropout);
  const Tensor gradient = flat(bias_, &Weight::gradient);
  if (sum_of_dy && dropout.p == 0)
    *sum_of_dy = gradient;
  else if (gradient)
    ops::bias_gradient(context.runtime, dbranch, gradient);
  return dbranch;
}

}  // namespace choir
