#include "framework/nn/block.h"

namespace choir {

Block::Block(const std::string& name, const BlockShape& s, const TensorShare& share, ParameterStore& store)
    : attention_norm_(name + ".attention_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                      store),
      attention_(name + ".attention", s.attention, share, store),
      feed_forward_norm_(name + ".feed_forward_norm", s.attention.width, s.rms_norm, s.norm_bias, s.norm_epsilon, share,
                         store),
      feed_forward_(name + ".feed_forward", s.feed_forward, share, store) {}

Tensor Block::forward(const Tensor& x, Saved& saved, Context& context) const {
  const Tensor h =
      attention_.forward(attention_norm_.forward(x, saved.attention_norm, context), x, saved.attention, context);
  return feed_forward_.forward(feed_forward_norm_.forward(h, saved.feed_forward_norm, context), h, saved.feed_forward,
                               context);
}

Tensor Block::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  const Tensor dh = feed_forward_norm_.backward(feed_forward_.backward(dy, saved.feed_forward, context), dy,
                                                saved.feed_forward_norm, context);
  return attention_norm_.backward(attention_.backward(dh, saved.attention, context), dh, saved.attention_norm, context);
}

}  // namespace choir
