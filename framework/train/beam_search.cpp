#include "framework/train/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "framework/core/error.h"

namespace choir {
namespace {

struct Text {
  std::vector<std::int32_t> tokens;
  double sum = 0;  // of log-probabilities
};

struct Candidate {
  std::int64_t parent;
  std::int32_t token;
  double sum;
};

/// Adds the texts that are `text` and one of the choices.
void add_longer(const BeamSearch& search, std::int64_t parent, double sum, std::span<const float> logits,
                std::vector<Candidate>& candidates) {
  const auto logit = [&](std::int32_t token) { return static_cast<double>(logits[static_cast<std::size_t>(token)]); };
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (const std::int32_t token : search.choices) {
    if (!std::isfinite(logit(token)))
      throw Error({.what = "the model's logits are not finite",
                   .why = "its values, or the sums that they give, have overflowed",
                   .fix = "use a checkpoint from before the run diverged (metrics.jsonl has the losses)"});
    largest = std::max(largest, logit(token));
  }
  for (const std::int32_t token : search.choices) total += std::exp(logit(token) - largest);
  for (const std::int32_t token : search.choices)
    candidates.push_back({parent, token, sum + logit(token) - largest - std::log(total)});
}

}  // namespace

std::vector<std::int32_t> beam_search(const BeamSearch& search, const NextLogits& next) {
  std::vector<Text> live{{}};
  std::vector<Extension> extensions{{.parent = 0, .token = search.begin}};
  std::vector<std::int32_t> best;
  double best_score = -std::numeric_limits<double>::infinity();
  const auto offer = [&](const std::vector<std::int32_t>& tokens, double score) {
    if (score <= best_score) return;
    best = tokens;
    best_score = score;
  };
  std::int64_t ended = 0;
  for (std::int64_t length = 1; length <= search.most && !live.empty() && ended < search.beam; ++length) {
    const std::vector<std::vector<float>> logits = next(extensions);
    std::vector<Candidate> candidates;
    for (std::size_t i = 0; i < live.size(); ++i)
      add_longer(search, static_cast<std::int64_t>(i), live[i].sum, logits[i], candidates);
    const auto likelier = [](const Candidate& a, const Candidate& b) {
      return a.sum != b.sum ? a.sum > b.sum : a.parent != b.parent ? a.parent < b.parent : a.token < b.token;
    };
    // At most `beam` of them end, one for each text, so that as many go on.
    const std::int64_t kept = std::min(2 * search.beam, std::ssize(candidates));
    std::partial_sort(candidates.begin(), candidates.begin() + kept, candidates.end(), likelier);
    std::vector<Text> longer;
    extensions.clear();
    for (std::int64_t place = 0; place < kept && std::ssize(longer) < search.beam; ++place) {
      const auto [parent, token, sum] = candidates[static_cast<std::size_t>(place)];
      const std::vector<std::int32_t>& tokens = live[static_cast<std::size_t>(parent)].tokens;
      if (token == search.end) {
        if (place >= search.beam) continue;
        offer(tokens, sum / static_cast<double>(length));
        ++ended;
        continue;
      }
      extensions.push_back({parent, token});
      longer.push_back({tokens, sum});
      longer.back().tokens.push_back(token);
      if (length == search.most) offer(longer.back().tokens, sum / static_cast<double>(length));
    }
    live = std::move(longer);
  }
  return best;
}

}  // namespace choir
