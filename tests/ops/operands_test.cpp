// Operands that do not fit together are refused with the rule that they break, before anything is computed.
//
// To add a case: one call and the words of the rule. The test runs over the list of operations: a new one that is not
// in the table at the end fails.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "framework/ops/dispatch.h"
#include "tests/ops/every_operation.h"

namespace choir::tests {
namespace {

class RefusedOperands : public ::testing::TestWithParam<Operation> {
 public:
  void of_elementwise_operations();
  void of_a_linear_layer();
  void of_a_linear_layer_with_an_activation();
  void of_a_norm();
  void of_an_activation();
  void of_attention();
  void of_linear_attention();
  void of_rotary_positions();
  void of_embeddings();
  void of_positions();
  void of_pooling();
  void of_grouped_linear_layers();
  void of_products_of_8_bits();
  void of_experts();
  void of_heads();
  void of_residual_branches();
  void of_cross_entropy();
  void of_optimizers();

  Tensor tensor(const Shape& shape, DType type = DType::f32) { return runtime.empty(shape, type); }
  /// [rows, width], its rows further apart than its width.
  Tensor strided(std::int64_t rows, std::int64_t width) { return tensor({rows, width + 1}).slice_columns(0, width); }

  void expect_refused(const std::string& rule, const std::function<void()>& call) {
    SCOPED_TRACE(rule);
    try {
      call();
      ADD_FAILURE() << "taken";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(rule), std::string::npos) << error.what();
    }
  }

  Device device{1};
  Runtime runtime{.device = device};
};

void RefusedOperands::of_elementwise_operations() {
  expect_refused("fill: x is contiguous", [&] { ops::fill(runtime, strided(2, 3), 0); });
  expect_refused("no kernels for elements of type i32", [&] { ops::fill(runtime, tensor({4}, DType::i32), 0); });
  expect_refused("no kernels for elements of type u8", [&] { ops::fill(runtime, tensor({4}, DType::u8), 0); });
  expect_refused("zero ranges: a table", [&] { ops::zero_ranges(runtime, tensor({4}), tensor({3}), 1); });
  expect_refused("accumulate: equal shapes", [&] { ops::accumulate(runtime, tensor({6}), tensor({5})); });
  expect_refused("accumulate: the sum is f32",
                 [&] { ops::accumulate(runtime, tensor({6}, DType::bf16), tensor({6}, DType::bf16)); });
  expect_refused("narrow: equal shapes", [&] { ops::narrow(runtime, tensor({6}), tensor({5})); });
  expect_refused("narrow: the sum is f32", [&] { ops::narrow(runtime, tensor({6}, DType::f64), tensor({6})); });
  expect_refused("copy: equal shapes", [&] { ops::copy(runtime, tensor({2, 3}), tensor({2, 4})); });
  expect_refused("copy: equal shapes", [&] { ops::copy(runtime, tensor({2, 3}), tensor({3, 3})); });
  expect_refused("copy: equal shapes", [&] { ops::copy(runtime, tensor({2, 3}), tensor({2, 3}, DType::bf16)); });
  float host[6] = {};
  expect_refused("upload: the target is contiguous", [&] { ops::upload(runtime, host, strided(2, 3)); });
  expect_refused("download: the source is contiguous", [&] { ops::download(runtime, strided(2, 3), host); });
}

void RefusedOperands::of_a_linear_layer() {
  const Tensor x = tensor({5, 3}), weight = tensor({4, 3}), dy = tensor({5, 4});
  const auto linear = [&](const Tensor& a, const Tensor& b, DType type) {
    ops::linear(runtime, "test", a, b, {}, type);
  };
  expect_refused("the dim summed over, of a and b", [&] { linear(tensor({5, 2}), weight, DType::f32); });
  expect_refused("element types of the factors", [&] { linear(x, tensor({4, 3}, DType::bf16), DType::f32); });
  expect_refused("element types of a matrix product", [&] { linear(x, weight, DType::bf16); });
  expect_refused("rows of a and c", [&] { ops::linear_input_gradient(runtime, "test", dy, weight, tensor({6, 3})); });
  expect_refused("columns of b and c", [&] {
    ops::linear_input_gradient(runtime, "test", dy, weight, tensor({5, 2}));
  });
  expect_refused("the dim summed over, of a and b", [&] {
    ops::linear_input_gradient(runtime, "test", tensor({5, 3}), weight);
  });
  expect_refused("rows of a and c", [&] { ops::linear_weight_gradient(runtime, "test", dy, x, tensor({5, 3})); });
  expect_refused("columns of b and c", [&] { ops::linear_weight_gradient(runtime, "test", dy, x, tensor({4, 4})); });
  expect_refused("the dim summed over, of a and b", [&] {
    ops::linear_weight_gradient(runtime, "test", dy, tensor({6, 3}), weight);
  });
  expect_refused("columns of c and elements of the bias",
                 [&] { ops::linear(runtime, "test", x, weight, tensor({3}), DType::f32); });
  expect_refused("columns of dy and elements of the bias", [&] { ops::bias_gradient(runtime, dy, tensor({3})); });
  expect_refused("columns of dy and elements of the bias", [&] {
    ops::linear_weight_gradient(runtime, "test", dy, x, tensor({4, 3}), tensor({3}));
  });
}

void RefusedOperands::of_products_of_8_bits() {
  const Tensor x = tensor({5, 3}, DType::bf16), exponents = tensor({5}, DType::u8);
  const std::string for_each = "scales: a u8 for each row, or for each column";
  using enum ops::ScaledBy;
  expect_refused("scales: x is bf16", [&] { ops::scale_exponents(runtime, tensor({5, 3}), rows, exponents); });
  expect_refused(for_each, [&] { ops::scale_exponents(runtime, x, columns, exponents); });
  expect_refused("scales: x is bf16", [&] { ops::quantise(runtime, tensor({5, 3}), rows); });
  expect_refused(for_each, [&] { ops::quantise(runtime, x, rows, tensor({4}, DType::u8)); });
  expect_refused(for_each, [&] { ops::quantise(runtime, x, rows, tensor({5})); });
  const auto scaled = [&](std::int64_t n, std::int64_t k, std::int64_t scales) {
    return ops::ScaledRows{.codes = tensor({n, k}, DType::u8), .scales = tensor({scales})};
  };
  const auto product = [&](const ops::ScaledRows& a, const ops::ScaledRows& b, const Tensor& bias) {
    ops::scaled_linear(runtime, "test", a, b, bias, tensor({5, 4}, DType::bf16));
  };
  expect_refused("a product of 8 bits: codes of x and weight",
                 [&] { product(scaled(5, 16, 5), scaled(4, 32, 4), {}); });
  expect_refused("a product of 8 bits: codes of x and weight", [&] { product(scaled(5, 8, 5), scaled(4, 8, 4), {}); });
  expect_refused("a product of 8 bits: a scale for each row", [&] { product(scaled(5, 16, 4), scaled(4, 16, 4), {}); });
  expect_refused("a product of 8 bits: a bias of bf16",
                 [&] { product(scaled(5, 16, 5), scaled(4, 16, 4), tensor({4})); });
  expect_refused("a product of 8 bits: y", [&] { product(scaled(6, 16, 6), scaled(4, 16, 4), {}); });
}

void RefusedOperands::of_a_linear_layer_with_an_activation() {
  using enum ops::Activation;
  Tensor before;
  expect_refused("activation: gate and up are of equal width", [&] {
    ops::linear_activation(runtime, "test", silu_gated, tensor({5, 3}), tensor({7, 3}), {}, before);
  });
  const auto backward = [&](ops::Activation kind, const Tensor& given) {
    ops::linear_input_gradient_activation(runtime, "test", kind, tensor({5, 4}), tensor({4, 3}), given);
  };
  const std::string rule = "activation backward: weight [D, F], before [N, F or 2 F]";
  expect_refused(rule, [&] { backward(gelu, tensor({5, 4})); });
  expect_refused(rule, [&] { backward(gelu, tensor({6, 3})); });
  expect_refused(rule, [&] { backward(gelu, strided(5, 3)); });
  expect_refused(rule, [&] { backward(silu_gated, tensor({5, 3})); });
  expect_refused("element types of a matrix product", [&] { backward(gelu, tensor({5, 3}, DType::bf16)); });
}

void RefusedOperands::of_a_norm() {
  const Tensor x = tensor({5, 3}), weight = tensor({3});
  ops::NormStatistics statistics;
  expect_refused("norm: x [N, D], weight [D]",
                 [&] { ops::norm(runtime, strided(5, 3), weight, {}, true, 1e-5, statistics); });
  expect_refused("norm: x [N, D], weight [D]", [&] { ops::norm(runtime, x, tensor({4}), {}, true, 1e-5, statistics); });
  expect_refused("norm: bias [D]", [&] { ops::norm(runtime, x, weight, tensor({2}), false, 1e-5, statistics); });
  ops::fill(runtime, x, 1);
  ops::fill(runtime, weight, 1);
  ops::norm(runtime, x, weight, {}, true, 1e-5, statistics);
  const auto parameters = [&](const Tensor& scale, const Tensor& dweight, const Tensor& dbias) {
    ops::norm_backward(runtime, x, x, scale, statistics, {}, dweight, dbias);
  };
  const std::string of_parameters = "norm backward: weight, dweight and dbias [D]";
  expect_refused(of_parameters, [&] { parameters(tensor({2}), weight, {}); });
  expect_refused(of_parameters, [&] { parameters(weight, tensor({2}), {}); });
  expect_refused(of_parameters, [&] { parameters(weight, weight, tensor({2})); });
  for (const ops::NormStatistics& other :
       {ops::NormStatistics{{}, tensor({4})}, ops::NormStatistics{tensor({4}), tensor({5})}})
    expect_refused("norm backward: statistics [N]",
                   [&] { ops::norm_backward(runtime, x, x, weight, other, {}, weight, {}); });
  const auto backward = [&](const Tensor& dy, const Tensor& at, const Tensor& residual) {
    ops::norm_backward(runtime, dy, at, weight, statistics, residual, tensor({3}), {});
  };
  expect_refused("norm backward: dy and x [N, D]", [&] { backward(tensor({4, 3}), x, {}); });
  expect_refused("norm backward: dy and x [N, D]", [&] { backward(strided(5, 3), x, {}); });
  expect_refused("norm backward: dy and x [N, D]", [&] { backward(x, strided(5, 3), {}); });
  expect_refused("norm backward: residual [N, D]", [&] { backward(x, x, tensor({5, 4})); });
  expect_refused("norm backward: residual [N, D]", [&] { backward(x, x, strided(5, 3)); });
  for (const auto& [residual, sum] : {std::pair{x, tensor({2})}, {Tensor{}, tensor({3})}})
    expect_refused("norm backward: the sum of residual [D]",
                   [&] { ops::norm_backward(runtime, x, x, weight, statistics, residual, weight, {}, sum); });
}

void RefusedOperands::of_an_activation() {
  using enum ops::Activation;
  expect_refused("activation: x is contiguous", [&] { ops::activation(runtime, gelu, strided(5, 4)); });
  expect_refused("activation: gate and up are of equal width", [&] {
    ops::activation(runtime, silu_gated, tensor({5, 5}));
  });
  const std::string rule = "activation backward: dy [N, F], x [N, F or 2 F]";
  const Tensor x = tensor({5, 4});
  expect_refused(rule, [&] { ops::activation_backward(runtime, gelu, tensor({5, 2}), x); });
  expect_refused(rule, [&] { ops::activation_backward(runtime, silu_gated, tensor({5, 4}), x); });
  expect_refused(rule, [&] { ops::activation_backward(runtime, gelu, tensor({4, 5}), x); });
  expect_refused(rule, [&] { ops::activation_backward(runtime, gelu, strided(5, 4), x); });
  expect_refused(rule, [&] { ops::activation_backward(runtime, gelu, x, strided(5, 4)); });
}

void RefusedOperands::of_attention() {
  const ops::AttentionOptions options{.batch = 2, .heads = 4, .kv_heads = 2, .head_width = 8, .group_size = 2};
  const Tensor q = tensor({10, 32}), k = tensor({6, 16}), v = tensor({6, 16});
  Tensor lse;
  const auto forward = [&](const ops::AttentionOptions& o, const Tensor& a, const Tensor& b, const Tensor& c) {
    ops::attention(runtime, o, a, b, c, lse);
  };
  const std::string columns = "attention: columns are heads times head width";
  expect_refused(columns, [&] { forward(options, tensor({10, 24}), k, v); });
  expect_refused(columns, [&] { forward(options, q, tensor({6, 32}), v); });
  expect_refused(columns, [&] { forward(options, q, k, tensor({6, 8})); });
  const std::string rows = "attention: rows are batch times tokens";
  expect_refused(rows, [&] { forward(options, tensor({9, 32}), k, v); });
  expect_refused(rows, [&] { forward(options, q, tensor({7, 16}), tensor({7, 16})); });
  expect_refused(rows, [&] { forward(options, q, k, tensor({8, 16})); });
  ops::AttentionOptions late = options;
  late.group_offset = 1;  // heads 0 to 3 would read key/value heads 0, 1, 1, 2
  expect_refused("attention: every query head has its key/value head", [&] { forward(late, q, k, v); });

  lse = tensor({2, 4, 5});
  const std::string merge = "merge attention: out [B*Tq, H*E] and lse [B, H, Tq], twice";
  expect_refused(merge, [&] { ops::merge_attention(runtime, options, strided(10, 32), lse, q, lse); });
  expect_refused(merge, [&] { ops::merge_attention(runtime, options, q, lse, tensor({8, 32}), lse); });
  expect_refused(merge, [&] { ops::merge_attention(runtime, options, q, tensor({2, 4, 4}), q, lse); });
  expect_refused("attention: out like q, lse [B, H, Tq]", [&] {
    ops::attention(runtime, options, q, k, v, tensor({8, 32}), lse);
  });
  const std::string sink = "attention sink: out [B*Tq, H*E], lse [B, H, Tq], sinks [H]";
  const Tensor sinks = tensor({4});
  expect_refused(sink, [&] { ops::attention_sink(runtime, options, tensor({3}), q, lse); });
  expect_refused(sink, [&] { ops::attention_sink(runtime, options, sinks, strided(10, 32), lse); });
  expect_refused(sink, [&] { ops::attention_sink(runtime, options, sinks, q, tensor({2, 4, 4})); });
  const std::string sink_backward =
      "attention sink backward: out and dout [B*Tq, H*E], lse [B, H, Tq], sinks and dsinks [H]";
  const auto of_sinks = [&](const Tensor& out, const Tensor& log_sums, const Tensor& dout, const Tensor& dsinks) {
    ops::attention_sink_backward(runtime, options, sinks, out, log_sums, dout, dsinks);
  };
  expect_refused(sink_backward, [&] { of_sinks(q, lse, q, tensor({5})); });
  expect_refused(sink_backward, [&] { of_sinks(q, lse, strided(10, 32), sinks); });
  expect_refused(sink_backward, [&] { of_sinks(q, tensor({2, 4, 4}), q, sinks); });
  const std::string documents = "attention: documents [B * T, 2] i32, of all queries and keys";
  ops::AttentionOptions within = options;
  for (const auto& [shape, type] : {std::pair{Shape{12, 2}, DType::f32},
                                    {Shape{12, 3}, DType::i32},
                                    {Shape{8, 2}, DType::i32},
                                    {Shape{11, 2}, DType::i32}}) {
    within.documents = tensor(shape, type);
    expect_refused(documents, [&] { forward(within, q, k, v); });
  }
  within.documents = tensor({12, 2}, DType::i32);
  within.first_key = 4;
  expect_refused(documents, [&] { forward(within, q, k, v); });
  const std::string strides = "attention backward: gradients are shaped and strided like their tensors";
  const auto backward = [&](const Tensor& dout, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
    ops::attention_backward(runtime, options, q, k, v, q, lse, dout, dq, dk, dv);
  };
  expect_refused(strides, [&] { backward(tensor({8, 32}), q, k, v); });
  expect_refused(strides, [&] { backward(q, tensor({8, 32}), k, v); });
  expect_refused(strides, [&] { backward(q, q, tensor({7, 16}), v); });
  expect_refused(strides, [&] { backward(q, q, k, tensor({7, 16})); });
  expect_refused(strides, [&] { backward(strided(10, 32), q, k, v); });
  expect_refused(strides, [&] { backward(q, strided(10, 32), k, v); });
  expect_refused(strides, [&] { backward(q, q, strided(6, 16), v); });
  expect_refused(strides, [&] { backward(q, q, k, strided(6, 16)); });
  const auto saved = [&](const Tensor& out, const Tensor& log_sums) {
    ops::attention_backward(runtime, options, q, k, v, out, log_sums, out, q, k, v);
  };
  expect_refused("attention backward: out like q, lse [B, H, Tq]", [&] { saved(tensor({10, 16}), lse); });
  expect_refused("attention backward: out like q, lse [B, H, Tq]", [&] { saved(tensor({8, 32}), lse); });
  expect_refused("attention backward: out like q, lse [B, H, Tq]", [&] { saved(q, tensor({2, 4, 4})); });
}

void RefusedOperands::of_linear_attention() {
  const ops::LinearAttentionOptions options{.batch = 2, .heads = 4, .head_width = 8};
  const Tensor q = tensor({10, 32}), decays = tensor({10, 4}), state = tensor({8, 64});
  const auto forward = [&](const Tensor& a, const Tensor& b, const Tensor& g, const Tensor& s, const Tensor& out) {
    ops::linear_attention(runtime, options, a, b, q, g, s, out, {});
  };
  const std::string columns = "linear attention: q, k, v and out [B*T, H*E]";
  expect_refused(columns, [&] { forward(tensor({10, 24}), q, decays, state, q); });
  expect_refused(columns, [&] { forward(tensor({8, 32}), q, decays, state, q); });
  expect_refused(columns, [&] { forward(q, tensor({8, 32}), decays, state, q); });
  expect_refused(columns, [&] { forward(q, q, decays, state, tensor({10, 64})); });
  const std::string of_decays = "linear attention: log_decay [B*T, H] without gaps";
  expect_refused(of_decays, [&] { forward(q, q, tensor({10, 3}), state, q); });
  expect_refused(of_decays, [&] { forward(q, q, strided(10, 4), state, q); });
  const std::string of_rates = "linear attention: log_rate [B*T, H] without gaps";
  const auto with_rates = [&](const Tensor& rates) {
    ops::linear_attention(runtime, options, q, q, q, decays, {}, q, {}, rates);
  };
  expect_refused(of_rates, [&] { with_rates(tensor({10, 3})); });
  expect_refused(of_rates, [&] { with_rates(strided(10, 4)); });
  const std::string states = "linear attention: states [B*H, E*E] without gaps";
  expect_refused(states, [&] { forward(q, q, decays, tensor({4, 64}), q); });
  expect_refused(states, [&] {
    ops::linear_attention_state_gradient(runtime, options, q, q, q, decays, tensor({8, 32}));
  });
  expect_refused("linear attention: rows are batch times tokens", [&] {
    ops::linear_attention(runtime, {.batch = 3, .heads = 4, .head_width = 8}, q, q, q, decays, {}, q, {});
  });
  expect_refused("linear attention state: total [B*H]",
                 [&] { ops::linear_attention_state(runtime, options, q, q, decays, state, tensor({7})); });
  expect_refused(states, [&] {
    ops::linear_attention_state(runtime, options, q, q, decays, state, tensor({8, 32}), decays);
  });
  const std::string strides = "linear attention backward: gradients are shaped and strided like their tensors";
  expect_refused(strides, [&] {
    ops::linear_attention_backward(runtime, options, q, q, q, q, decays, {}, {}, strided(10, 32), q, q, decays);
  });
  expect_refused(strides, [&] {
    ops::linear_attention_backward(runtime, options, q, q, q, q, decays, {}, {}, q, q, q, decays, decays,
                                   strided(10, 4));
  });
  const std::string totals = "carry state: next and state [B*H, E*E], total [B*H] or [B*H, E*E]";
  expect_refused(totals, [&] { ops::carry_state(runtime, state, tensor({7}), state); });
  expect_refused(totals, [&] { ops::carry_state(runtime, state, tensor({8, 32}), state); });
  expect_refused("decay: z [N, H] without gaps",
                 [&] { ops::decay(runtime, strided(10, 4), kernels::whole_sequences(2, 5), {}); });
  expect_refused("decay: documents [B * T, 2] i32", [&] {
    ops::decay(runtime, decays, kernels::whole_sequences(2, 5), tensor({9, 2}, DType::i32));
  });
  expect_refused("decay backward: log_decay and its gradient [N, H] without gaps", [&] {
    ops::decay_backward(runtime, decays, tensor({10, 3}));
  });
}

void RefusedOperands::of_rotary_positions() {
  const Tensor table = tensor({6, 8});
  const std::string shapes = "rotary: x [N, heads * E], table [positions, E]";
  expect_refused(shapes, [&] { ops::rotary(runtime, tensor({5, 16}), table, 4, {.runs = {{0, 5}, {0, 0}}}, false); });
  expect_refused(shapes, [&] { ops::rotary(runtime, tensor({5, 12}), table, 8, {.runs = {{0, 5}, {0, 0}}}, false); });
  const std::string positions = "rotary: positions within the table";
  expect_refused(positions, [&] {
    ops::rotary(runtime, tensor({7, 16}), table, 8, {.runs = {{0, 7}, {0, 0}}}, false);
  });
  expect_refused(positions, [&] {
    ops::rotary(runtime, tensor({5, 16}), table, 8, {.runs = {{2, 7}, {0, 0}}}, false);
  });
}

void RefusedOperands::of_embeddings() {
  const Tensor ids = tensor({5}, DType::i32), table = tensor({7, 3}), dy = tensor({5, 3});
  const std::string forward = "embedding: ids are i32, the table is contiguous";
  expect_refused(forward, [&] { ops::embedding(runtime, tensor({5}), table, 0); });
  expect_refused(forward, [&] { ops::embedding(runtime, ids, strided(7, 3), 0); });
  const std::string backward = "embedding backward: ids [N], dy [N, D], dtable [V, D]";
  expect_refused(backward, [&] { ops::embedding_backward(runtime, ids, tensor({4, 3}), table, 0); });
  expect_refused(backward, [&] { ops::embedding_backward(runtime, ids, tensor({5, 4}), table, 0); });
  expect_refused(backward, [&] { ops::embedding_backward(runtime, tensor({5}), dy, table, 0); });
  expect_refused(backward, [&] { ops::embedding_backward(runtime, ids, strided(5, 3), table, 0); });
  expect_refused(backward, [&] { ops::embedding_backward(runtime, ids, dy, strided(7, 3), 0); });
}

void RefusedOperands::of_positions() {
  const Tensor table = tensor({7, 3}), x = tensor({10, 3});
  const std::string shapes = "positions: x [N, D], table [positions, D]";
  expect_refused(shapes, [&] { ops::add_position(runtime, tensor({10, 4}), table, {.runs = {{0, 5}, {0, 0}}}); });
  expect_refused(shapes, [&] { ops::add_position(runtime, strided(10, 3), table, {.runs = {{0, 5}, {0, 0}}}); });
  expect_refused(shapes, [&] { ops::add_position(runtime, x, strided(7, 3), {.runs = {{0, 5}, {0, 0}}}); });
  expect_refused("positions: within the table", [&] {
    ops::add_position(runtime, x, table, {.runs = {{0, 8}, {0, 0}}});
  });
  expect_refused("positions: within the table", [&] {
    ops::add_position(runtime, x, table, {.runs = {{3, 8}, {0, 0}}});
  });
  for (const Tensor& given : {tensor({10}), tensor({9}, DType::i32)})
    expect_refused("positions: [N] i32", [&] {
      ops::add_position(runtime, x, table, {.runs = {{0, 5}, {0, 0}}}, given);
    });
  const std::string backward = "position backward: dy [N, D]";
  expect_refused(backward, [&] {
    ops::add_position_backward(runtime, tensor({10, 4}), table, {.runs = {{0, 5}, {0, 0}}});
  });
  expect_refused(backward, [&] {
    ops::add_position_backward(runtime, strided(10, 3), table, {.runs = {{0, 5}, {0, 0}}});
  });
  expect_refused(backward, [&] { ops::add_position_backward(runtime, x, strided(7, 3), {.runs = {{0, 5}, {0, 0}}}); });
  expect_refused("position backward: within the table", [&] {
    ops::add_position_backward(runtime, x, table, {.runs = {{0, 8}, {0, 0}}});
  });
}

void RefusedOperands::of_pooling() {
  const kernels::RowMap map = kernels::whole_sequences(2, 5);
  expect_refused("pool: x [N, D] is contiguous", [&] { ops::pool(runtime, strided(10, 3), map, {0, 5}); });
  const std::string documents = "pool: documents [B * T, 2] i32";
  expect_refused(documents, [&] { ops::pool(runtime, tensor({10, 3}), map, {0, 5}, tensor({10, 2})); });
  expect_refused(documents, [&] { ops::pool(runtime, tensor({10, 3}), map, {0, 5}, tensor({9, 2}, DType::i32)); });
  const std::string backward = "pool backward: a row of dmeans for each sequence";
  expect_refused(backward, [&] { ops::pool_backward(runtime, tensor({3, 3}), 10, map, {0, 5}); });
  expect_refused(backward, [&] { ops::pool_backward(runtime, strided(2, 3), 10, map, {0, 5}); });
}

void RefusedOperands::of_grouped_linear_layers() {
  const Tensor x = tensor({6, 3}), weight = tensor({8, 3}), dy = tensor({6, 4});
  const std::string rows = "groups divides the rows of each operand";
  expect_refused(rows, [&] { ops::grouped_linear(runtime, "test", tensor({5, 3}), weight, 2); });
  expect_refused(rows, [&] { ops::grouped_linear(runtime, "test", x, tensor({7, 3}), 2); });
  expect_refused(rows, [&] { ops::grouped_linear_input_gradient(runtime, "test", tensor({5, 4}), weight, 2); });
  expect_refused("the dim summed over, of a and b", [&] {
    ops::grouped_linear_input_gradient(runtime, "test", tensor({6, 3}), weight, 2);
  });
  expect_refused("rows of a and c", [&] {
    ops::grouped_linear_weight_gradient(runtime, "test", dy, x, tensor({10, 3}), 2);
  });
}

void RefusedOperands::of_heads() {
  const kernels::RowMap map = kernels::whole_sequences(2, 3);
  const ops::Routed routed = ops::route(runtime, tensor({6, 4}), {}, {}, 2, ops::ExpertScore::softmax);
  const ops::Slots slots =
      ops::assign_slots(runtime, routed.choices, ops::count_choices(runtime, routed.choices, 4, map), {},
                        {.capacity = 2, .per_sequence = 2, .places = {4, 1}}, map);
  const ops::HeadRowsRule rule{
      .always = 1, .heads = 3, .routed_per_sequence = 2, .per_sequence = 3, .keys = 3, .band = kernels::full_band()};
  const auto expect_head_rows = [&](const std::string& why, const auto& change) {
    ops::HeadRowsRule changed = rule;
    change(changed);
    expect_refused("head rows: " + why, [&] { ops::head_rows(runtime, routed, slots, changed, map); });
  };
  expect_head_rows("routed slots", [](ops::HeadRowsRule& r) { r.first_head = 3; });
  expect_head_rows("a slot for each row of a head", [](ops::HeadRowsRule& r) { r.per_sequence = 2; });
  expect_head_rows("a key for each position held", [](ops::HeadRowsRule& r) { r.keys = 2; });
  expect_head_rows("documents", [&](ops::HeadRowsRule& r) { r.documents = tensor({4, 2}, DType::i32); });
  expect_refused("head rows: choices [N, k]",
                 [&] { ops::head_rows(runtime, routed, slots, rule, kernels::whole_sequences(2, 4)); });
  expect_refused("head weight gradient: dgates [N * H, 1]", [&] {
    ops::head_weight_gradient(runtime, tensor({6, 4}), routed, rule);
  });
  expect_refused("head counts: f64 sums", [&] { ops::add_head_counts(runtime, slots, tensor({4})); });
}

void RefusedOperands::of_experts() {
  using enum ops::ExpertScore;
  const kernels::RowMap map = kernels::whole_sequences(2, 3);
  const Tensor logits = tensor({6, 4});
  const std::string chosen = "route: a row chooses 1 to 32 of the experts";
  expect_refused(chosen, [&] { ops::route(runtime, logits, {}, {}, 5, softmax); });
  expect_refused(chosen, [&] { ops::route(runtime, logits, {}, {}, 0, softmax); });
  expect_refused("route: bias [experts]", [&] { ops::route(runtime, logits, tensor({3}), {}, 2, softmax); });
  expect_refused("route: given choices [N, k]", [&] { ops::route(runtime, logits, {}, tensor({6, 2}), 2, softmax); });
  expect_refused("experts: scores are f32, or f64", [&] {
    ops::route(runtime, tensor({6, 4}, DType::bf16), {}, {}, 2, softmax);
  });
  ops::fill(runtime, logits, 1);
  const ops::Routed routed = ops::route(runtime, logits, {}, {}, 2, softmax);
  expect_refused("count choices: choices [N, k]", [&] {
    ops::count_choices(runtime, tensor({5, 2}, DType::i32), 4, map);
  });
  const Tensor counts = ops::count_choices(runtime, routed.choices, 4, map);
  expect_refused("imbalance: counts", [&] { ops::add_imbalance(runtime, counts, 12, tensor({5})); });
  const ops::SlotRule rule{.capacity = 2, .per_sequence = 2, .places = {4, 1}};
  const auto assign = [&](const Tensor& of, const Tensor& cached, const ops::SlotRule& by) {
    return ops::assign_slots(runtime, routed.choices, of, cached, by, map);
  };
  expect_refused("assign slots: counts", [&] { assign(tensor({2, 2, 3}, DType::i32), {}, rule); });
  expect_refused("assign slots: cached counts", [&] { assign(counts, tensor({4}, DType::i32), rule); });
  expect_refused("assign slots: a slot for each row kept", [&] {
    assign(counts, {}, {.capacity = 3, .per_sequence = 2, .places = {4, 1}});
  });
  const ops::Slots slots = assign(counts, {}, rule);
  expect_refused("gather slots: x [N, D]", [&] { ops::gather_slots(runtime, tensor({5, 3}), {}, slots); });
  expect_refused("slots: weights [N, k]", [&] { ops::gather_slots(runtime, tensor({6, 3}), tensor({6}), slots); });
  expect_refused("combine slots: x [slots, D]", [&] { ops::combine_slots(runtime, tensor({6, 3}), {}, slots); });
  const Tensor x = tensor({slots.rows_of_slots.count(), 3});
  expect_refused("slots: weights [N, k]", [&] { ops::combine_slots(runtime, x, tensor({6}), slots); });
  expect_refused("combine weight gradient: dy [N, D]", [&] {
    ops::combine_weight_gradient(runtime, tensor({5, 3}), x, slots);
  });
  expect_refused("combine weight gradient: x [slots, D]", [&] {
    ops::combine_weight_gradient(runtime, tensor({6, 4}), x, slots);
  });
  expect_refused("route gradient: dweights [N, k]", [&] {
    ops::route_gradient(runtime, logits, routed, tensor({6, 3}), softmax, {}, map);
  });
  expect_refused("balance loss: counts", [&] {
    ops::route_gradient(runtime, logits, routed, tensor({6, 2}), softmax, {tensor({7}, DType::i32), 1}, map);
  });
  expect_refused("expert sums: three f64",
                 [&] { ops::add_expert_sums(runtime, logits, slots, softmax, {}, tensor({3}), map); });
}

void RefusedOperands::of_residual_branches() {
  const Tensor x = tensor({5, 3});
  const ops::Dropout dropout{.p = 0.1};
  const std::string shapes = "residual: x and delta [N, D]";
  expect_refused(shapes, [&] { ops::residual(runtime, tensor({5, 4}), x, {}, {}); });
  expect_refused(shapes, [&] { ops::residual(runtime, strided(5, 3), x, {}, {}); });
  expect_refused(shapes, [&] { ops::residual(runtime, {}, strided(5, 3), {}, {}); });
  expect_refused("residual: bias [D]", [&] { ops::residual(runtime, x, x, tensor({5}), {}); });
  const auto with_norm = [&](const Tensor& stream, const Tensor& weight) {
    ops::NormStatistics statistics;
    ops::residual_norm(runtime, stream, {x, {}, {}}, weight, {}, true, 1e-5, statistics);
  };
  expect_refused(shapes, [&] { with_norm(strided(5, 3), tensor({3})); });
  expect_refused("norm: x [N, D], weight [D]", [&] { with_norm(x, tensor({5})); });
  expect_refused("residual backward: dy is contiguous",
                 [&] { ops::residual_backward(runtime, strided(5, 3), dropout); });
}

void RefusedOperands::of_cross_entropy() {
  const Tensor logits = tensor({5, 8}), targets = tensor({5}, DType::i32), losses = tensor({5}, DType::f64);
  const auto statistics = [&](const Tensor& x, const Tensor& t, std::int64_t num_tokens) {
    ops::cross_entropy_statistics(runtime, x, t, num_tokens, 0);
  };
  const auto loss = [&](const Tensor& x, const Tensor& s, const Tensor& t, const Tensor& l, const Tensor& right,
                        std::int64_t num_tokens) {
    ops::cross_entropy(runtime, x, s, t, l, right, num_tokens, 0, 1, true);
  };
  const std::string columns = "cross-entropy: the tokens are columns of the logits";
  expect_refused(columns, [&] { statistics(logits, targets, 9); });
  expect_refused(columns, [&] { statistics(strided(5, 8), targets, 8); });
  expect_refused(columns, [&] { loss(logits, {}, targets, losses, {}, 9); });
  const std::string of_targets = "cross-entropy: targets [N], i32";
  expect_refused(of_targets, [&] { statistics(logits, tensor({4}, DType::i32), 8); });
  expect_refused(of_targets, [&] { loss(logits, {}, tensor({5}), losses, {}, 8); });
  const std::string of_statistics = "cross-entropy: statistics [3 slices, N], f32 or f64";
  expect_refused(of_statistics, [&] { loss(logits, tensor({3, 4}), targets, losses, {}, 8); });
  expect_refused(of_statistics, [&] { loss(logits, tensor({4, 5}), targets, losses, {}, 8); });
  expect_refused(of_statistics, [&] { loss(logits, tensor({3, 5}, DType::f64), targets, losses, {}, 8); });
  expect_refused("cross-entropy: losses [N], f64", [&] { loss(logits, {}, targets, tensor({5}), {}, 8); });
  expect_refused("cross-entropy: right [N], f64", [&] { loss(logits, {}, targets, losses, tensor({5}), 8); });
  expect_refused("no kernels for elements of type i32", [&] { statistics(tensor({5, 8}, DType::i32), targets, 8); });
  const std::string of_sum = "sum of losses: losses [N] f64, sum one f64";
  expect_refused(of_sum, [&] { ops::sum_of_losses(runtime, tensor({5}), tensor({1}, DType::f64)); });
  expect_refused(of_sum, [&] { ops::sum_of_losses(runtime, losses, tensor({2}, DType::f64)); });
}

void RefusedOperands::of_optimizers() {
  const Tensor w = tensor({6}), other = tensor({5});
  const std::string of_update = "update: weight, gradient and value [n]";
  expect_refused(of_update, [&] { ops::make_update_table(runtime, {{0, 0, w, other, {}}}); });
  expect_refused(of_update, [&] { ops::make_update_table(runtime, {{0, 0, w, w, tensor({5}, DType::bf16)}}); });
  expect_refused("update: elements of the state that no other update has", [&] {
    ops::make_update_table(runtime, {{5, 0, w, w, {}}, {0, 0, w, w, {}}});
  });
  const ops::UpdateTable updates = ops::make_update_table(runtime, {{0, 0, w, w, {}}});
  const auto adamw = [&](const Tensor& m, const Tensor& v) { ops::adamw(runtime, updates, m, v, 0.9, 0.99, 1e-8f); };
  expect_refused("adamw: moments [state]", [&] { adamw(other, other); });
  expect_refused("adamw: moments [state]", [&] { adamw(w, other); });
  expect_refused("adamw: moments [state]", [&] { adamw(w, tensor({6}, DType::bf16)); });
  expect_refused("sgd: momentum [state]", [&] { ops::sgd(runtime, updates, other, 0.9f); });
  expect_refused("sign step: weight and gradient [n]", [&] { ops::sign_step(runtime, w, other, 0.1f); });
  expect_refused("digest: one u64 for each range", [&] {
    ops::digest(runtime, w, tensor({2 * sizeof(kernels::Range)}, DType::u8), tensor({8}, DType::u8));
  });
  const Tensor one = tensor({1}, DType::f64), window = tensor({sizeof(kernels::SpikeWindow)}, DType::u8);
  const std::string window_rule = "judge step: a window of 2 to 1024 steps";
  expect_refused(window_rule, [&] { ops::judge_step(runtime, one, one, window, 1, 3); });
  expect_refused(window_rule, [&] { ops::judge_step(runtime, one, one, window, 1025, 3); });
  expect_refused(window_rule, [&] { ops::judge_step(runtime, one, one, one, 8, 3); });
  expect_refused("judge step: the rejected step is one u64",
                 [&] { ops::judge_step(runtime, one, one, window, 8, 3, window); });
}

TEST_P(RefusedOperands, AreNamedByTheRuleThatTheyBreak) {
  const std::map<std::string, void (RefusedOperands::*)()> rules = {
      {"fill", &RefusedOperands::of_elementwise_operations},
      {"zero_ranges", &RefusedOperands::of_elementwise_operations},
      {"accumulate", &RefusedOperands::of_elementwise_operations},
      {"narrow", &RefusedOperands::of_elementwise_operations},
      {"copy", &RefusedOperands::of_elementwise_operations},
      {"upload", &RefusedOperands::of_elementwise_operations},
      {"download", &RefusedOperands::of_elementwise_operations},
      {"linear", &RefusedOperands::of_a_linear_layer},
      {"linear_input_gradient", &RefusedOperands::of_a_linear_layer},
      {"linear_weight_gradient", &RefusedOperands::of_a_linear_layer},
      {"bias_gradient", &RefusedOperands::of_a_linear_layer},
      {"linear_activation", &RefusedOperands::of_a_linear_layer_with_an_activation},
      {"linear_input_gradient_activation", &RefusedOperands::of_a_linear_layer_with_an_activation},
      {"norm", &RefusedOperands::of_a_norm},
      {"norm_backward", &RefusedOperands::of_a_norm},
      {"activation", &RefusedOperands::of_an_activation},
      {"activation_backward", &RefusedOperands::of_an_activation},
      {"attention", &RefusedOperands::of_attention},
      {"attention_backward", &RefusedOperands::of_attention},
      {"merge_attention", &RefusedOperands::of_attention},
      {"attention_sink", &RefusedOperands::of_attention},
      {"attention_sink_backward", &RefusedOperands::of_attention},
      {"decay", &RefusedOperands::of_linear_attention},
      {"decay_backward", &RefusedOperands::of_linear_attention},
      {"linear_attention", &RefusedOperands::of_linear_attention},
      {"linear_attention_backward", &RefusedOperands::of_linear_attention},
      {"linear_attention_state", &RefusedOperands::of_linear_attention},
      {"linear_attention_state_gradient", &RefusedOperands::of_linear_attention},
      {"carry_state", &RefusedOperands::of_linear_attention},
      {"rotary", &RefusedOperands::of_rotary_positions},
      {"embedding", &RefusedOperands::of_embeddings},
      {"embedding_backward", &RefusedOperands::of_embeddings},
      {"add_position", &RefusedOperands::of_positions},
      {"add_position_backward", &RefusedOperands::of_positions},
      {"pool", &RefusedOperands::of_pooling},
      {"pool_backward", &RefusedOperands::of_pooling},
      {"grouped_linear", &RefusedOperands::of_grouped_linear_layers},
      {"grouped_linear_input_gradient", &RefusedOperands::of_grouped_linear_layers},
      {"grouped_linear_weight_gradient", &RefusedOperands::of_grouped_linear_layers},
      {"scale_exponents", &RefusedOperands::of_products_of_8_bits},
      {"quantise", &RefusedOperands::of_products_of_8_bits},
      {"scaled_linear", &RefusedOperands::of_products_of_8_bits},
      {"route", &RefusedOperands::of_experts},
      {"count_choices", &RefusedOperands::of_experts},
      {"add_imbalance", &RefusedOperands::of_experts},
      {"assign_slots", &RefusedOperands::of_experts},
      {"gather_slots", &RefusedOperands::of_experts},
      {"combine_slots", &RefusedOperands::of_experts},
      {"combine_weight_gradient", &RefusedOperands::of_experts},
      {"route_gradient", &RefusedOperands::of_experts},
      {"add_expert_sums", &RefusedOperands::of_experts},
      {"head_rows", &RefusedOperands::of_heads},
      {"head_weight_gradient", &RefusedOperands::of_heads},
      {"add_head_counts", &RefusedOperands::of_heads},
      {"residual", &RefusedOperands::of_residual_branches},
      {"residual_norm", &RefusedOperands::of_residual_branches},
      {"residual_backward", &RefusedOperands::of_residual_branches},
      {"cross_entropy_statistics", &RefusedOperands::of_cross_entropy},
      {"cross_entropy", &RefusedOperands::of_cross_entropy},
      {"sum_of_losses", &RefusedOperands::of_cross_entropy},
      {"make_update_table", &RefusedOperands::of_optimizers},
      {"adamw", &RefusedOperands::of_optimizers},
      {"sgd", &RefusedOperands::of_optimizers},
      {"sign_step", &RefusedOperands::of_optimizers},
      {"judge_step", &RefusedOperands::of_optimizers},
      {"digest", &RefusedOperands::of_optimizers},
  };
  const auto found = rules.find(GetParam().name);
  if (found == rules.end()) {
    EXPECT_NE(GetParam().why_no_rule, "") << "ops::" << GetParam().name << " is in no case of this table";
    return;
  }
  EXPECT_EQ(GetParam().why_no_rule, "") << "it has one";
  (this->*found->second)();
}

INSTANTIATE_TEST_SUITE_P(Operations, RefusedOperands, ::testing::ValuesIn(every_operation()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
