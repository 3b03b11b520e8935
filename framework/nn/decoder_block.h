// A block of a decoder that reads an encoder's output, the memory, norms first:
//
//   h = x + attention(norm(x)), of one kind or the other
//   g = h + cross_attention(norm(h), memory)            which streams it reads: nn/sources.h
//   y = g + feed_forward(norm(g)), or a layer of experts in its place
#pragma once

#include <string>
#include <variant>

#include "framework/nn/block.h"
#include "framework/nn/cross_attention.h"

namespace choir {

class DecoderBlock {
 public:
  /// Everything backward reads for one micro-batch.
  struct Saved {
    Norm::Saved attention_norm, cross_attention_norm, feed_forward_norm;
    SelfAttentionSaved attention;
    CrossAttention::Saved cross_attention;
    std::variant<FeedForward::Saved, Experts::Saved> feed_forward;
  };

  DecoderBlock(const std::string& name, const BlockShape&, const Sources&, const TensorShare&, ParameterStore&);

  /// x [rows held, D], memory [rows of the source held, D] -> y [rows held, D]
  Tensor forward(const Tensor& x, const Tensor& memory, Saved&, Context&) const;
  CrossAttention::Gradients backward(const Tensor& dy, const Saved&, Context&) const;

  KeyValueCache make_cache(std::int64_t positions, std::int64_t source_positions, Runtime&) const;

 private:
  Norm attention_norm_;
  SelfAttention attention_;
  Norm cross_attention_norm_;
  CrossAttention cross_attention_;
  Norm feed_forward_norm_;
  std::variant<FeedForward, Experts> feed_forward_;
  Recompute recompute_;
};

}  // namespace choir
