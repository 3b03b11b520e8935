// The layers against their backward at sizes that cross tiles, blocks and threads: by their input, by the residual
// branch beside them, and by every parameter.
#include "tests/support/adjoint.h"

#include <functional>

#include "framework/nn/block.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/shards.h"

namespace choir::tests {
namespace {

constexpr std::int64_t sequences = 3, length = 107, width = 50, hidden = 133;

// The sums, one after another, on the longest way through a layer (framework/train/comparison.h), and the longest of
// them.
constexpr double attention_steps = 7, feed_forward_steps = 4, block_steps = attention_steps + feed_forward_steps + 2;
constexpr double longest = hidden;

struct LayerCase {
  std::string name;
  BlockShape shape;
};

void PrintTo(const LayerCase& layer, std::ostream* to) { *to << layer.name; }

class AdjointOfALayer : public Adjoint, public ::testing::WithParamInterface<LayerCase> {
 protected:
  using Forward = std::function<Tensor(const Tensor& x, const Tensor& residual)>;
  struct Gradients {
    Tensor x, residual;
  };
  using Backward = std::function<Gradients(const Tensor& dy)>;

  AdjointOfALayer() : mesh(make_counting_mesh(0, {}, device, ring)) {
    const kernels::StepScalars third_step{.step = 3};  // dropout's counter
    runtime.scalars = runtime.empty({sizeof third_step}, DType::u8);
    ops::upload(runtime, &third_step, runtime.scalars);
    store.begin_group();
  }

  /// Gives the parameters values that keep activations near 1, then checks the identity by each of them. `residual` is
  /// an input of the layer of its own.
  void expect_adjoint_layer(double steps, bool residual, const Forward& forward, const Backward& backward) {
    Shards shards(store, {}, context);
    const Tensor x = random({context.rows.count(), width}), r = random({context.rows.count(), width});
    std::vector<Operand> operands{{"x", x}};
    if (residual) operands.push_back({"residual", r});
    for (const Parameter& p : store.parameters()) {
      const Tensor start =
          p.shape.size() > 1 ? random(p.shape, 1 / std::sqrt(static_cast<double>(p.shape[1]))) : random(p.shape, 0.3);
      for (std::int64_t i = 0; i < p.held.count(); ++i)
        p.value().data<double>()[i] = static_cast<double>(p.initial.mean) + start.data<double>()[i];
      operands.push_back({p.name, p.value()});
    }
    expect_adjoint(
        operands, steps * longest, [&] { return forward(x, r); },
        [&](const Tensor& dy) {
          ops::fill(runtime, shards.gradients(), 0);
          const Gradients inputs = backward(dy);
          std::vector gradients{inputs.x};
          if (residual) gradients.push_back(inputs.residual);
          for (const Parameter& p : store.parameters()) gradients.push_back(p.gradient());
          return gradients;
        });
  }

  CallRing ring;
  Mesh mesh;  // of one rank: no verb of it moves anything
  Context context{.runtime = runtime, .mesh = mesh, .rows = whole_rows(sequences, length, 5)};
  ParameterStore store;
};

TEST_P(AdjointOfALayer, Attention) {
  const Attention layer("attention", GetParam().shape.attention, TensorShare{}, store);
  Attention::Saved saved;
  expect_adjoint_layer(
      attention_steps, true,
      [&](const Tensor& x, const Tensor& residual) {
        const auto [delta, bias, dropout] = layer.forward(x, saved, context);
        return ops::residual(runtime, residual, delta, bias, dropout);
      },
      [&](const Tensor& dy) {
        return Gradients{layer.backward(dy, saved, context), dy};
      });
}

TEST_P(AdjointOfALayer, FeedForward) {
  const FeedForward layer("feed_forward", GetParam().shape.feed_forward, TensorShare{}, store);
  FeedForward::Saved saved;
  expect_adjoint_layer(
      feed_forward_steps, true,
      [&](const Tensor& x, const Tensor& residual) { return layer.forward(x, residual, saved, context); },
      [&](const Tensor& dy) {
        return Gradients{layer.backward(dy, saved, context), dy};
      });
}

TEST_P(AdjointOfALayer, Block) {
  const Block layer("block", GetParam().shape, TensorShare{}, store);
  Block::Saved saved;
  expect_adjoint_layer(
      block_steps, false, [&](const Tensor& x, const Tensor&) { return layer.forward(x, saved, context); },
      [&](const Tensor& dy) {
        return Gradients{layer.backward(dy, saved, context), {}};
      });
}

std::vector<LayerCase> layer_cases() {
  LayerCase gpt{.name = "gpt", .shape = {}};
  gpt.shape.attention = {.width = width,
                         .heads = 5,
                         .kv_heads = 5,
                         .head_width = 10,
                         .band = kernels::causal_band(length, length),
                         .dropout = 0.1};
  gpt.shape.feed_forward = {.width = width, .hidden = hidden, .dropout = 0.1};

  LayerCase llama{.name = "llama_6_of_2", .shape = {}};
  llama.shape.attention = {.width = width,
                           .heads = 6,
                           .kv_heads = 2,
                           .head_width = 14,
                           .rotary_positions = length,
                           .rotary_base = 100,
                           .bias = false};
  llama.shape.feed_forward = {
      .width = width, .hidden = hidden, .activation = ops::Activation::silu_gated, .bias = false};
  llama.shape.rms_norm = true;

  LayerCase window{.name = "window_4_of_1", .shape = {}};
  window.shape.attention = {.width = width,
                            .heads = 4,
                            .kv_heads = 1,
                            .head_width = 18,
                            .band = kernels::causal_band(length, length, 23),
                            .rotary_positions = length,
                            .rotary_base = 100,
                            .dropout = 0.1};
  window.shape.feed_forward = {.width = width, .hidden = hidden, .activation = ops::Activation::gelu_erf};
  LayerCase scored = gpt;
  scored.name = "soft_cap_alibi";
  scored.shape.attention.score = {.soft_cap = 2, .alibi_heads = 5};
  LayerCase normed = llama;
  normed.name = "normed_6_of_2";
  normed.shape.attention.norm = true;
  return {gpt, llama, window, scored, normed};
}

INSTANTIATE_TEST_SUITE_P(Shapes, AdjointOfALayer, ::testing::ValuesIn(layer_cases()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
