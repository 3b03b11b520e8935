// The place of the tokens, and how text becomes tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "framework/core/names.h"

namespace choir {

enum class TokenizerKind { bytes, sentencepiece };
template <>
inline constexpr auto names<TokenizerKind> = std::array{"bytes", "sentencepiece"};

struct TokenizerConfig {
  TokenizerKind kind = TokenizerKind::sentencepiece;
  std::int64_t vocabulary = 0;          ///< tokens to train; 0: model.vocabulary. bytes: always 257
  std::string model;                    ///< names a given tokenizer: of a SentencePiece model, a token file, a
                                        ///< checkpoint or a run; empty: train one on the corpus
  std::int64_t sample_bytes = 8 << 20;  ///< how much of the corpus the tokenizer is trained on, at most

  bool operator==(const TokenizerConfig&) const = default;
};

/// What an encoder learns from (data/masking.h). The values are BERT's.
struct MaskedConfig {
  double share = 0.15;      ///< of the tokens: these are the targets
  double mask_token = 0.8;  ///< of the targets: the encoder reads the mask token
  double random_token =
      0.1;  ///< of the targets: it reads another token, drawn at random; it reads the others as they are

  bool operator==(const MaskedConfig&) const = default;
};

/// How the images of training are changed, each sample by numbers drawn from its own range: uniform, and about the
/// image's middle. Held-out images stay as they are.
struct AugmentConfig {
  double shift = 0;     ///< pixels, at most, along each axis
  double rotate = 0;    ///< degrees, at most, either way
  double scale = 0;     ///< larger or smaller by this share, at most
  bool mirror = false;  ///< every second one is mirrored, left to right

  bool operator==(const AugmentConfig&) const = default;
};

struct DataConfig {
  std::string path;           ///< the token or image file (HDF5) that `choir prepare` writes and training reads
  double held_out = 0.05;     ///< share of the text or images, at the end, kept for evaluation
  TokenizerConfig tokenizer;  ///< for `choir prepare`
  MaskedConfig masked;        ///< for encoders
  AugmentConfig augment;      ///< for vision models

  bool operator==(const DataConfig&) const = default;
};

}  // namespace choir
