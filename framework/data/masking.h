// Masked tokens: what an encoder learns from. Some of the tokens of a text are its targets; most of these are hidden
// from it.
//
//   a token is a target with probability `share`; of the targets, a share of mask_token is read as the mask token, one of
//   random_token as a token drawn at random, and the rest as they are
//
// Devlin et al. 2018, arXiv 1810.04805, with 0.15, 0.8 and 0.1. The random numbers are functions of (key, sample,
// position), so that no layout and no batch size changes them.
#pragma once

#include <cstdint>
#include <span>

#include "framework/data/data_config.h"

namespace choir {

struct Masking {
  MaskedConfig shares;
  std::uint64_t key = 0;
  std::int32_t mask_token = 0;
  std::int64_t text_vocabulary = 1;  ///< random tokens are smaller
};

/// Makes sample `sample` of the sampler one of masked tokens. Before: `targets` [T] is the text, -1 behind its end,
/// where `inputs` [T] has what fills it up. After: both are of the same positions, and targets are -1 except for those
/// that are to be found. A sample with text has at least one target.
void mask_tokens(const Masking&, std::int64_t sample, std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

}  // namespace choir
