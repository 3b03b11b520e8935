#include "framework/model/decoder.h"

#include <cmath>
#include <cstdlib>

#include "framework/core/error.h"

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

/// How many positions the learned embedding and the rotary table have; 0: not used.
struct TablePositions {
  std::int64_t learned = 0, rotary = 0;
};
TablePositions table_positions(const ModelConfig& c) {
  switch (c.attention.position) {
    case Position::learned:
      return {.learned = c.context};
    case Position::rotary:
      return {.rotary = c.context};
    case Position::none:
      return {};
  }
  std::abort();  // all values are above
}

BlockShape block_shape(const ModelConfig& c) {
  const auto deviation = static_cast<float>(c.initial_deviation);
  // The outputs of the 2 L residual branches are added, so each starts smaller: the sum does not grow with depth
  // (GPT-2).
  const auto out_deviation = static_cast<float>(c.initial_deviation / std::sqrt(2.0 * static_cast<double>(c.layers)));
  const bool rms = c.norm.kind == NormKind::rms_norm;
  return {.attention = {.width = c.width,
                        .heads = c.attention.heads,
                        .kv_heads = c.kv_heads(),
                        .head_width = c.head_width(),
                        .window = c.attention.window,
                        .rotary_positions = table_positions(c).rotary,
                        .rotary_base = c.attention.rotary_base,
                        .bias = c.bias,
                        .dropout = c.dropout,
                        .deviation = deviation,
                        .out_deviation = out_deviation},
          .feed_forward = {.width = c.width,
                           .hidden = c.feed_forward_width(),
                           .activation = activation_of(c.feed_forward.kind),
                           .bias = c.bias,
                           .dropout = c.dropout,
                           .deviation = deviation,
                           .down_deviation = out_deviation},
          .rms_norm = rms,
          .norm_bias = c.bias,
          .norm_epsilon = c.norm.epsilon};
}

ParameterStore& with_group(ParameterStore& store) {
  store.begin_group();
  return store;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const TensorShare& share, bool recompute, ParameterStore& store)
    : recompute_(recompute),
      embedding_(config.vocabulary, config.width, table_positions(config).learned, config.dropout,
                 static_cast<float>(config.initial_deviation), share, with_group(store)) {
  const BlockShape shape = block_shape(config);
  for (std::int64_t i = 0; i < config.layers; ++i)
    blocks_.emplace_back("blocks." + std::to_string(i), shape, share, with_group(store));
  final_norm_.emplace_back("final_norm", config.width, shape.rms_norm, shape.norm_bias, shape.norm_epsilon, share,
                           with_group(store));
  head_.emplace_back(config.vocabulary, config.width, static_cast<float>(config.initial_deviation),
                     config.tied ? embedding_.table() : nullptr, share, store);
}

void Decoder::forward(const Tensor& ids, const Tensor& targets, const Tensor& loss_sum, double scale, bool gradient,
                      Saved& saved, Context& context) const {
  const bool keep_blocks = gradient && !recompute_;
  Tensor x = embedding_.forward(ids, saved.embedding, context);
  if (keep_blocks) saved.blocks.resize(blocks_.size());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (gradient && recompute_) saved.inputs.push_back(keep(x));
    Block::Saved dropped;  // without backward, or with recompute, it is freed after this block
    x = blocks_[i].forward(x, keep_blocks ? saved.blocks[i] : dropped, context);
  }
  x = final_norm_[0].forward(x, saved.final_norm, context);
  saved.dx = head_[0].loss(x, targets, loss_sum, scale, gradient, context);
  if (gradient) keep(saved.dx);
}

void Decoder::backward(Saved& saved, Context& context, const std::function<void(int)>& group_final) const {
  const auto groups = static_cast<int>(blocks_.size()) + 2;
  Tensor dx = final_norm_[0].backward(saved.dx, {}, saved.final_norm, context);
  saved.dx = {};
  saved.final_norm = {};
  group_final(groups - 1);
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    if (recompute_) {
      Block::Saved again;
      blocks_[i].forward(saved.inputs[i], again, context);
      saved.inputs.pop_back();
      dx = blocks_[i].backward(dx, again, context);
    } else {
      dx = blocks_[i].backward(dx, saved.blocks[i], context);
      saved.blocks.pop_back();
    }
    group_final(static_cast<int>(i) + 1);
  }
  embedding_.backward(dx, saved.embedding, context);
  saved.embedding = {};
  group_final(0);
}

std::vector<KeyValueCache> Decoder::make_caches(std::int64_t positions, Runtime& runtime) const {
  std::vector<KeyValueCache> caches;
  for (const Block& block : blocks_) caches.push_back(block.make_cache(positions, runtime));
  return caches;
}

Tensor Decoder::generate(const Tensor& ids, std::int64_t position, std::vector<KeyValueCache>& caches,
                         Context& context) const {
  Tensor x = embedding_.generate(ids, position, context);
  for (std::size_t i = 0; i < blocks_.size(); ++i) x = blocks_[i].generate(x, caches[i], position, context);
  Norm::Saved saved;
  x = final_norm_[0].forward(x.slice_rows(x.rows() - 1, x.rows()), saved, context);
  return head_[0].logits(x, context);
}

double model_flops(const ModelConfig& c, std::int64_t sequences) {
  const auto d = [](std::int64_t x) { return static_cast<double>(x); };
  const double gates = c.feed_forward.kind == FeedForwardKind::swiglu ? 3 : 2;
  const double block = d(c.width) * d(c.head_width()) * (2 * d(c.attention.heads) + 2 * d(c.kv_heads())) +
                       gates * d(c.width) * d(c.feed_forward_width());
  const double parameters = d(c.layers) * block + d(c.vocabulary) * d(c.width);
  // Pairs of a query and a key it may see: T (T + 1) / 2, or with a window of w the last w keys only.
  const double t = d(c.context), w = c.attention.window > 0 ? std::min(d(c.attention.window), t) : t;
  const double pairs = w * (w + 1) / 2 + (t - w) * w;
  const double attention = 3 * 4 * pairs * d(c.attention.heads) * d(c.head_width()) * d(c.layers);
  return d(sequences) * (6 * parameters * t + attention);
}

}  // namespace choir
