// The parts of models: embeddings of tokens and of images, blocks with or without experts, and heads with their final
// norm.

#include "framework/model/parts.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "framework/model/families.h"
#include "framework/model/joined_rows.h"
#include "framework/nn/norm.h"
#include "framework/nn/output_head.h"
#include "framework/nn/patch_embedding.h"
#include "framework/nn/pooled_head.h"

namespace choir {
namespace {

ops::Activation activation_of(FeedForwardKind kind) {
  switch (kind) {
    case FeedForwardKind::gelu:
      return ops::Activation::gelu;
    case FeedForwardKind::gelu_erf:
      return ops::Activation::gelu_erf;
    case FeedForwardKind::swiglu:
      return ops::Activation::silu_gated;
  }
  std::abort();  // all values are above
}

/// Of the squares of an image.
kernels::Grid grid_of(const ModelConfig& c) {
  return {.rows = c.image.rows(), .columns = c.image.columns(), .first = c.pool == Pool::class_token ? 1 : 0};
}

/// The tokens of a sequence of `length` that one of `count` experts or heads takes, of which a token chooses `chosen`.
std::int64_t capacity_of(double factor, std::int64_t chosen, std::int64_t count, std::int64_t length) {
  const double mean = static_cast<double>(chosen * length) / static_cast<double>(count);
  const double capacity = std::ceil(factor * mean * (1 - 1e-12));  // 1.25 * 8 / 5 is 2, not 3
  if (factor == 0 || capacity > static_cast<double>(length)) return length;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(capacity));
}

/// Weight of: count * sum over e of (share of the choices of a sequence) * (mean score), as one sum over tokens.
double balance_factor(double weight, std::int64_t chosen, std::int64_t count, std::int64_t length) {
  return weight * static_cast<double>(count) / static_cast<double>(chosen * length);
}

/// Of sequences of `positions` tokens.
ExpertsShape experts_shape(const ModelConfig& c, std::int64_t positions, const FeedForwardShape& expert) {
  const ExpertsConfig& e = c.experts;
  const bool balances = e.balance == ExpertBalance::loss;
  return {.count = e.count,
          .chosen = e.chosen,
          .capacity = capacity_of(e.capacity, e.chosen, e.count, positions),
          .shared = e.shared,
          .score = e.score == ExpertScoreKind::softmax ? ops::ExpertScore::softmax : ops::ExpertScore::sigmoid,
          .balance_factor = balances ? balance_factor(e.balance_weight, e.chosen, e.count, positions) : 0,
          .biased = e.balance == ExpertBalance::bias,
          .bias_step = static_cast<float>(e.bias_step),
          .expert = expert};
}

VocabularyTable patch_table(const ModelConfig& c) {
  return {.name = "embedding.patch.weight",
          .vocabulary = c.image.is_convolved() ? convolution_shape(c).outputs.back() : c.image.features(),
          .width = c.width,
          .deviation = static_cast<float>(c.initial_deviation)};
}

VocabularyTable class_table(const ModelConfig& c) {
  return {.name = "head.weight",
          .vocabulary = c.classes,
          .width = c.width,
          .deviation = static_cast<float>(c.initial_deviation)};
}

class EmbeddingPart final : public Part {
 public:
  EmbeddingPart(const ModelConfig& c, const TensorShare& share, ParameterStore& store)
      : embedding_("embedding", token_table(c), learned_positions(c, c.context), c.dropout, share, store) {}

  struct State final : Saved {
    Embedding::Saved embedding;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor&, const Batch& batch, const Loss&, Saved& saved, Context& context) const override {
    return embedding_.forward(batch.ids, static_cast<State&>(saved).embedding, context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    embedding_.backward(dy, static_cast<State&>(saved).embedding, context);
    return {};
  }
  bool backward_reads_values() const override { return false; }

 private:
  Embedding embedding_;
};

/// `Stem` is a PatchEmbedding or a ConvolutionStem.
template <class Stem>
class ImageStemPart final : public Part {
 public:
  explicit ImageStemPart(Stem stem) : stem_(std::move(stem)) {}

  struct State final : Saved {
    typename Stem::Saved stem;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor&, const Batch& batch, const Loss&, Saved& saved, Context& context) const override {
    return stem_.forward(batch.patches, static_cast<State&>(saved).stem, context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    stem_.backward(dy, static_cast<State&>(saved).stem, context);
    return {};
  }
  bool backward_reads_values() const override { return Stem::backward_reads_values; }

 private:
  Stem stem_;
};

class BlockPart final : public Part {
 public:
  BlockPart(const std::string& name, const BlockShape& shape, const TensorShare& share, ParameterStore& store)
      : block_(name, shape, share, store) {}

  struct State final : Saved {
    Block::Saved block;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch&, const Loss&, Saved& saved, Context& context) const override {
    return block_.forward(x, static_cast<State&>(saved).block, context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    return block_.backward(dy, static_cast<State&>(saved).block, context);
  }
  KeyValueCache make_cache(std::int64_t positions, Runtime& runtime) const override {
    return block_.make_cache(positions, runtime);
  }

 private:
  Block block_;
};

/// Another part, of which only the input is saved: backward runs its forward again.
class Recomputed final : public Part {
 public:
  explicit Recomputed(std::unique_ptr<Part> part) : part_(std::move(part)) {}

  struct State final : Saved {
    Tensor x;  // [rows held, D]
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch& batch, const Loss& loss, Saved& saved, Context& context) const override {
    if (loss.gradient) static_cast<State&>(saved).x = keep(x);
    return part_->forward(x, batch, loss, *part_->make_saved(), context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    Tensor& x = static_cast<State&>(saved).x;
    const std::unique_ptr<Saved> again = part_->make_saved();
    Context repeating = repeated(context);
    part_->forward(x, {}, {.sum = {}, .gradient = true}, *again, repeating);
    x = {};
    return part_->backward(dy, *again, context);
  }
  KeyValueCache make_cache(std::int64_t positions, Runtime& runtime) const override {
    return part_->make_cache(positions, runtime);
  }

 private:
  std::unique_ptr<Part> part_;
};

class HeadPart final : public Part {
 public:
  HeadPart(const ModelConfig& c, const TensorShare& share, ParameterStore& store)
      : norm_(make_norm("final_norm", c, share, store)), head_(head_table(c), share, store) {}

  /// The output head's table: the embedding's, or its own.
  static VocabularyTable head_table(const ModelConfig& c) {
    VocabularyTable table = token_table(c);
    if (!c.tied) table.name = "head.weight";
    return table;
  }

  struct State final : Saved {
    Norm::Saved norm;
    Tensor dx;  // [rows held, D]: the gradient of what the head read, without rows of a source
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch& batch, const Loss& loss, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    if (!batch.targets)
      return head_.logits(norm_.forward(x.slice_rows(x.rows() - 1, x.rows()), state.norm, context), context);
    const Tensor normed = norm_.forward(target_rows(x, context), state.norm, context);
    state.dx = head_.loss(normed, batch.targets, loss.sum, loss.right, loss.scale, loss.gradient, context);
    if (loss.gradient) keep(state.dx);
    return {};
  }
  Tensor backward(const Tensor&, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    return join_rows({}, norm_.backward(state.dx, {}, state.norm, context), context);
  }
  bool forward_adds_gradients() const override { return true; }  // of the head, with the losses

 private:
  Norm norm_;
  OutputHead head_;
};

/// The final norm and one class of each sequence.
class PooledHeadPart final : public Part {
 public:
  PooledHeadPart(const ModelConfig& c, const TensorShare& share, ParameterStore& store)
      : norm_(make_norm("final_norm", c, share, store)),
        head_(class_table(c), c.pool == Pool::mean ? kernels::Run{0, c.context} : kernels::Run{0, 1}, share, store) {}

  struct State final : Saved {
    Norm::Saved norm;
    Tensor dx;  // [rows held, D]: the gradient of what the head read
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch& batch, const Loss& loss, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    const Tensor normed = norm_.forward(x, state.norm, context);
    state.dx = head_.loss(normed, batch.targets, loss.sum, loss.right, loss.scale, loss.gradient, context);
    if (loss.gradient) keep(state.dx);
    return {};
  }
  Tensor backward(const Tensor&, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    return norm_.backward(state.dx, {}, state.norm, context);
  }
  bool forward_adds_gradients() const override { return true; }

 private:
  Norm norm_;
  PooledHead head_;
};

}  // namespace

BlockShape block_shape(const ModelConfig& c, const kernels::Band& band, std::int64_t positions, std::int64_t branches,
                       bool has_experts) {
  const auto deviation = static_cast<float>(c.initial_deviation);
  // The outputs of the residual branches are added, so each starts smaller: the sum does not grow with depth (GPT-2).
  const auto out_deviation = static_cast<float>(c.initial_deviation / std::sqrt(static_cast<double>(branches)));
  const bool rms = c.norm.kind == NormKind::rms_norm;
  const FeedForwardShape feed_forward{.width = c.width,
                                      .hidden = c.feed_forward_width(),
                                      .activation = activation_of(c.feed_forward.kind),
                                      .bias = c.bias,
                                      .dropout = c.dropout,
                                      .deviation = deviation,
                                      .down_deviation = out_deviation};
  return {.attention = {.width = c.width,
                        .heads = c.attention.heads,
                        .kv_heads = c.kv_heads(),
                        .head_width = c.head_width(),
                        .band = band,
                        .score = attention_score(c),
                        .rotary_positions = is_rotary(c.attention.position) ? positions : 0,
                        .rotary_grid = c.attention.position == Position::rotary_2d ? grid_of(c) : kernels::Grid{},
                        .rotary_base = c.attention.rotary_base,
                        .norm = c.attention.norm,
                        .norm_epsilon = c.norm.epsilon,
                        .sinks = c.attention.sinks,
                        .routing = head_routing(c, positions),
                        .bias = c.bias,
                        .dropout = c.dropout,
                        .probability_dropout = c.attention.dropout,
                        .deviation = deviation,
                        .out_deviation = out_deviation},
          .delta = c.attention.kind == AttentionKind::delta,
          .feed_forward = feed_forward,
          .experts = has_experts ? experts_shape(c, positions, feed_forward) : ExpertsShape{},
          .rms_norm = rms,
          .norm_bias = c.bias,
          .norm_epsilon = c.norm.epsilon};
}

HeadRouting head_routing(const ModelConfig& c, std::int64_t positions) {
  const HeadRoutingConfig& r = c.attention.routing;
  if (!c.routes_heads()) return {};
  return {.chosen = r.chosen,
          .always = r.always,
          .capacity = capacity_of(r.capacity, r.chosen, c.routed_heads(), positions),
          .balance_factor = balance_factor(r.balance_weight, r.chosen, c.routed_heads(), positions)};
}

VocabularyTable token_table(const ModelConfig& c) {
  return {.name = "embedding.token.weight",
          .vocabulary = c.vocabulary,
          .width = c.width,
          .deviation = static_cast<float>(c.initial_deviation)};
}

LearnedPositions learned_positions(const ModelConfig& c, std::int64_t positions) {
  switch (c.attention.position) {
    case Position::learned:
      return {.count = positions};
    case Position::learned_2d:
      return {.count = positions, .grid = grid_of(c)};
    case Position::rotary:
    case Position::rotary_2d:
    case Position::none:
    case Position::alibi:
      return {};
  }
  std::abort();  // all values are above
}

Norm make_norm(const std::string& name, const ModelConfig& c, const TensorShare& share, ParameterStore& store) {
  return {name, c.width, c.norm.kind == NormKind::rms_norm, c.bias, c.norm.epsilon, share, store};
}

std::unique_ptr<Part> make_block(const std::string& name, const BlockShape& shape, const TensorShare& share,
                                 ParameterStore& store) {
  return std::make_unique<BlockPart>(name, shape, share, store);
}

std::unique_ptr<Part> recomputed(std::unique_ptr<Part> part) { return std::make_unique<Recomputed>(std::move(part)); }

PartSpec token_embedding_part(const ModelConfig& config) {
  return {"embedding", "embedding", token_table(config), [=](const TensorShare& share, ParameterStore& store) {
            return std::make_unique<EmbeddingPart>(config, share, store);
          }};
}

ConvolutionShape convolution_shape(const ModelConfig& c) {
  ConvolutionShape shape{
      .height = c.image.height, .width = c.image.width, .channels = c.image.channels, .bias = c.bias};
  for (std::int64_t squares = c.image.patch / 2; squares >= 1; squares /= 2)  // the last one has all channels
    shape.outputs.push_back(std::max<std::int64_t>(1, c.width / squares));
  return shape;
}

PartSpec image_stem_part(const ModelConfig& config) {
  return {"embedding", "embedding", {}, [=](const TensorShare& share, ParameterStore& store) -> std::unique_ptr<Part> {
            const VocabularyTable table = patch_table(config);
            const LearnedPositions positions = learned_positions(config, config.context);
            if (config.image.is_convolved())
              return std::make_unique<ImageStemPart<ConvolutionStem>>(ConvolutionStem(
                  convolution_shape(config), table, grid_of(config), positions, config.dropout, share, store));
            return std::make_unique<ImageStemPart<PatchEmbedding>>(
                PatchEmbedding(table, positions, config.dropout, share, store));
          }};
}

PartSpec pooled_head_part(const ModelConfig& config) {
  return {"head", "head", {}, [=](const TensorShare& share, ParameterStore& store) {
            return std::make_unique<PooledHeadPart>(config, share, store);
          }};
}

std::vector<PartSpec> block_parts(const ModelConfig& config, const kernels::Band& band, Recompute recompute) {
  std::vector<PartSpec> parts;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string name = "blocks." + std::to_string(i);
    const bool has_experts = config.has_experts(i);
    BlockShape shape = block_shape(config, band, config.context, 2 * config.layers, has_experts);
    shape.linear = config.has_linear_attention(i);
    shape.recompute = recompute;
    const auto make = [=](const TensorShare& share, ParameterStore& store) -> std::unique_ptr<Part> {
      std::unique_ptr<Part> block = make_block(name, shape, share, store);
      return recompute == Recompute::block ? recomputed(std::move(block)) : std::move(block);
    };
    const std::string kind = shape.linear ? "block of linear attention" : "block";
    parts.push_back({name, has_experts ? kind + " with experts" : kind, {}, make});
  }
  return parts;
}

PartSpec token_head_part(const ModelConfig& config) {
  return {"head", "head", HeadPart::head_table(config), [=](const TensorShare& share, ParameterStore& store) {
            return std::make_unique<HeadPart>(config, share, store);
          }};
}

std::vector<PartSpec> text_parts(const ModelConfig& config, const kernels::Band& band, Recompute recompute) {
  std::vector<PartSpec> parts{token_embedding_part(config)};
  for (PartSpec& block : block_parts(config, band, recompute)) parts.push_back(std::move(block));
  parts.push_back(token_head_part(config));
  return parts;
}

}  // namespace choir
