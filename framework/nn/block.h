// One transformer block, norms first (Xiong et al. 2020, arXiv 2002.04745):
//
//   h = x + attention(norm(x)), of one kind or the other
//   y = h + feed_forward(norm(h)), or a layer of experts in its place
#pragma once

#include <string>
#include <variant>

#include "framework/nn/attention.h"
#include "framework/nn/experts.h"
#include "framework/nn/feed_forward.h"
#include "framework/nn/linear_attention.h"
#include "framework/nn/norm.h"

namespace choir {

struct BlockShape {
  AttentionShapeConfig attention;
  bool linear = false;  ///< the attention is
  bool delta = false;   ///< by the delta rule, if it is linear
  FeedForwardShape feed_forward;
  ExpertsShape experts;  ///< count 0: the block has a feed-forward layer
  bool rms_norm = false, norm_bias = true;
  double norm_epsilon = 1e-5;
  Recompute recompute = Recompute::none;  ///< but for `block`
};

using SelfAttention = std::variant<Attention, LinearAttention>;
using SelfAttentionSaved = std::variant<Attention::Saved, LinearAttention::Saved>;
SelfAttention make_attention(const std::string& name, const BlockShape&, const TensorShare&, ParameterStore&);
/// What a block of this shape has behind its attention.
std::variant<FeedForward, Experts> make_feed_forward(const std::string& name, const BlockShape&, const TensorShare&,
                                                     ParameterStore&);

class Block {
 public:
  /// Everything backward reads for one micro-batch.
  struct Saved {
    Norm::Saved attention_norm, feed_forward_norm;
    SelfAttentionSaved attention;
    std::variant<FeedForward::Saved, Experts::Saved> feed_forward;
  };

  Block(const std::string& name, const BlockShape&, const TensorShare&, ParameterStore&);

  /// x [rows held, D] -> y [rows held, D]
  Tensor forward(const Tensor& x, Saved&, Context&) const;
  Tensor backward(const Tensor& dy, const Saved&, Context&) const;
  KeyValueCache make_cache(std::int64_t positions, Runtime& runtime) const;

 private:
  Norm attention_norm_;
  SelfAttention attention_;
  Norm feed_forward_norm_;
  std::variant<FeedForward, Experts> feed_forward_;
  Recompute recompute_;
};

}  // namespace choir
