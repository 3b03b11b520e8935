#include "framework/model/families.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "framework/model/parts.h"
#include "framework/model/stage.h"
#include "kernels/band.h"
#include "kernels/delta_attention.h"

namespace choir {

std::vector<PartSpec> make_parts(const ModelConfig& config, Recompute recompute) {
  switch (config.family) {
    case ModelFamily::decoder:
      return decoder_parts(config, recompute);
    case ModelFamily::encoder:
      return encoder_parts(config, recompute);
    case ModelFamily::encoder_decoder:
      return encoder_decoder_parts(config, recompute);
    case ModelFamily::classifier:
      return classifier_parts(config, recompute);
    case ModelFamily::vision:
      return vision_parts(config, recompute);
  }
  std::abort();  // all values are above
}

std::int64_t num_parts(const ModelConfig& config) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 2 - 3;
  // Blocks, embedding and head; of an encoder-decoder also the norm of the encoder.
  return std::min(config.layers, most) + std::min(config.encoder_blocks(), most) + (config.has_source() ? 3 : 2);
}

kernels::Band attention_band(const ModelConfig& config) {
  switch (config.family) {
    case ModelFamily::decoder:
    case ModelFamily::encoder_decoder:
      return decoder_band(config);
    case ModelFamily::encoder:
    case ModelFamily::classifier:
      return encoder_band(config);
    case ModelFamily::vision:
      return vision_band(config);
  }
  std::abort();  // all values are above
}

kernels::Score attention_score(const ModelConfig& c) {
  return {.soft_cap = c.attention.soft_cap,
          .alibi_heads = c.attention.position == Position::alibi ? c.attention.heads : 0};
}

std::int64_t source_texts(const ModelConfig& c) { return c.attention.sources.read(TokenStream::second_source) ? 2 : 1; }

ParameterStore all_parameters(const ModelConfig& config) {
  ParameterStore store;
  const Stage whole(make_parts(config, Recompute::none), {}, store);
  return store;
}

double model_flops(const ModelConfig& c, std::int64_t sequences) {
  const auto d = [](std::int64_t x) { return static_cast<double>(x); };
  const double gates = c.feed_forward.kind == FeedForwardKind::swiglu ? 3 : 2;
  const double feed_forward = gates * d(c.width) * d(c.feed_forward_width());
  const double queries = d(c.width) * d(c.head_width()) * 2 * d(c.attention.heads);  // with their outputs
  const double keys = d(c.width) * d(c.head_width()) * 2 * d(c.kv_heads());          // with values
  const double block = queries + keys + d(c.routed_heads() * c.width) + feed_forward;
  const double with_experts = d(c.experts.chosen + c.experts.shared - 1) * feed_forward + d(c.experts.count * c.width);
  // A lookup of tokens is no product.
  double stem = 0;
  if (c.family == ModelFamily::vision && c.image.is_convolved()) {
    const ConvolutionShape convolutions = convolution_shape(c);
    stem = convolutions.products() + d(c.context * convolutions.outputs.back() * c.width);
  } else if (c.family == ModelFamily::vision) {
    stem = d(c.context * c.image.features() * c.width);
  }
  const double parameters = d(c.layers) * block + d(c.blocks_with_experts()) * with_experts;
  const double head = d(c.outputs()) * d(c.width) * d(c.targets_of_sequence());
  const std::int64_t texts = source_texts(c);
  const std::int64_t with_experts_in_encoder = c.experts.count > 0 ? c.encoder_blocks() / c.experts.every : 0;
  const double of_encoder = d(c.encoder_blocks()) * block + d(with_experts_in_encoder) * with_experts;
  const double of_source = d(texts) * of_encoder + (c.has_source() ? d(c.layers) * keys : 0);
  const double of_queries = c.has_source() ? d(c.layers) * queries : 0;
  const auto pairs = [&](const kernels::Band& band, std::int64_t q_length, std::int64_t kv_length) {
    return d(kernels::VisiblePairs<std::int64_t>(band, q_length, kv_length).count());
  };
  const std::int64_t source = c.source_length();
  const std::int64_t linear = c.blocks_with_linear_attention();
  std::int64_t linear_of_source = 0;
  for (std::int64_t i = 0; i < c.encoder_blocks(); ++i) linear_of_source += c.has_linear_attention(i) ? texts : 0;
  double seen = d(c.layers - linear) * pairs(attention_band(c), c.context, c.context), seen_across = 0;
  if (c.has_source()) {
    const kernels::Band across = c.attention.sources.are_aligned() ? attention_band(c) : kernels::full_band();
    seen += d(texts * c.encoder_blocks() - linear_of_source) * pairs(source_band(c), source, source);
    seen_across = d(c.layers) * pairs(across, c.context, source);
  }
  const bool delta = c.attention.kind == AttentionKind::delta;
  const double of_gates =
      (delta ? 2 : 1) * d(c.attention.heads * c.width) * (d(linear * c.context) + d(linear_of_source * source));
  const auto states_of = [&](std::int64_t length, const kernels::Band& band) {  // a second state sees the other side
    const kernels::LinearAttentionShape of_heads{
        .batch = 1, .length = length, .heads = c.attention.heads, .head_width = c.head_width()};
    return (band.last > 0 ? 2 : 1) *
           (delta ? kernels::delta_attention_flops(of_heads).forward : kernels::linear_attention_flops(of_heads));
  };
  const double states =
      d(linear) * states_of(c.context, attention_band(c)) + d(linear_of_source) * states_of(source, source_band(c));
  const double products = (parameters + of_queries) * d(c.context) + of_source * d(source) + stem + head + of_gates;
  const double in_heads = seen * d(c.heads_of_token()) + seen_across * d(c.attention.heads);
  return d(sequences) * (6 * products + 3 * 4 * in_heads * d(c.head_width()) + 3 * states);
}

}  // namespace choir
