#include "framework/nn/head_gate.h"

#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "framework/ops/linear_attention.h"

namespace choir {

static Tensor vector_of(const Tensor& bias) { return bias ? bias.reshape({bias.count()}) : Tensor{}; }

HeadGate add_head_gate(const std::string& name, const char* label, double root, const HeadGateShape& shape,
                       ParameterStore& store) {
  const auto add = [&](const char* which, Shape whole, std::int64_t columns, Initial initial) {
    const bool matrix = whole.size() > 1;
    Weight* weight = store.add_weight(shape.held.count(), columns, matrix);
    store.add({.name = name + which,
               .shape = std::move(whole),
               .held = {shape.held.begin, shape.held.end, 0, columns},
               .owned_end = shape.held.count(),
               .initial = initial,
               .decays = matrix,
               .weight = weight});
    return weight;
  };
  Weight* weight = add(".weight", {shape.heads, shape.width}, shape.width, {0, shape.deviation});
  return {label, root, weight, add(".bias", {shape.heads}, 1, shape.initial_bias)};
}

Tensor HeadGate::forward(const Tensor& x, const Tensor& documents, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor z =
      ops::linear(runtime, label, x, weight->value, vector_of(bias->value), accumulate_type(runtime.compute_type));
  return ops::decay(runtime, z, context.rows.map(), documents, root);
}

Tensor HeadGate::backward(const Tensor& g, const Tensor& dg, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor exact = ops::decay_backward(runtime, g, dg, root);
  const Tensor dz = runtime.empty({exact.rows(), exact.width()}, runtime.compute_type);
  ops::narrow(runtime, exact, dz);
  return dz;
}

Tensor HeadGate::backward_input(const Tensor& dz, Context& context) const {
  return ops::linear_input_gradient(context.runtime, label, dz, weight->value);
}

void HeadGate::backward_weight(const Tensor& dz, const Tensor& x, Context& context) const {
  ops::linear_weight_gradient(context.runtime, label, dz, x, weight->gradient, vector_of(bias->gradient));
}

}  // namespace choir
