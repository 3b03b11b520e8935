#include "framework/nn/block.h"

namespace choir {
namespace {

std::variant<FeedForward, Experts> make_feed_forward(const std::string& name, const BlockShape& s,
                                                     const TensorShare& share, ParameterStore& store) {
  if (s.experts.count > 0) return Experts(name, s.experts, share, store);
  return FeedForward(name, s.feed_forward, share, store);
}

}  // namespace

Block::Block(const std::string& name, const BlockShape& s, const TensorShare& share, ParameterStore& store)
    : attention_norm_(name + ".attention_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                      store),
      attention_(name + ".attention", s.attention, share, store),
      feed_forward_norm_(name + ".feed_forward_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                         store),
      feed_forward_(make_feed_forward(name + ".feed_forward", s, share, store)) {}

Tensor Block::forward(const Tensor& x, Saved& saved, Context& context) const {
  const Tensor h =
      attention_.forward(attention_norm_.forward(x, saved.attention_norm, context), x, saved.attention, context);
  const Tensor normed = feed_forward_norm_.forward(h, saved.feed_forward_norm, context);
  return std::visit(
      [&]<class Layer>(const Layer& layer) {
        return layer.forward(normed, h, saved.feed_forward.emplace<typename Layer::Saved>(), context);
      },
      feed_forward_);
}

Tensor Block::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  const auto feed_forward_backward = [&]<class Layer>(const Layer& layer) {
    return layer.backward(dy, std::get<typename Layer::Saved>(saved.feed_forward), context);
  };
  const Tensor dh = feed_forward_norm_.backward(std::visit(feed_forward_backward, feed_forward_), dy,
                                                saved.feed_forward_norm, context);
  return attention_norm_.backward(attention_.backward(dh, saved.attention, context), dh, saved.attention_norm, context);
}

KeyValueCache Block::make_cache(std::int64_t positions, Runtime& runtime) const {
  KeyValueCache cache = attention_.make_cache(positions, runtime);
  if (const auto* experts = std::get_if<Experts>(&feed_forward_)) cache.choices = experts->make_cache(runtime);
  return cache;
}

}  // namespace choir
