#include "framework/train/attention_stacks.h"

#include "framework/model/families.h"

namespace choir {

std::vector<AttentionStack> attention_stacks(const ModelConfig& model) {
  AttentionStack own{.name = "layer",
                     .before = "blocks.",
                     .after = ".attention",
                     .layers = model.layers,
                     .band = attention_band(model),
                     .score = attention_score(model)};
  if (!model.has_source()) return {own};
  own.name = "decoder";
  AttentionStack encoder = own, cross = own;
  encoder.name = "encoder";
  encoder.before = "encoder.blocks.";
  encoder.layers = model.encoder_blocks();
  encoder.rows = encoder.keys = encoder.columns = TokenStream::source;
  encoder.band = source_band(model);
  encoder.texts = source_texts(model);
  AttentionStack second = encoder;
  second.name = "second_source";
  second.rows = second.keys = second.columns = TokenStream::second_source;
  second.text = 1;
  cross.name = "cross";
  cross.after = ".cross_attention";
  cross.keys = model.attention.sources.keys;
  cross.columns = model.attention.sources.values;
  cross.compares_positions = model.attention.sources.are_aligned();
  if (!cross.compares_positions) {
    cross.band = kernels::full_band();
    cross.score.alibi_heads = 0;
  }
  if (source_texts(model) == 2) return {encoder, second, own, cross};
  return {encoder, own, cross};
}

std::int64_t attention_layers(const ModelConfig& model) {
  return (model.has_source() ? 2 : 1) * model.layers + source_texts(model) * model.encoder_blocks();
}

}  // namespace choir
