// Small models that together use every family and option.
//
// Sizes are deliberately awkward: 5, 6 and 7 heads on 2, 3 and 4 ranks, key/value groups that ranks share, vocabularies
// and feed-forward widths that no number of ranks divides, 5 and 7 tokens in a sequence. Initial weights are large, so
// that no softmax is near uniform and no gradient near zero. A new case is one more entry.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "framework/model/model_config.h"

namespace choir::tests {

struct SmallModel {
  std::string name;
  ModelConfig config;
};

inline void PrintTo(const SmallModel& model, std::ostream* to) { *to << model.name; }

inline std::vector<SmallModel> small_models() {
  const auto base = [](std::int64_t width, std::int64_t vocabulary, std::int64_t context) {
    ModelConfig c;
    c.layers = 2;
    c.width = width;
    c.vocabulary = vocabulary;
    c.context = context;
    c.initial_deviation = 0.3;
    return c;
  };
  std::vector<SmallModel> models;

  ModelConfig gpt = base(16, 40, 7);
  gpt.attention.heads = 4;
  gpt.feed_forward.width = 44;  // 6 units of 8 columns, the last one half
  models.push_back({"gpt", gpt});

  ModelConfig five_heads = base(20, 101, 5);
  five_heads.attention.heads = 5;
  five_heads.attention.position = Position::rotary;
  five_heads.attention.rotary_base = 100;
  five_heads.feed_forward.width = 40;
  models.push_back({"five_heads", five_heads});

  ModelConfig llama = base(24, 61, 7);
  llama.attention.heads = 6;
  llama.attention.kv_heads = 2;
  llama.attention.position = Position::rotary;
  llama.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 56};
  llama.norm.kind = NormKind::rms_norm;
  llama.bias = false;
  llama.tied = false;
  models.push_back({"llama_6_of_2", llama});

  ModelConfig window = base(24, 67, 7);  // heads times head width is not the model's width
  window.attention.heads = 8;
  window.attention.kv_heads = 2;
  window.attention.head_width = 4;
  window.attention.position = Position::rotary;
  window.attention.window = 3;
  window.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  window.norm.kind = NormKind::rms_norm;
  models.push_back({"window_8_of_2", window});

  ModelConfig dropout = base(20, 59, 5);
  dropout.attention.heads = 5;
  dropout.feed_forward = {.kind = FeedForwardKind::gelu_erf, .width = 33};
  dropout.bias = false;
  dropout.tied = false;
  dropout.dropout = 0.1;
  dropout.attention.dropout = 0.25;
  models.push_back({"dropout", dropout});

  ModelConfig one_kv_head = base(21, 37, 7);
  one_kv_head.attention.heads = 7;
  one_kv_head.attention.kv_heads = 1;
  one_kv_head.attention.head_width = 7;
  one_kv_head.attention.position = Position::none;
  one_kv_head.attention.window = 4;
  one_kv_head.feed_forward.width = 33;
  one_kv_head.tied = false;
  one_kv_head.dropout = 0.1;
  models.push_back({"one_kv_head", one_kv_head});

  ModelConfig experts = base(16, 40, 7);  // some tokens find no room
  experts.attention.heads = 4;
  experts.feed_forward.width = 33;
  experts.experts = {.count = 5, .chosen = 2, .capacity = 1.1, .balance_weight = 0.1};
  models.push_back({"experts", experts});

  ModelConfig chosen_heads = base(21, 40, 7);  // some tokens find no room, and ranks begin inside a group
  chosen_heads.attention.heads = 7;
  chosen_heads.attention.kv_heads = 1;
  chosen_heads.attention.head_width = 4;
  chosen_heads.attention.position = Position::rotary;
  chosen_heads.attention.window = 4;
  chosen_heads.attention.sinks = true;
  chosen_heads.attention.routing = {.chosen = 3, .always = 1, .capacity = 1.1, .balance_weight = 0.1};
  chosen_heads.feed_forward.width = 33;
  chosen_heads.dropout = 0.1;
  models.push_back({"chosen_heads", chosen_heads});

  ModelConfig shared = base(24, 61, 7);
  shared.attention.heads = 6;
  shared.attention.kv_heads = 2;
  shared.attention.position = Position::rotary;
  shared.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  shared.experts = {.count = 6,
                    .chosen = 3,
                    .capacity = 0,
                    .shared = 1,
                    .score = ExpertScoreKind::sigmoid,
                    .balance_weight = 0.1,
                    .every = 2};
  shared.norm.kind = NormKind::rms_norm;
  shared.dropout = 0.1;
  models.push_back({"shared_experts", shared});

  ModelConfig biased = shared;
  biased.experts.capacity = 1.2;
  biased.experts.balance = ExpertBalance::bias;
  biased.experts.bias_step = 0.05;
  biased.experts.every = 1;
  models.push_back({"biased_experts", biased});

  ModelConfig scored = base(21, 43, 7);  // heads that are not a power of two, on ranks that begin inside a group
  scored.attention.heads = 7;
  scored.attention.kv_heads = 1;
  scored.attention.head_width = 4;
  scored.attention.position = Position::alibi;
  scored.attention.soft_cap = 2;
  scored.feed_forward.width = 33;
  models.push_back({"soft_cap_alibi", scored});

  ModelConfig normed = base(24, 61, 7);
  normed.attention.heads = 6;
  normed.attention.kv_heads = 2;
  normed.attention.position = Position::rotary;
  normed.attention.norm = true;
  normed.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  normed.norm.kind = NormKind::rms_norm;
  normed.tied = false;
  models.push_back({"normed_6_of_2", normed});

  ModelConfig documents = base(20, 43, 9);
  documents.attention.heads = 5;
  documents.attention.documents = DocumentBorders::separate;
  documents.feed_forward.width = 40;
  models.push_back({"documents", documents});

  ModelConfig linear = base(20, 43, 9);  // in the first of two blocks
  linear.attention.kind = AttentionKind::linear;
  linear.attention.softmax_every = 2;
  linear.attention.heads = 5;
  linear.attention.position = Position::rotary;
  linear.attention.norm = true;
  linear.attention.documents = DocumentBorders::separate;
  linear.feed_forward.width = 40;
  linear.norm.epsilon = 0.25;  // the norm of the first output of a document is smooth
  models.push_back({"linear", linear});

  ModelConfig delta = base(20, 43, 9);
  delta.attention.kind = AttentionKind::delta;
  delta.attention.heads = 5;
  delta.attention.position = Position::rotary;
  delta.attention.documents = DocumentBorders::separate;
  delta.feed_forward.width = 40;
  delta.norm.epsilon = 0.25;
  models.push_back({"delta", delta});
  ModelConfig linear_encoder = linear;  // to both sides
  linear_encoder.family = ModelFamily::encoder;
  models.push_back({"linear_encoder", linear_encoder});

  ModelConfig prefix = base(20, 43, 9);
  prefix.attention.heads = 5;
  prefix.attention.position = Position::rotary;
  prefix.attention.prefix = 2;
  prefix.attention.window = 5;
  prefix.feed_forward.width = 40;
  models.push_back({"prefix", prefix});

  ModelConfig sinks = base(21, 37, 7);
  sinks.attention.heads = 7;
  sinks.attention.kv_heads = 1;
  sinks.attention.head_width = 4;
  sinks.attention.sinks = true;
  sinks.attention.window = 3;
  sinks.feed_forward.width = 33;
  models.push_back({"sinks", sinks});

  ModelConfig encoder_documents = base(24, 61, 8);
  encoder_documents.family = ModelFamily::encoder;
  encoder_documents.attention.heads = 6;
  encoder_documents.attention.kv_heads = 2;
  encoder_documents.attention.position = Position::rotary;
  encoder_documents.attention.documents = DocumentBorders::separate;
  encoder_documents.feed_forward.width = 40;
  models.push_back({"encoder_documents", encoder_documents});

  ModelConfig encoder = base(20, 61, 7);
  encoder.family = ModelFamily::encoder;
  encoder.attention.heads = 5;
  encoder.feed_forward.width = 40;
  models.push_back({"encoder", encoder});

  ModelConfig near = base(24, 67, 7);  // each token sees two on either side
  near.family = ModelFamily::encoder;
  near.attention.heads = 6;
  near.attention.kv_heads = 2;
  near.attention.position = Position::rotary;
  near.attention.window = 3;
  near.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  near.norm.kind = NormKind::rms_norm;
  near.dropout = 0.1;
  near.attention.dropout = 0.2;
  models.push_back({"encoder_window", near});

  // Sources are of another length than the targets. One block of each kind: tests/reference has more of them.
  ModelConfig pairs = base(20, 61, 7);
  pairs.family = ModelFamily::encoder_decoder;
  pairs.layers = 1;
  pairs.source_context = 9;
  pairs.attention.heads = 5;
  pairs.feed_forward.width = 40;
  models.push_back({"pairs", pairs});

  ModelConfig llama_pairs = base(24, 61, 7);
  llama_pairs.family = ModelFamily::encoder_decoder;
  llama_pairs.layers = 1;
  llama_pairs.source_context = 5;
  llama_pairs.attention.heads = 6;
  llama_pairs.attention.kv_heads = 2;
  llama_pairs.attention.position = Position::rotary;
  llama_pairs.attention.soft_cap = 3;
  llama_pairs.attention.window = 4;
  llama_pairs.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  llama_pairs.norm.kind = NormKind::rms_norm;
  llama_pairs.tied = false;
  llama_pairs.dropout = 0.1;
  models.push_back({"llama_pairs", llama_pairs});

  ModelConfig linear_pairs = pairs;  // of two sources: tests/reference has it with one
  linear_pairs.attention.kind = AttentionKind::linear;
  linear_pairs.attention.sources = {.keys = TokenStream::source, .values = TokenStream::second_source};
  linear_pairs.norm.epsilon = 0.25;
  models.push_back({"linear_pairs", linear_pairs});

  ModelConfig delta_pairs = linear_pairs;  // to both sides, and to one
  delta_pairs.attention.kind = AttentionKind::delta;
  models.push_back({"delta_pairs", delta_pairs});

  // Some tokens see no key that has a value: those behind the end of a source and a window.
  ModelConfig aligned = base(20, 61, 7);
  aligned.family = ModelFamily::encoder_decoder;
  aligned.layers = 1;
  aligned.attention.heads = 5;
  aligned.attention.kv_heads = 1;
  aligned.attention.position = Position::alibi;
  aligned.attention.window = 3;
  aligned.attention.dropout = 0.1;
  aligned.attention.sources = {.keys = TokenStream::source, .values = TokenStream::target};
  aligned.feed_forward.width = 40;
  models.push_back({"aligned_sources", aligned});

  // Tokens of the source and of the target choose experts and heads, some of which have no room.
  ModelConfig chosen_pairs = base(20, 61, 7);
  chosen_pairs.family = ModelFamily::encoder_decoder;
  chosen_pairs.layers = 1;
  chosen_pairs.source_context = 9;
  chosen_pairs.attention.heads = 5;
  chosen_pairs.attention.kv_heads = 1;
  chosen_pairs.attention.routing = {.chosen = 2, .always = 1, .capacity = 1.1, .balance_weight = 0.1};
  chosen_pairs.feed_forward.width = 33;
  chosen_pairs.experts = {.count = 4, .chosen = 2, .capacity = 1.1, .shared = 1, .balance_weight = 0.1};
  models.push_back({"chosen_pairs", chosen_pairs});

  // Compares with one source and reads another one.
  ModelConfig two_sources = base(20, 61, 7);
  two_sources.family = ModelFamily::encoder_decoder;
  two_sources.layers = 1;
  two_sources.source_context = 5;
  two_sources.attention.heads = 5;
  two_sources.attention.kv_heads = 1;
  two_sources.attention.norm = true;
  two_sources.attention.sources = {.keys = TokenStream::second_source, .values = TokenStream::source};
  two_sources.feed_forward.width = 40;
  two_sources.dropout = 0.1;
  models.push_back({"two_sources", two_sources});

  ModelConfig classifier = base(20, 61, 7);
  classifier.family = ModelFamily::classifier;
  classifier.classes = 4;
  classifier.attention.heads = 5;
  classifier.attention.position = Position::rotary;
  classifier.feed_forward.width = 40;
  models.push_back({"classifier", classifier});

  ModelConfig linear_classifier = classifier;
  linear_classifier.attention.kind = AttentionKind::linear;
  linear_classifier.norm.epsilon = 0.25;
  models.push_back({"linear_classifier", linear_classifier});

  ModelConfig vision = base(20, 61, 6);
  vision.family = ModelFamily::vision;
  vision.image = {.height = 6, .width = 9, .channels = 2, .patch = 3};  // 18 values of a square
  vision.classes = 11;
  vision.attention.heads = 5;
  vision.feed_forward.width = 40;
  models.push_back({"vision", vision});

  ModelConfig class_token = base(24, 67, 7);
  class_token.family = ModelFamily::vision;
  class_token.image = {.height = 4, .width = 6, .channels = 1, .patch = 2};
  class_token.classes = 5;
  class_token.pool = Pool::class_token;
  class_token.attention.heads = 6;
  class_token.attention.kv_heads = 2;
  class_token.attention.position = Position::learned_2d;
  class_token.feed_forward = {.kind = FeedForwardKind::swiglu, .width = 40};
  class_token.norm.kind = NormKind::rms_norm;
  class_token.dropout = 0.1;
  models.push_back({"class_token", class_token});

  ModelConfig linear_vision = base(20, 61, 7);  // in the first of two blocks
  linear_vision.family = ModelFamily::vision;
  linear_vision.image = {.height = 6, .width = 9, .channels = 1, .patch = 3};
  linear_vision.classes = 11;
  linear_vision.pool = Pool::class_token;
  linear_vision.attention.kind = AttentionKind::linear;
  linear_vision.attention.softmax_every = 2;
  linear_vision.attention.heads = 5;
  linear_vision.attention.position = Position::rotary_2d;
  linear_vision.feed_forward.width = 40;
  linear_vision.norm.epsilon = 0.25;
  models.push_back({"linear_vision", linear_vision});

  ModelConfig convolution = base(20, 61, 7);  // channels 10 and 20
  convolution.family = ModelFamily::vision;
  convolution.image = {.height = 8, .width = 12, .channels = 2, .patch = 4, .stem = Stem::convolution};
  convolution.classes = 5;
  convolution.pool = Pool::class_token;
  convolution.attention.heads = 5;
  convolution.attention.position = Position::rotary_2d;
  convolution.feed_forward.width = 40;
  models.push_back({"convolution", convolution});
  return models;
}

/// The key of random_sample() that the tests train on.
inline constexpr std::uint64_t random_key_of_tests = 11;

inline ModelConfig small_model(const std::string& name) {
  for (const SmallModel& model : small_models())
    if (model.name == name) return model.config;
  return {};
}

}  // namespace choir::tests
