// What the model is. Nothing here says where it is computed.
#pragma once

#include <cstdint>
#include <string>

namespace choir {

struct AttentionConfig {
  std::int64_t heads = 12;
  std::int64_t kv_heads = 0;         ///< 0: as many as heads
  std::int64_t head_width = 0;       ///< 0: width / heads
  std::string position = "learned";  ///< learned | rotary | none
  double rotary_base = 10000;
  std::int64_t window = 0;  ///< 0: every earlier token is seen; w: the last w tokens

  bool operator==(const AttentionConfig&) const = default;
};

struct FeedForwardConfig {
  std::string kind = "gelu";  ///< gelu | gelu_erf | swiglu
  std::int64_t width = 0;     ///< 0: 4 * model width

  bool operator==(const FeedForwardConfig&) const = default;
};

struct NormConfig {
  std::string kind = "layer_norm";  ///< layer_norm | rms_norm
  double epsilon = 1e-5;

  bool operator==(const NormConfig&) const = default;
};

struct ModelConfig {
  std::string family = "decoder";  ///< decoder
  std::int64_t layers = 12;
  std::int64_t width = 768;
  std::int64_t vocabulary = 50257;
  std::int64_t context = 1024;      ///< tokens in a training sequence; the most positions
  bool tied = true;                 ///< the output head is the transposed token embedding
  bool bias = true;                 ///< biases in linear layers and in layer norm
  double dropout = 0;               ///< on embeddings and residual branches
  double initial_deviation = 0.02;  ///< of weights; residual outputs get it / sqrt(2 * layers)
  AttentionConfig attention;
  FeedForwardConfig feed_forward;
  NormConfig norm;

  std::int64_t kv_heads() const { return attention.kv_heads > 0 ? attention.kv_heads : attention.heads; }
  std::int64_t head_width() const { return attention.head_width > 0 ? attention.head_width : width / attention.heads; }
  std::int64_t feed_forward_width() const { return feed_forward.width > 0 ? feed_forward.width : 4 * width; }

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace choir
