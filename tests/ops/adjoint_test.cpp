// Every differentiable operation against its backward at sizes that cross tiles, blocks and threads: hundreds of rows,
// widths that no vector divides, operands that are columns of wider buffers. The sums of each (k n of the error model
// in tests/support/adjoint.h) stand beside the call.
//
// The test runs over the list of operations: a new one that is not in the table at the end fails.
#include "tests/support/adjoint.h"

#include <map>

#include "tests/ops/every_operation.h"

namespace choir::tests {
namespace {

class AdjointOfAnOperation : public Adjoint, public ::testing::WithParamInterface<Operation> {
 public:
  void linear();
  void linear_layers_around_an_activation();
  void norm();
  void activation();
  void attention();
  void attention_with_sinks();
  void decay();
  void linear_attention();
  void linear_attention_by(bool delta, bool reverse);
  void rotary();
  void residual();
  void residual_and_norm();
  void embedding();
  void position();
  void pool();
  void grouped_linear();
  void experts();
  void heads();
  void cross_entropy();

  Tensor copy_of(const Tensor& x) {
    const Tensor copy = runtime.empty({x.rows(), x.width()}, x.dtype());
    ops::copy(runtime, x, copy);
    return copy;
  }
};

constexpr std::int64_t rows = 401, width = 131;  // enough elements for three threads (kernels/cpu/parallel.h)

void AdjointOfAnOperation::linear() {
  constexpr std::int64_t outputs = 77;
  const Tensor x = random({rows, width + 10}).slice_columns(5, 5 + width);
  const Tensor weight = random({outputs, width}), bias = random({outputs});
  expect_adjoint(
      {{"x", x}, {"weight", weight}, {"bias", bias}}, width,
      [&] { return ops::linear(runtime, "test", x, weight, bias, DType::f64); },
      [&](const Tensor& dy) {
        const Tensor dweight = zeros({outputs, width}), dbias = zeros({outputs});
        ops::linear_weight_gradient(runtime, "test", dy, x, dweight);
        ops::bias_gradient(runtime, dy, dbias);
        return std::vector{ops::linear_input_gradient(runtime, "test", dy, weight), dweight, dbias};
      });
}

// y = activation(x up^T + bias) down^T: the sums of both products.
void AdjointOfAnOperation::linear_layers_around_an_activation() {
  using enum ops::Activation;
  for (const ops::Activation kind : {gelu, gelu_erf, silu_gated}) {
    SCOPED_TRACE(static_cast<int>(kind));
    constexpr std::int64_t hidden = 77;
    const std::int64_t inputs = kernels::inputs_per_output(kind) * hidden;
    const double scale = 1 / std::sqrt(static_cast<double>(width));
    const Tensor x = random({rows, width}), up = random({inputs, width}, scale), bias = random({inputs});
    const Tensor down = random({width, hidden}, scale);
    Tensor before, active;
    expect_adjoint(
        {{"x", x}, {"up", up}, {"bias", bias}, {"down", down}}, width + hidden + 6,
        [&] {
          active = ops::linear_activation(runtime, "up", kind, x, up, bias, before);
          return ops::linear(runtime, "down", active, down, {}, DType::f64);
        },
        [&](const Tensor& dy) {
          const Tensor dup = zeros({inputs, width}), dbias = zeros({inputs}), ddown = zeros({width, hidden});
          ops::fill(runtime, ddown, 7);  // it is overwritten
          const Tensor dbefore = ops::linear_input_gradient_activation(runtime, "down", kind, dy, down, before);
          ops::linear_weight_gradient(runtime, "down", dy, active, ddown, {}, ops::Into::overwrite);
          ops::linear_weight_gradient(runtime, "up", dbefore, x, dup, dbias);
          return std::vector{ops::linear_input_gradient(runtime, "up", dbefore, up), dup, dbias, ddown};
        });
  }
}

// y = norm(x), and y = x + norm(x), whose gradient the operation adds up itself. Mean, variance, and the product.
void AdjointOfAnOperation::norm() {
  for (const bool rms : {false, true})
    for (const bool with_residual : {false, true}) {
      SCOPED_TRACE(std::string(rms ? "RMS norm" : "layer norm") + (with_residual ? " with residual" : ""));
      const Tensor x = random({rows, width}), weight = random({width}), bias = rms ? Tensor{} : random({width});
      std::vector<Operand> operands{{"x", x}, {"weight", weight}};
      if (bias) operands.push_back({"bias", bias});
      ops::NormStatistics statistics;
      expect_adjoint(
          operands, 3 * width,
          [&] {
            const Tensor y = ops::norm(runtime, x, weight, bias, rms, 1e-5, statistics);
            return with_residual ? ops::residual(runtime, x, y, {}, {}) : y;
          },
          [&](const Tensor& dy) {
            const Tensor dweight = zeros({width}), dbias = bias ? zeros({width}) : Tensor{};
            std::vector gradients{
                ops::norm_backward(runtime, dy, x, weight, statistics, with_residual ? dy : Tensor{}, dweight, dbias),
                dweight};
            if (bias) gradients.push_back(dbias);
            return gradients;
          });
    }
}

// No sums; at most six roundings one after another.
void AdjointOfAnOperation::activation() {
  using enum ops::Activation;
  for (const ops::Activation kind : {gelu, gelu_erf, silu_gated}) {
    SCOPED_TRACE(static_cast<int>(kind));
    const Tensor x = random({rows, kernels::inputs_per_output(kind) * width}, 2);
    expect_adjoint(
        {{"x", x}}, 6, [&] { return ops::activation(runtime, kind, x); },
        [&](const Tensor& dy) { return std::vector{ops::activation_backward(runtime, kind, copy_of(dy), x)}; });
  }
}

struct AttentionCase {
  std::string name;
  std::int64_t q_length, kv_length;
  ops::AttentionOptions options;
};

// Blocks are of 48 queries and 96 keys. Scores, softmax, and the mix of values.
void AdjointOfAnOperation::attention() {
  using kernels::causal_band;
  const AttentionCase cases[] = {
      {"causal", 203, 203, {.batch = 2, .heads = 3, .kv_heads = 3, .head_width = 20, .band = causal_band(203, 203)}},
      {"grouped, from the middle of a group",
       131,
       131,
       {.batch = 2,
        .heads = 5,
        .kv_heads = 2,
        .head_width = 21,
        .group_size = 4,
        .group_offset = 2,
        .band = causal_band(131, 131)}},
      {"one key/value head",
       149,
       149,
       {.batch = 1, .heads = 4, .kv_heads = 1, .head_width = 64, .group_size = 4, .band = causal_band(149, 149)}},
      {"window",
       211,
       211,
       {.batch = 1, .heads = 2, .kv_heads = 2, .head_width = 16, .band = causal_band(211, 211, 37)}},
      {"window both ways",
       211,
       211,
       {.batch = 1, .heads = 4, .kv_heads = 2, .head_width = 16, .group_size = 2, .band = {-49, 49}}},
      {"cross", 101, 230, {.batch = 2, .heads = 2, .kv_heads = 2, .head_width = 33, .band = kernels::full_band()}},
      {"the last queries of a sequence",
       60,
       203,
       {.batch = 2, .heads = 2, .kv_heads = 2, .head_width = 20, .band = causal_band(60, 203)}},
      {"queries that see no key",
       203,
       110,
       {.batch = 2, .heads = 2, .kv_heads = 2, .head_width = 20, .band = causal_band(203, 110)}},
      {"right of the diagonal", 150, 211, {.batch = 1, .heads = 2, .kv_heads = 2, .head_width = 16, .band = {50, 120}}},
      {"earlier keys only",
       203,
       110,
       {.batch = 1, .heads = 2, .kv_heads = 2, .head_width = 16, .band = {-kernels::unlimited, -30}}},
      {"soft cap and ALiBi",
       150,
       211,
       {.batch = 1,
        .heads = 3,
        .kv_heads = 3,
        .head_width = 20,
        .band = causal_band(150, 211),
        .score = {.soft_cap = 2, .alibi_heads = 5, .first_head = 2, .diagonal = 61}}},
  };
  for (const auto& [name, q_length, kv_length, options] : cases) {
    SCOPED_TRACE(name);
    const std::int64_t q_rows = options.batch * q_length, q_width = options.heads * options.head_width;
    const std::int64_t kv_rows = options.batch * kv_length, kv_width = options.kv_heads * options.head_width;
    const auto split = [&](const Tensor& q_and_more, const Tensor& kv) {
      return std::vector{q_and_more.slice_columns(3, 3 + q_width), kv.slice_columns(0, kv_width),
                         kv.slice_columns(kv_width, 2 * kv_width)};
    };
    const auto qkv = split(random({q_rows, q_width + 5}), random({kv_rows, 2 * kv_width}));
    Tensor out, lse;
    expect_adjoint(
        {{"q", qkv[0]}, {"k", qkv[1]}, {"v", qkv[2]}}, 3 * static_cast<double>(std::max(kv_length, options.head_width)),
        [&] { return out = ops::attention(runtime, options, qkv[0], qkv[1], qkv[2], lse); },
        [&](const Tensor& dout) {
          const auto gradients = split(zeros({q_rows, q_width + 5}), zeros({kv_rows, 2 * kv_width}));
          ops::attention_backward(runtime, options, qkv[0], qkv[1], qkv[2], out, lse, dout, gradients[0], gradients[1],
                                  gradients[2]);
          return gradients;
        });
  }
}

// Attention whose heads have sinks: the sink's term beside the sums of attention.
void AdjointOfAnOperation::attention_with_sinks() {
  constexpr std::int64_t batch = 2, length = 151, heads = 3, head_width = 20;
  const ops::AttentionOptions options{.batch = batch,
                                      .heads = heads,
                                      .kv_heads = heads,
                                      .head_width = head_width,
                                      .band = kernels::causal_band(length, length)};
  const Tensor q = random({batch * length, heads * head_width}), k = random({batch * length, heads * head_width});
  const Tensor v = random({batch * length, heads * head_width}), sinks = random({heads});
  Tensor out, lse;
  expect_adjoint(
      {{"q", q}, {"k", k}, {"v", v}, {"sinks", sinks}}, 3 * static_cast<double>(length) + 2,
      [&] {
        out = ops::attention(runtime, options, q, k, v, lse);
        ops::attention_sink(runtime, options, sinks, out, lse);
        return out;
      },
      [&](const Tensor& dout) {
        std::vector gradients{zeros({q.rows(), q.width()}), zeros({k.rows(), k.width()}), zeros({v.rows(), v.width()}),
                              zeros({heads})};
        ops::attention_sink_backward(runtime, options, sinks, out, lse, dout, gradients[3]);
        ops::attention_backward(runtime, options, q, k, v, out, lse, dout, gradients[0], gradients[1], gradients[2]);
        return gradients;
      });
}

// No sums; seven roundings one after another.
void AdjointOfAnOperation::decay() {
  const Tensor z = random({rows, 13}, 3);
  Tensor log_decay;
  expect_adjoint(
      {{"z", z}}, 7, [&] { return log_decay = ops::decay(runtime, z, kernels::whole_sequences(1, rows), {}); },
      [&](const Tensor& dy) { return std::vector{ops::decay_backward(runtime, log_decay, dy)}; });
}

// A sequence in two pieces, as two context ranks have it: the state of the first is carried into the second. Sums over
// features, the tokens of a chunk, the chunks, and those of decays; by the delta rule those of values too.
void AdjointOfAnOperation::linear_attention() {
  linear_attention_by(false, false);
  linear_attention_by(false, true);
  linear_attention_by(true, false);
  linear_attention_by(true, true);
}

void AdjointOfAnOperation::linear_attention_by(bool delta, bool reverse) {
  SCOPED_TRACE(std::string(delta ? "by the delta rule" : "without the delta rule") + (reverse ? ", in reverse" : ""));
  constexpr std::int64_t length = 151, border = 83, heads = 3, head_width = 20, states = heads;
  const ops::LinearAttentionOptions options{.batch = 1, .heads = heads, .head_width = head_width, .reverse = reverse};
  const Tensor q = random({length, heads * head_width}), k = random({length, heads * head_width});
  const Tensor v = random({length, heads * head_width}), z = random({length, heads}, 3);
  const Tensor y = random({length, heads}, 3);  // of rates
  const Shape state{states, head_width * head_width};
  const auto piece = [](const Tensor& x, bool right) {
    return !x ? x : right ? x.slice_rows(border, length) : x.slice_rows(0, border);
  };
  const auto first = [&](const Tensor& x) { return piece(x, reverse); };  // of those that come one after another
  const auto second = [&](const Tensor& x) { return piece(x, !reverse); };
  const Tensor total = delta ? zeros(state) : zeros({states}), before = zeros(state);
  Tensor g, rate;
  std::vector<Operand> inputs{{"q", q}, {"k", k}, {"v", v}, {"z", z}};
  if (delta) inputs.push_back({"y", y});
  expect_adjoint(
      inputs, (delta ? 2 : 1) * (3 * static_cast<double>(length) + 2 * head_width),
      [&] {
        g = ops::decay(runtime, z, kernels::whole_sequences(1, length), {});
        if (delta) rate = ops::decay(runtime, y, kernels::whole_sequences(1, length), {}, 1);
        const Tensor next = zeros(state), out = zeros({length, heads * head_width});
        ops::fill(runtime, before, 0);
        ops::linear_attention_state(runtime, options, first(k), first(v), first(g), next, total, first(rate));
        ops::carry_state(runtime, next, total, before);
        ops::linear_attention(runtime, options, first(q), first(k), first(v), first(g), {}, first(out), {},
                              first(rate));
        ops::linear_attention(runtime, options, second(q), second(k), second(v), second(g), before, second(out), {},
                              second(rate));
        return out;
      },
      [&](const Tensor& dout) {
        std::vector gradients{zeros({q.rows(), q.width()}), zeros({k.rows(), k.width()}), zeros({v.rows(), v.width()})};
        const Tensor dg = zeros({length, heads}), dlast = zeros(state);
        const Tensor drate = delta ? zeros({length, heads}) : Tensor{};
        const auto backward = [&](const auto& of, const Tensor& from, const Tensor& dto) {
          ops::linear_attention_backward(runtime, options, of(q), of(k), of(v), of(dout), of(g), from, dto,
                                         of(gradients[0]), of(gradients[1]), of(gradients[2]), of(dg), of(rate),
                                         of(drate));
        };
        ops::linear_attention_state_gradient(runtime, options, second(q), second(k), second(dout), second(g), dlast,
                                             second(rate));
        backward(first, {}, dlast);
        backward(second, before, {});
        gradients.push_back(ops::decay_backward(runtime, g, dg));
        if (delta) gradients.push_back(ops::decay_backward(runtime, rate, drate, 1));
        return gradients;
      });
}

void AdjointOfAnOperation::rotary() {
  constexpr std::int64_t length = 43, first_position = 9, head_width = 18, heads = 5;
  const Tensor table = ops::rotary_table(runtime, first_position + length, head_width, 100);
  const Tensor x = random({13 * length, heads * head_width + 4}).slice_columns(4, 4 + heads * head_width);
  const auto rotated = [&](const Tensor& from, bool inverse) {
    const Tensor to = copy_of(from);
    ops::rotary(runtime, to, table, head_width,
                {.sequences = 13, .runs = {{first_position, first_position + length}, {0, 0}}}, inverse);
    return to;
  };
  expect_adjoint(
      {{"x", x}}, 2, [&] { return rotated(x, false); },
      [&](const Tensor& dy) { return std::vector{rotated(dy, true)}; });
}

// The sum with the bias, its scaling, the sum with x.
void AdjointOfAnOperation::residual() {
  const kernels::StepScalars scalars{.step = 3};
  runtime.scalars = runtime.empty({sizeof scalars}, DType::u8);
  ops::upload(runtime, &scalars, runtime.scalars);
  for (const double p : {0.0, 0.3}) {
    SCOPED_TRACE(p);
    const Tensor x = random({rows, width}), delta = random({rows, width}), bias = random({width});
    const ops::Dropout dropout = ops::dropout_for(runtime, p, "test", {.first_row = 1000});
    expect_adjoint(
        {{"x", x}, {"delta", delta}, {"bias", bias}}, 3,
        [&] { return ops::residual(runtime, x, delta, bias, dropout); },
        [&](const Tensor& dy) {
          const Tensor ddelta = ops::residual_backward(runtime, dy, dropout), dbias = zeros({width});
          ops::bias_gradient(runtime, ddelta, dbias);
          return std::vector{dy, ddelta, dbias};
        });
  }
}

// norm(x + branch): mean, variance, and the product.
void AdjointOfAnOperation::residual_and_norm() {
  const Tensor x = random({rows, width}), delta = random({rows, width}), bias = random({width});
  const Tensor weight = random({width}), shift = random({width});
  const kernels::StepScalars scalars{.step = 3};
  runtime.scalars = runtime.empty({sizeof scalars}, DType::u8);
  ops::upload(runtime, &scalars, runtime.scalars);
  const ops::Dropout dropout = ops::dropout_for(runtime, 0.3, "test", {.first_row = 1000});
  ops::NormStatistics statistics;
  Tensor sum;
  expect_adjoint(
      {{"x", x}, {"delta", delta}, {"bias", bias}, {"weight", weight}, {"shift", shift}}, 3 * width,
      [&] {
        const ops::SumAndNorm result =
            ops::residual_norm(runtime, x, {delta, bias, dropout}, weight, shift, false, 1e-5, statistics);
        sum = result.sum;
        return result.norm;
      },
      [&](const Tensor& dy) {
        const Tensor dweight = zeros({width}), dshift = zeros({width}), dbias = zeros({width});
        const Tensor dx = ops::norm_backward(runtime, dy, sum, weight, statistics, {}, dweight, dshift);
        const Tensor ddelta = ops::residual_backward(runtime, dx, dropout);
        ops::bias_gradient(runtime, ddelta, dbias);
        return std::vector{dx, ddelta, dbias, dweight, dshift};
      });
}

// A slice of the vocabulary: some tokens stand elsewhere, and most of the rest several times.
void AdjointOfAnOperation::embedding() {
  constexpr std::int32_t vocabulary = 150, first_token = 20, tokens = 101;
  std::vector<std::int32_t> values(rows);
  for (std::size_t r = 0; r < values.size(); ++r) values[r] = static_cast<std::int32_t>(r * 7919 % vocabulary);
  const Tensor ids = ops::to_device(runtime, values, DType::i32), table = random({tokens, width});
  expect_adjoint(
      {{"table", table}}, 1, [&] { return ops::embedding(runtime, ids, table, first_token); },
      [&](const Tensor& dy) {
        const Tensor dtable = zeros({tokens, width});
        ops::embedding_backward(runtime, ids, dy, dtable, first_token);
        return std::vector{dtable};
      });
}

void AdjointOfAnOperation::position() {
  constexpr std::int64_t length = 43;
  const kernels::RowMap map{.sequences = rows, .length = length, .runs = {{3, 20}, {31, length}}, .first_row = 17};
  const Tensor x = random({rows, width}), table = random({length + 2, width});
  expect_adjoint(
      {{"x", x}, {"table", table}}, 1, [&] { return ops::add_position(runtime, x, table, map); },
      [&](const Tensor& dy) {
        const Tensor dtable = zeros({length + 2, width});
        ops::add_position_backward(runtime, dy, dtable, map);
        return std::vector{dy, dtable};
      });
}

void AdjointOfAnOperation::pool() {
  constexpr std::int64_t sequences = rows / 14;
  const kernels::RowMap map{.sequences = sequences, .length = 43, .runs = {{3, 12}, {31, 37}}, .first_row = 1};
  const kernels::Run positions{5, 40};
  const Tensor x = random({rows, width});
  std::vector<std::int32_t> ranges;  // the first document ends at position 33 of each sequence
  for (std::int64_t n = 0; n < sequences * map.length; ++n)
    ranges.insert(ranges.end(), {n % map.length < 33 ? 0 : 33, n % map.length < 33 ? 33 : 43});
  for (const Tensor& documents :
       {Tensor{}, ops::to_device(runtime, ranges, DType::i32).reshape({sequences * map.length, 2})})
    expect_adjoint(
        {{"x", x}}, 13, [&] { return ops::pool(runtime, x, map, positions, documents); },
        [&](const Tensor& dy) {
          return std::vector{ops::pool_backward(runtime, dy, rows, map, positions, documents)};
        });
}

void AdjointOfAnOperation::grouped_linear() {
  constexpr std::int64_t groups = 3, outputs = 77, inputs = 131;
  const Tensor x = random({groups * 133, inputs}), weight = random({groups * outputs, inputs});
  expect_adjoint(
      {{"x", x}, {"weight", weight}}, inputs, [&] { return ops::grouped_linear(runtime, "test", x, weight, groups); },
      [&](const Tensor& dy) {
        const Tensor dweight = zeros({groups * outputs, inputs});
        ops::fill(runtime, dweight, 7);  // it is overwritten
        ops::grouped_linear_weight_gradient(runtime, "test", dy, x, dweight, groups, ops::Into::overwrite);
        return std::vector{ops::grouped_linear_input_gradient(runtime, "test", dy, weight, groups), dweight};
      });
}

// y = the weighted sum over the slots that a row has, and the balance loss, with choices that do not change. The sums
// over experts, over choices, and of a row.
void AdjointOfAnOperation::experts() {
  constexpr std::int64_t count = 37, chosen = 3, sequences = 7, length = 53;
  const kernels::RowMap map = kernels::whole_sequences(sequences, length);
  const ops::SlotRule rule{.capacity = 5, .per_sequence = 5, .places = {count, 2}};
  for (const auto score : {ops::ExpertScore::softmax, ops::ExpertScore::sigmoid}) {
    SCOPED_TRACE(static_cast<int>(score));
    const Tensor logits = random({sequences * length, count}), x = random({sequences * length, width});
    const Tensor given = ops::route(runtime, logits, {}, {}, chosen, score).choices;
    const Tensor counts = ops::count_choices(runtime, given, count, map);
    const ops::Slots slots = ops::assign_slots(runtime, given, counts, {}, rule, map);
    ops::Routed routed;
    Tensor in_slots;
    expect_adjoint(
        {{"logits", logits}, {"x", x}}, 2 * count + chosen,
        [&] {
          routed = ops::route(runtime, logits, {}, given, chosen, score);
          in_slots = ops::gather_slots(runtime, x, {}, slots);
          return ops::combine_slots(runtime, in_slots, routed.weights, slots);
        },
        [&](const Tensor& dy) {
          const Tensor dweights = ops::combine_weight_gradient(runtime, dy, in_slots, slots);
          const Tensor din_slots = ops::gather_slots(runtime, dy, routed.weights, slots);
          return std::vector{ops::route_gradient(runtime, logits, routed, dweights, score, {}, map),
                             ops::combine_slots(runtime, din_slots, {}, slots)};
        });
    constexpr double factor = 0.3;
    expect_adjoint(
        {{"logits of the balance loss", logits}}, 2 * count + sequences * length,
        [&] {
          const Tensor sums = zeros({3});
          ops::add_expert_sums(runtime, logits, slots, score, {counts, factor}, sums, map);
          return sums.slice_columns(2, 3);
        },
        [&](const Tensor& dloss) {
          const double scale = factor * *dloss.data<double>();
          return std::vector{ops::route_gradient(runtime, logits, routed, zeros({sequences * length, chosen}), score,
                                                 {counts, scale}, map)};
        });
  }
}

// The gates of heads 1 to 3, of which each row chooses two of 2, 3 and 4, with choices that do not change; head 0 is
// always on. The sum over choices.
void AdjointOfAnOperation::heads() {
  constexpr std::int64_t sequences = 3, length = 47, routed_heads = 3, chosen = 2, held = 3;
  const kernels::RowMap map = kernels::whole_sequences(sequences, length);
  const Tensor logits = random({sequences * length, routed_heads}, 2);
  const Tensor given = ops::route(runtime, logits, {}, {}, chosen, ops::ExpertScore::softmax).choices;
  const ops::SlotRule slot_rule{.capacity = 31, .per_sequence = 31, .places = {routed_heads, 1}};
  const ops::Slots slots =
      ops::assign_slots(runtime, given, ops::count_choices(runtime, given, routed_heads, map), {}, slot_rule, map);
  const ops::HeadRowsRule rule{.always = 2,
                               .first_head = 1,
                               .heads = held,
                               .routed_per_sequence = 31,
                               .per_sequence = length,
                               .keys = length,
                               .band = kernels::causal_band(length, length)};
  ops::Routed routed;
  expect_adjoint(
      {{"logits", logits}}, chosen,
      [&] {
        routed = ops::route(runtime, logits, {}, given, chosen, ops::ExpertScore::softmax);
        return ops::head_rows(runtime, routed, slots, rule, map).gates;
      },
      [&](const Tensor& dgates) {
        const Tensor used = copy_of(dgates), gates = ops::head_rows(runtime, routed, slots, rule, map).gates;
        for (std::int64_t i = 0; i < used.count(); ++i)
          if (gates.data<double>()[i] == 0) used.data<double>()[i] = 0;  // as that of a head that is not computed
        return std::vector{ops::route_gradient(runtime, logits, routed,
                                               ops::head_weight_gradient(runtime, used, routed, rule),
                                               ops::ExpertScore::softmax, {}, map)};
      });
}

// The loss of a vocabulary in two slices, reduced here by hand: y is one number. A sum of exponentials, then a sum of
// rows.
void AdjointOfAnOperation::cross_entropy() {
  constexpr std::int64_t tokens[2] = {131, 127}, stride = 136;
  std::vector<std::int32_t> values(rows);
  for (std::size_t r = 0; r < values.size(); ++r)
    values[r] = r % 7 == 3 ? -1 : static_cast<std::int32_t>(r * 7919 % (tokens[0] + tokens[1]));
  const Tensor targets = ops::to_device(runtime, values, DType::i32);
  const Tensor logits[2] = {random({rows, stride}, 2), random({rows, stride}, 2)};
  const auto loss = [&](double scale, std::vector<Tensor>* gradients) {
    const Tensor work[2] = {copy_of(logits[0]), copy_of(logits[1])};
    const Tensor statistics = runtime.empty({6, rows}, DType::f64);
    for (const int slice : {0, 1})
      ops::copy(runtime, ops::cross_entropy_statistics(runtime, work[slice], targets, tokens[slice], slice * tokens[0]),
                statistics.slice_rows(3 * slice, 3 * slice + 3));
    const Tensor sums[2] = {zeros({1}), zeros({1})};
    for (const int slice : {0, 1}) {
      const Tensor losses = zeros({rows});
      ops::cross_entropy(runtime, work[slice], statistics, targets, losses, {}, tokens[slice], slice * tokens[0], scale,
                         gradients != nullptr);
      if (gradients) gradients->push_back(work[slice].slice_columns(0, tokens[slice]));
      ops::sum_of_losses(runtime, losses, sums[slice]);
    }
    EXPECT_EQ(*sums[0].data<double>(), *sums[1].data<double>()) << "each slice has the whole loss";
    return sums[0];
  };
  expect_adjoint(
      {{"logits", logits[0].slice_columns(0, tokens[0])},
       {"logits of the second slice", logits[1].slice_columns(0, tokens[1])}},
      tokens[0] + tokens[1] + rows, [&] { return loss(1, nullptr); },
      [&](const Tensor& dloss) {
        std::vector<Tensor> gradients;
        loss(*dloss.data<double>(), &gradients);
        return gradients;
      });
}

TEST_P(AdjointOfAnOperation, IsItsBackward) {
  const std::map<std::string, void (AdjointOfAnOperation::*)()> adjoints = {
      {"linear", &AdjointOfAnOperation::linear},
      {"linear_input_gradient", &AdjointOfAnOperation::linear},
      {"linear_weight_gradient", &AdjointOfAnOperation::linear},
      {"bias_gradient", &AdjointOfAnOperation::linear},
      {"linear_activation", &AdjointOfAnOperation::linear_layers_around_an_activation},
      {"linear_input_gradient_activation", &AdjointOfAnOperation::linear_layers_around_an_activation},
      {"norm", &AdjointOfAnOperation::norm},
      {"norm_backward", &AdjointOfAnOperation::norm},
      {"activation", &AdjointOfAnOperation::activation},
      {"activation_backward", &AdjointOfAnOperation::activation},
      {"attention", &AdjointOfAnOperation::attention},
      {"attention_backward", &AdjointOfAnOperation::attention},
      {"attention_sink", &AdjointOfAnOperation::attention_with_sinks},
      {"attention_sink_backward", &AdjointOfAnOperation::attention_with_sinks},
      {"decay", &AdjointOfAnOperation::decay},
      {"decay_backward", &AdjointOfAnOperation::decay},
      {"linear_attention", &AdjointOfAnOperation::linear_attention},
      {"linear_attention_backward", &AdjointOfAnOperation::linear_attention},
      {"linear_attention_state", &AdjointOfAnOperation::linear_attention},
      {"linear_attention_state_gradient", &AdjointOfAnOperation::linear_attention},
      {"carry_state", &AdjointOfAnOperation::linear_attention},
      {"rotary", &AdjointOfAnOperation::rotary},
      {"residual", &AdjointOfAnOperation::residual},
      {"residual_norm", &AdjointOfAnOperation::residual_and_norm},
      {"residual_backward", &AdjointOfAnOperation::residual},
      {"embedding", &AdjointOfAnOperation::embedding},
      {"embedding_backward", &AdjointOfAnOperation::embedding},
      {"add_position", &AdjointOfAnOperation::position},
      {"add_position_backward", &AdjointOfAnOperation::position},
      {"pool", &AdjointOfAnOperation::pool},
      {"pool_backward", &AdjointOfAnOperation::pool},
      {"grouped_linear", &AdjointOfAnOperation::grouped_linear},
      {"grouped_linear_input_gradient", &AdjointOfAnOperation::grouped_linear},
      {"grouped_linear_weight_gradient", &AdjointOfAnOperation::grouped_linear},
      {"route", &AdjointOfAnOperation::experts},
      {"gather_slots", &AdjointOfAnOperation::experts},
      {"combine_slots", &AdjointOfAnOperation::experts},
      {"combine_weight_gradient", &AdjointOfAnOperation::experts},
      {"route_gradient", &AdjointOfAnOperation::experts},
      {"add_expert_sums", &AdjointOfAnOperation::experts},
      {"cross_entropy_statistics", &AdjointOfAnOperation::cross_entropy},
      {"cross_entropy", &AdjointOfAnOperation::cross_entropy},
      {"sum_of_losses", &AdjointOfAnOperation::cross_entropy},
      {"head_rows", &AdjointOfAnOperation::heads},
      {"head_weight_gradient", &AdjointOfAnOperation::heads},
  };
  const auto found = adjoints.find(GetParam().name);
  if (found == adjoints.end()) {
    EXPECT_NE(GetParam().why_no_adjoint, "") << "ops::" << GetParam().name << " is in no case of this table";
    return;
  }
  EXPECT_EQ(GetParam().why_no_adjoint, "") << "it has one";
  (this->*found->second)();
}

INSTANTIATE_TEST_SUITE_P(Operations, AdjointOfAnOperation, ::testing::ValuesIn(every_operation()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
