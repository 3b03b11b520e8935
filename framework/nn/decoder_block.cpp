#include "framework/nn/decoder_block.h"

namespace choir {

static Norm make_norm(const std::string& name, const BlockShape& s, const TensorShare& share, ParameterStore& store) {
  return {name, s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share, store};
}

DecoderBlock::DecoderBlock(const std::string& name, const BlockShape& s, const Sources& sources,
                           const TensorShare& share, ParameterStore& store)
    : attention_norm_(make_norm(name + ".attention_norm", s, share, store)),
      attention_(make_attention(name + ".attention", s, share, store)),
      cross_attention_norm_(make_norm(name + ".cross_attention_norm", s, share, store)),
      cross_attention_(name + ".cross_attention", s.attention, sources, share, store),
      feed_forward_norm_(make_norm(name + ".feed_forward_norm", s, share, store)),
      feed_forward_(make_feed_forward(name + ".feed_forward", s, share, store)) {}

Tensor DecoderBlock::forward(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  const auto attention_forward = [&]<class Layer>(const Layer& layer) {
    const Tensor normed = attention_norm_.forward(x, saved.attention_norm, context);
    return layer.forward(normed, saved.attention.emplace<typename Layer::Saved>(), context);
  };
  const ops::SumAndNorm h = cross_attention_norm_.forward_sum(x, std::visit(attention_forward, attention_),
                                                              saved.cross_attention_norm, context);
  const ops::SumAndNorm g =
      feed_forward_norm_.forward_sum(h.sum, cross_attention_.forward(h.norm, memory, saved.cross_attention, context),
                                     saved.feed_forward_norm, context);
  return std::visit(
      [&]<class Layer>(const Layer& layer) {
        return layer.forward(g.norm, g.sum, saved.feed_forward.emplace<typename Layer::Saved>(), context);
      },
      feed_forward_);
}

CrossAttention::Gradients DecoderBlock::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  const Tensor dfeed_forward = std::visit(
      [&]<class Layer>(const Layer& layer) {
        return layer.backward(dy, std::get<typename Layer::Saved>(saved.feed_forward), context);
      },
      feed_forward_);
  const Tensor dg = feed_forward_norm_.backward(dfeed_forward, dy, saved.feed_forward_norm, context);
  const auto [dnormed, dmemory] = cross_attention_.backward(dg, saved.cross_attention, context);
  const Tensor dh = cross_attention_norm_.backward(dnormed, dg, saved.cross_attention_norm, context);
  const Tensor dattention = std::visit(
      [&]<class Layer>(const Layer& layer) {
        return layer.backward(dh, std::get<typename Layer::Saved>(saved.attention), context);
      },
      attention_);
  return {.dx = attention_norm_.backward(dattention, dh, saved.attention_norm, context), .dmemory = dmemory};
}

KeyValueCache DecoderBlock::make_cache(std::int64_t positions, std::int64_t source_positions, Runtime& runtime) const {
  KeyValueCache cache = std::visit([&](const auto& layer) { return layer.make_cache(positions, runtime); }, attention_);
  cross_attention_.add_to_cache(cache, positions, source_positions, runtime);
  if (const auto* experts = std::get_if<Experts>(&feed_forward_)) cache.choices = experts->make_cache(runtime);
  return cache;
}

}  // namespace choir
