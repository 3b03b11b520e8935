// The model. Nothing here depends on where it is computed.
#pragma once

#include <array>
#include <cstdint>

#include "framework/core/names.h"
#include "framework/nn/sources.h"

namespace choir {

enum class ModelFamily { decoder, encoder, encoder_decoder, classifier, vision };
template <>
inline constexpr auto names<ModelFamily> = std::array{"decoder", "encoder", "encoder_decoder", "classifier", "vision"};

/// How a token knows its position. learned_2d, rotary_2d: a square of an image, by its row and its column.
enum class Position { learned, rotary, none, alibi, learned_2d, rotary_2d };
template <>
inline constexpr auto names<Position> = std::array{"learned", "rotary", "none", "alibi", "learned_2d", "rotary_2d"};

constexpr bool is_rotary(Position position) { return position == Position::rotary || position == Position::rotary_2d; }
constexpr bool is_2d(Position position) { return position == Position::learned_2d || position == Position::rotary_2d; }

/// What a sequence of several documents is. separate: a token sees its own document, and positions begin again there.
enum class DocumentBorders { joined, separate };
template <>
inline constexpr auto names<DocumentBorders> = std::array{"joined", "separate"};

/// softmax: a token weighs the keys that it sees. linear: gated linear attention, a state that tokens decay and read.
/// delta: the same, and a token takes out of the state what stood at its key.
enum class AttentionKind { softmax, linear, delta };
template <>
inline constexpr auto names<AttentionKind> = std::array{"softmax", "linear", "delta"};

enum class FeedForwardKind { gelu, gelu_erf, swiglu };
template <>
inline constexpr auto names<FeedForwardKind> = std::array{"gelu", "gelu_erf", "swiglu"};

enum class NormKind { layer_norm, rms_norm };
template <>
inline constexpr auto names<NormKind> = std::array{"layer_norm", "rms_norm"};

/// Of the heads of attention, each token has those that are always on and chooses some of the others.
struct HeadRoutingConfig {
  std::int64_t chosen = 0;  ///< by each token; 0: it has all heads
  std::int64_t always = 0;  ///< heads that every token has besides
  double capacity = 1.25;   ///< of a head and sequence, times chosen * context / (heads - always) tokens; 0: no limit
  double balance_weight = 0.01;  ///< of the balance loss

  bool operator==(const HeadRoutingConfig&) const = default;
};

struct AttentionConfig {
  AttentionKind kind = AttentionKind::softmax;
  std::int64_t softmax_every = 0;  ///< n: blocks n - 1, 2 n - 1, ... of a linear model have softmax; 0: none
  std::int64_t heads = 12;
  std::int64_t kv_heads = 0;    ///< 0: as many as heads
  std::int64_t head_width = 0;  ///< 0: width / heads
  Position position = Position::learned;
  double rotary_base = 10000;
  std::int64_t window = 0;  ///< w: a decoder's token sees the last w tokens, an encoder's w - 1 on either side; 0: all
  double soft_cap = 0;      ///< of scores; 0: none
  bool norm = false;        ///< RMS norms of q and k, head by head
  DocumentBorders documents = DocumentBorders::joined;
  std::int64_t prefix = 0;  ///< so many first tokens of a decoder's sequence see each other, and are no targets
  bool sinks = false;       ///< each head has a learned logit beside its scores
  double dropout = 0;       ///< of probabilities
  HeadRoutingConfig routing;
  Sources sources;          ///< of the second attention of an encoder-decoder's decoder

  bool operator==(const AttentionConfig&) const = default;
};

struct FeedForwardConfig {
  FeedForwardKind kind = FeedForwardKind::gelu;
  std::int64_t width = 0;  ///< 0: 4 * model width

  bool operator==(const FeedForwardConfig&) const = default;
};

/// The scores of experts: softmax over those chosen, or sigmoids divided by their sum.
enum class ExpertScoreKind { softmax, sigmoid };
template <>
inline constexpr auto names<ExpertScoreKind> = std::array{"softmax", "sigmoid"};

/// What makes the router use all experts.
enum class ExpertBalance { loss, bias, none };
template <>
inline constexpr auto names<ExpertBalance> = std::array{"loss", "bias", "none"};

struct ExpertsConfig {
  std::int64_t count = 0;   ///< 0: no block has experts
  std::int64_t chosen = 2;  ///< by each token
  double capacity = 1.25;   ///< of an expert and sequence, times chosen * context / count tokens; 0: no limit
  std::int64_t shared = 0;  ///< experts that every token uses besides
  ExpertScoreKind score = ExpertScoreKind::softmax;
  ExpertBalance balance = ExpertBalance::loss;
  double balance_weight = 0.01;  ///< of the balance loss
  double bias_step = 0.001;      ///< by which a step of training moves the bias of each expert
  std::int64_t every = 1;        ///< n: blocks n - 1, 2 n - 1, ... have experts

  bool operator==(const ExpertsConfig&) const = default;
};

struct NormConfig {
  NormKind kind = NormKind::layer_norm;
  double epsilon = 1e-5;

  bool operator==(const NormConfig&) const = default;
};

/// How the pixels of a square become the row of its position. patch: one product. convolution: convolutions of 3 x 3
/// that each halve height and width, until a square is one pixel.
enum class Stem { patch, convolution };
template <>
inline constexpr auto names<Stem> = std::array{"patch", "convolution"};

/// The images that a model reads: cut into squares, each of which is a position of the sequence.
struct ImageConfig {
  std::int64_t height = 28, width = 28;  ///< in pixels
  std::int64_t channels = 1;             ///< values of a pixel: 1 grey, 3 red, green and blue
  std::int64_t patch = 4;                ///< pixels of a side of a square
  Stem stem = Stem::patch;

  std::int64_t rows() const { return height / patch; }
  std::int64_t columns() const { return width / patch; }
  bool is_convolved() const { return stem == Stem::convolution; }
  /// Values of a row of what the stem reads: a pixel, or a square.
  std::int64_t features() const { return is_convolved() ? channels : channels * patch * patch; }

  bool operator==(const ImageConfig&) const = default;
};

/// What a model of whole sequences reads at its end: the mean over the positions, or the first position, which then
/// stands for no part of the input.
enum class Pool { mean, class_token };
template <>
inline constexpr auto names<Pool> = std::array{"mean", "class_token"};

struct ModelConfig {
  ModelFamily family = ModelFamily::decoder;
  std::int64_t layers = 12;
  std::int64_t width = 768;
  std::int64_t vocabulary = 50257;
  std::int64_t context = 1024;      ///< tokens in a training sequence; the most positions
  std::int64_t encoder_layers = 0;  ///< blocks of an encoder-decoder's encoder; 0: as many as layers
  std::int64_t source_context = 0;  ///< tokens that an encoder-decoder's encoder reads; 0: as many as context
  bool tied = true;                 ///< the output head is the transposed token embedding
  bool bias = true;                 ///< biases in linear layers and in layer norm
  double dropout = 0;               ///< on embeddings and residual branches
  double initial_deviation = 0.02;  ///< of weights; residual outputs get it / sqrt(their number)
  AttentionConfig attention;
  FeedForwardConfig feed_forward;
  ExpertsConfig experts;
  NormConfig norm;
  ImageConfig image;          ///< of a vision model
  std::int64_t classes = 10;  ///< that a classifier or a vision model tells apart
  Pool pool = Pool::mean;

  /// True if one class of the whole sequence is the target, not a token at each position.
  bool is_classifier() const { return family == ModelFamily::classifier || family == ModelFamily::vision; }
  /// Rows of the output head.
  std::int64_t outputs() const { return is_classifier() ? classes : vocabulary; }
  std::int64_t targets_of_sequence() const { return is_classifier() ? 1 : context; }
  /// True if an encoder reads another sequence than the one whose tokens are the targets.
  bool has_source() const { return family == ModelFamily::encoder_decoder; }
  std::int64_t encoder_blocks() const { return !has_source() ? 0 : encoder_layers > 0 ? encoder_layers : layers; }
  /// Positions of a whole source; 0: there is none.
  std::int64_t source_length() const { return !has_source() ? 0 : source_context > 0 ? source_context : context; }
  /// True if a token sees only a part of its sequence: its document, or the text without what fills the sequence up.
  bool separates_documents() const {
    return attention.documents == DocumentBorders::separate || family == ModelFamily::classifier;
  }
  /// Rows of what the stem reads of an image: its pixels, or its squares and the class token.
  std::int64_t image_rows() const { return image.is_convolved() ? image.height * image.width : context; }
  /// Positions of an image.
  std::int64_t image_positions() const { return image.rows() * image.columns() + (pool == Pool::class_token ? 1 : 0); }

  /// Ids of text are [0, text_vocabulary()). The last id of an encoder is its mask token.
  std::int64_t text_vocabulary() const { return vocabulary - (family == ModelFamily::encoder ? 1 : 0); }
  std::int64_t kv_heads() const { return attention.kv_heads > 0 ? attention.kv_heads : attention.heads; }
  std::int64_t head_width() const { return attention.head_width > 0 ? attention.head_width : width / attention.heads; }
  std::int64_t feed_forward_width() const { return feed_forward.width > 0 ? feed_forward.width : 4 * width; }

  bool routes_heads() const { return attention.routing.chosen > 0; }
  /// Heads of which a token chooses some.
  std::int64_t routed_heads() const { return routes_heads() ? attention.heads - attention.routing.always : 0; }
  /// Heads that compute a token.
  std::int64_t heads_of_token() const {
    return routes_heads() ? attention.routing.always + attention.routing.chosen : attention.heads;
  }
  bool has_linear_attention(std::int64_t block) const {
    const std::int64_t every = attention.softmax_every;
    return attention.kind != AttentionKind::softmax && (every == 0 || (block + 1) % every != 0);
  }
  std::int64_t blocks_with_linear_attention() const {
    if (attention.kind == AttentionKind::softmax) return 0;
    return layers - (attention.softmax_every > 0 ? layers / attention.softmax_every : 0);
  }
  bool has_experts(std::int64_t block) const { return experts.count > 0 && (block + 1) % experts.every == 0; }
  std::int64_t blocks_with_experts() const { return experts.count > 0 ? layers / experts.every : 0; }

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace choir
