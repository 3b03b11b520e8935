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
      feed_forward_(make_feed_forward(name + ".feed_forward", s, share, store)),
      recompute_(s.recompute) {}

Tensor DecoderBlock::forward(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  const auto attention_forward = [&](const auto& layer) {
    return forward_and_forget(recompute_, layer, saved.attention, context,
                              attention_norm_.forward(x, saved.attention_norm, context));
  };
  const ops::SumAndNorm h = cross_attention_norm_.forward_sum(x, std::visit(attention_forward, attention_),
                                                              saved.cross_attention_norm, context);
  const ops::SumAndNorm g =
      feed_forward_norm_.forward_sum(h.sum, cross_attention_.forward(h.norm, memory, saved.cross_attention, context),
                                     saved.feed_forward_norm, context);
  forget(recompute_, cross_attention_, saved.cross_attention);
  const auto feed_forward_forward = [&](const auto& layer) {
    return forward_and_forget(recompute_, layer, saved.feed_forward, context, g.norm, g.sum);
  };
  return std::visit(feed_forward_forward, feed_forward_);
}

CrossAttention::Gradients DecoderBlock::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  const auto backward_of = [&](const auto& layer, const Norm& norm, const Norm::Saved& of_norm, const auto& of_layer,
                               const Tensor& slope) {
    return layer.backward(slope, remember(recompute_, norm, of_norm, layer, of_layer, context), context);
  };
  const Tensor dfeed_forward = std::visit(
      [&]<class Layer>(const Layer& layer) {
        return backward_of(layer, feed_forward_norm_, saved.feed_forward_norm,
                           std::get<typename Layer::Saved>(saved.feed_forward), dy);
      },
      feed_forward_);
  const Tensor dg = feed_forward_norm_.backward(dfeed_forward, dy, saved.feed_forward_norm, context);
  const auto [dnormed, dmemory] =
      backward_of(cross_attention_, cross_attention_norm_, saved.cross_attention_norm, saved.cross_attention, dg);
  const Tensor dh = cross_attention_norm_.backward(dnormed, dg, saved.cross_attention_norm, context);
  const Tensor dattention = std::visit(
      [&]<class Layer>(const Layer& layer) {
        return backward_of(layer, attention_norm_, saved.attention_norm,
                           std::get<typename Layer::Saved>(saved.attention), dh);
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
