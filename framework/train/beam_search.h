// Search for a likely text: of all texts of n tokens, the `beam` likeliest found so far are made one token longer.
//
//   score of a text = the sum of the log-probabilities of its tokens, its end included, divided by their number
//
// With a beam of 1 it takes the likeliest token each time. Only some tokens are considered, and probabilities are those
// among them. Of equally likely texts, the one of the earlier text, then of the lower token, comes first.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace choir {

/// A text of the beam, one token longer.
struct Extension {
  std::int64_t parent = 0;  ///< its place among the texts of the call before; 0 in the first call
  std::int32_t token = 0;
};

/// The logits [V] of the token after each of these texts, which are now those of the beam.
using NextLogits = std::function<std::vector<std::vector<float>>(const std::vector<Extension>&)>;

struct BeamSearch {
  std::int64_t beam = 4;
  std::int64_t most = 1;                    ///< tokens, the end included
  std::int32_t begin = 0, end = 0;          ///< tokens
  std::span<const std::int32_t> choices{};  ///< tokens, the end among them; ascending
};

/// The best text found, without `begin` and `end`: of those that have ended, or have `most` tokens. The search is over
/// when `beam` texts have ended. Throws Error if a logit of a choice is not finite.
std::vector<std::int32_t> beam_search(const BeamSearch&, const NextLogits&);

}  // namespace choir
