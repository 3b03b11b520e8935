// One call of every operation, on tensors that fit: what the tests of shapes and of device `count` share.
#pragma once

#include <string>
#include <vector>

#include "framework/ops/activation.h"
#include "framework/ops/attention.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/embedding.h"
#include "framework/ops/linear.h"
#include "framework/ops/norm.h"
#include "framework/ops/optimizer.h"
#include "framework/ops/residual.h"

namespace choir::tests {

/// What an operation returned, and what its header promises.
struct Returned {
  std::string what;
  Tensor tensor;
  Shape shape;
  DType type;
};

/// Sizes that no vector divides; each operand is filled, so that on the CPU every value is a number. Optimizer updates,
/// which are f32 whatever the run, are part of it.
inline std::vector<Returned> call_every_operation(Runtime& runtime) {
  constexpr std::int64_t N = 15, D = 13, out = 11, V = 17, positions = 9, length = 5;
  const DType type = runtime.compute_type, accumulate = accumulate_type(type);
  const auto filled = [&](const Shape& shape, DType of, float value = 0.5f) {
    const Tensor x = runtime.empty(shape, of);
    ops::fill(runtime, x, value);
    return x;
  };
  const auto of_host = [&](const auto& host, DType of) { return ops::to_device(runtime, host, of); };
  runtime.scalars = of_host(std::vector<kernels::StepScalars>{{.step = 3}}, DType::u8);
  std::vector<Returned> returned;
  const auto expect = [&](const char* what, const Tensor& tensor, const Shape& shape, DType of) {
    returned.push_back({what, tensor, shape, of});
  };

  // Moves
  const Tensor wide = filled({N, D + 3}, type);
  expect("contiguous", ops::contiguous(runtime, wide.slice_columns(1, 1 + D)), {N, D}, type);
  expect("to_device", of_host(std::vector<std::int32_t>{1, 2, 3}, DType::i32), {3}, DType::i32);

  // Linear layer
  const Tensor x = filled({N, D}, type), weight = filled({out, D}, type), bias = filled({out}, accumulate);
  const Tensor dy = filled({N, out}, type);
  expect("linear", ops::linear(runtime, "product", x, weight, bias, type), {N, out}, type);
  expect("linear to logits", ops::linear(runtime, "logits", x, weight, {}, accumulate), {N, out}, accumulate);
  expect("linear_input_gradient", ops::linear_input_gradient(runtime, "product", dy, weight), {N, D}, type);
  ops::linear_weight_gradient(runtime, "product", dy, x, filled({out, D}, accumulate));
  ops::linear_weight_gradient(runtime, "product", dy, x, filled({out, D}, accumulate), bias);
  ops::bias_gradient(runtime, dy, bias);
  for (const auto kind : {ops::Activation::gelu, ops::Activation::gelu_erf, ops::Activation::silu_gated}) {
    const std::int64_t inputs = kernels::inputs_per_output(kind);
    Tensor before;
    expect("linear_activation",
           ops::linear_activation(runtime, "product", kind, x, filled({inputs * out, D}, type), {}, before), {N, out},
           type);
    expect("before the activation", before, {N, inputs * out}, type);
    expect("linear_input_gradient_activation",
           ops::linear_input_gradient_activation(runtime, "product", kind, x, filled({D, out}, type), before),
           before.shape(), type);
  }

  // Norms
  for (const bool rms : {false, true}) {
    const Tensor scale = filled({D}, accumulate), shift = rms ? Tensor{} : filled({D}, accumulate);
    ops::NormStatistics statistics;
    expect("norm", ops::norm(runtime, x, scale, shift, rms, 1e-5, statistics), {N, D}, type);
    expect("rstd", statistics.rstd, {N}, accumulate);
    if (!rms) expect("mean", statistics.mean, {N}, accumulate);
    expect("norm_backward", ops::norm_backward(runtime, x, x, scale, statistics, rms ? x : Tensor{}, scale, shift),
           {N, D}, type);
  }

  // Activations
  for (const auto kind : {ops::Activation::gelu, ops::Activation::gelu_erf, ops::Activation::silu_gated}) {
    const Tensor in = filled({N, kernels::inputs_per_output(kind) * D}, type);
    expect("activation", ops::activation(runtime, kind, in), {N, D}, type);
    expect("activation_backward", ops::activation_backward(runtime, kind, filled({N, D}, type), in), in.shape(), type);
  }

  // Attention: three query heads of two key/value heads, three sequences of five tokens
  constexpr std::int64_t E = 6, H = 3, K = 2;
  const ops::AttentionOptions options{
      .batch = 3, .heads = H, .kv_heads = K, .head_width = E, .group_size = 2, .window = 4};
  const Tensor qkv = filled({N, (H + 2 * K) * E}, type), dqkv = filled({N, (H + 2 * K) * E}, type);
  const auto q = [&](const Tensor& all) { return all.slice_columns(0, H * E); };
  const auto k = [&](const Tensor& all) { return all.slice_columns(H * E, (H + K) * E); };
  const auto v = [&](const Tensor& all) { return all.slice_columns((H + K) * E, (H + 2 * K) * E); };
  const Tensor table = ops::rotary_table(runtime, positions, E, 100);
  expect("rotary_table", table, {positions, E}, accumulate);
  ops::rotary(runtime, q(qkv), table, E, length, 2, false);
  Tensor lse;
  const Tensor mixed = ops::attention(runtime, options, q(qkv), k(qkv), v(qkv), lse);
  expect("attention", mixed, {N, H * E}, type);
  expect("lse", lse, {3, H, N / 3}, accumulate);
  ops::attention_backward(runtime, options, q(qkv), k(qkv), v(qkv), mixed, lse, mixed, q(dqkv), k(dqkv), v(dqkv));

  // Embeddings
  const Tensor ids = of_host(std::vector<std::int32_t>(N, 4), DType::i32), tokens = filled({V, D}, type);
  const Tensor dtokens = filled({V, D}, accumulate), dpositions = filled({positions, D}, accumulate);
  expect("embedding", ops::embedding(runtime, ids, tokens, 0), {N, D}, type);
  ops::embedding_backward(runtime, ids, x, dtokens, 0);
  expect("add_position", ops::add_position(runtime, x, filled({positions, D}, type), length, 2, 1), {N, D}, type);
  ops::add_position_backward(runtime, x, dpositions, length, 2);

  // Residual branches
  for (const double p : {0.0, 0.25}) {
    const ops::Dropout dropout = ops::dropout_for(runtime, p, "test", 0);
    expect("residual", ops::residual(runtime, x, x, filled({D}, accumulate), dropout), {N, D}, type);
    expect("residual_backward", ops::residual_backward(runtime, x, dropout), {N, D}, type);
  }

  // Cross-entropy, with three columns of padding
  for (const bool gradient : {false, true}) {
    const Tensor logits = filled({N, V + 3}, accumulate), loss_sum = filled({1}, DType::f64, 0);
    const Tensor max = ops::cross_entropy_max(runtime, logits, V);
    expect("cross_entropy_max", max, {N}, accumulate);
    const Tensor sum = ops::cross_entropy_sum(runtime, logits, max, ids, V, 0);
    expect("cross_entropy_sum", sum, {2, N}, accumulate);
    const Tensor dlogits = ops::cross_entropy_gradient(runtime, logits, max, sum, ids, loss_sum, V, 0, 0.1, gradient);
    if (gradient) expect("cross_entropy_gradient", dlogits, {N, V + 3}, type);
  }

  // Optimizers
  constexpr std::int64_t n = 37;
  const Tensor segments = of_host(std::vector<kernels::OptimizerSegment>{{0, 20, 0.1f}, {20, n, 0}}, DType::u8);
  const Tensor ranges = of_host(std::vector<kernels::Range>{{0, 20}, {30, n}}, DType::u8);
  const Tensor master = filled({n}, DType::f32), gradient = filled({n}, DType::f32), first = filled({n}, DType::f32);
  const Tensor second = filled({n}, DType::f32), value = filled({n}, DType::bf16), norm = filled({1}, DType::f64);
  ops::squared_norm(runtime, gradient, ranges, n - 10, norm);
  ops::clip_factor(runtime, norm, 1);
  for (const Tensor& rounded : {Tensor{}, value}) {
    ops::adamw(runtime, master, gradient, first, second, rounded, segments, 0.9f, 0.99f, 1e-8f);
    ops::sgd(runtime, master, gradient, {}, rounded, segments, 0);
    ops::sgd(runtime, master, gradient, first, rounded, segments, 0.9f);
  }
  return returned;
}

}  // namespace choir::tests
