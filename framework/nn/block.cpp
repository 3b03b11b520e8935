#include "framework/nn/block.h"

namespace choir {

SelfAttention make_attention(const std::string& name, const BlockShape& s, const TensorShare& share,
                             ParameterStore& store) {
  if (s.linear) return LinearAttention(name, s.attention, s.delta, share, store);
  return Attention(name, s.attention, share, store);
}

std::variant<FeedForward, Experts> make_feed_forward(const std::string& name, const BlockShape& s,
                                                     const TensorShare& share, ParameterStore& store) {
  if (s.experts.count > 0) return Experts(name, s.experts, share, store);
  return FeedForward(name, s.feed_forward, share, store);
}

Block::Block(const std::string& name, const BlockShape& s, const TensorShare& share, ParameterStore& store)
    : attention_norm_(name + ".attention_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                      store),
      attention_(make_attention(name + ".attention", s, share, store)),
      feed_forward_norm_(name + ".feed_forward_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                         store),
      feed_forward_(make_feed_forward(name + ".feed_forward", s, share, store)),
      recompute_(s.recompute) {}

Tensor Block::forward(const Tensor& x, Saved& saved, Context& context) const {
  const auto attention_forward = [&](const auto& layer) {
    return forward_and_forget(recompute_, layer, saved.attention, context,
                              attention_norm_.forward(x, saved.attention_norm, context));
  };
  const ops::SumAndNorm h =
      feed_forward_norm_.forward_sum(x, std::visit(attention_forward, attention_), saved.feed_forward_norm, context);
  const auto feed_forward_forward = [&](const auto& layer) {
    return forward_and_forget(recompute_, layer, saved.feed_forward, context, h.norm, h.sum);
  };
  return std::visit(feed_forward_forward, feed_forward_);
}

Tensor Block::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  Tensor sum_of_dy, sum_of_dh;  // gradients of biases: the norms have the rows at hand
  const auto backward_of = [&]<class Layer>(const Layer& layer, const Norm& norm, const Norm::Saved& of_norm,
                                            const auto& of_layer, const Tensor& slope, Tensor& sum_of_slope) {
    const auto all = remember(recompute_, norm, of_norm, layer, std::get<typename Layer::Saved>(of_layer), context);
    return layer.backward(slope, all, context, &sum_of_slope);
  };
  const auto feed_forward_backward = [&](const auto& layer) {
    return backward_of(layer, feed_forward_norm_, saved.feed_forward_norm, saved.feed_forward, dy, sum_of_dy);
  };
  const Tensor dfeed_forward = std::visit(feed_forward_backward, feed_forward_);
  const Tensor dh = feed_forward_norm_.backward(dfeed_forward, dy, saved.feed_forward_norm, context, sum_of_dy);
  const auto attention_backward = [&](const auto& layer) {
    return backward_of(layer, attention_norm_, saved.attention_norm, saved.attention, dh, sum_of_dh);
  };
  const Tensor dattention = std::visit(attention_backward, attention_);
  return attention_norm_.backward(dattention, dh, saved.attention_norm, context, sum_of_dh);
}

KeyValueCache Block::make_cache(std::int64_t positions, Runtime& runtime) const {
  KeyValueCache cache = std::visit([&](const auto& layer) { return layer.make_cache(positions, runtime); }, attention_);
  if (const auto* experts = std::get_if<Experts>(&feed_forward_)) cache.choices = experts->make_cache(runtime);
  return cache;
}

}  // namespace choir
