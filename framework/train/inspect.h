// A window into the heads: what every head of a model reads in a few sequences.
//
// A step computes the sequences with the run's own kernels, in the run's layout. From what attention has computed there
// (AttentionRecord: q, k and the log-sum-exp) each rank computes the probabilities of its heads again
// (kernels/attention_map.h), and all ranks put the results together.
//
// Means over the queries i of a sequence, of p[i, j] and the sink s[i] (0 without sinks). If tokens choose heads, over
// those that chose the head and found room; the rows of the others are 0 in maps:
//
//   importance      |d loss / d gate|, of a gate 1 by which the head's output is multiplied: |sum of out dout|.
//                   Michel et al. 2019, arXiv 1905.10650
//   entropy         - sum_j p log2 p - s log2 s, in bits: 2^entropy equally likely tokens have it
//   distance        sum_j p |i - j| / sum_j p, in tokens; of images between the centres of squares, in squares
//   first_token     p[i, f], f the first token of the sequence or of i's document; without i = f. Of the source, if
//                   its tokens are read
//   previous_token  p[i, i - 1], within a document; not of images
//   induction       the sum of p over keys that follow an earlier token equal to i's own, for the queries that have
//                   such keys. Olsson et al. 2022, arXiv 2209.11895; not of images
//   sink            s: what the learned logit takes, of models with sinks
//   half_life       ln 2 / the mean of -log_decay, in tokens: how far a head of linear attention remembers
//
// Of linear attention and by the delta rule p is the share of the absolute weight |w[i, j]| in their sum over j
// (kernels/attention_map.h): the sign is left out. What tokens take out of a state is in these weights, but not in the
// half-life, which is that of the decays. The gate of its importance is behind the norm of the head's output, which
// would undo it before.
//
// Heads a and b of one stack have the similarity sum_j min(p_a[i, j], p_b[i, j]) + min(s_a[i], s_b[i]): 1 if they read
// alike. Where a decoder's tokens read a source whose positions are not their own, there is no distance, no previous
// token and no induction.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "framework/core/names.h"
#include "framework/model/sample.h"
#include "framework/train/attention_stacks.h"
#include "framework/train/trainer.h"

namespace choir {

enum class HeadMeasure { importance, entropy, distance, first_token, previous_token, induction, sink, half_life };
template <>
inline constexpr auto names<HeadMeasure> =
    std::array{"importance", "entropy", "distance", "first_token", "previous_token", "induction", "sink", "half_life"};
inline constexpr std::size_t head_measures = names<HeadMeasure>.size();

struct InspectedSample {
  SampleBuffer buffer;
  std::int64_t length = 0;  ///< positions that are looked at, from the first on; the others only fill the context up
  std::int64_t source_length = 0, second_source_length = 0;  ///< likewise, of what an encoder reads
  bool target_is_known = true;  ///< false: the class in `buffer` is anyone's, so nothing is said about importance
};

struct Inspection {
  std::vector<AttentionStack> stacks;
  std::int64_t layers = 0, heads = 0;  ///< layers of all stacks, one behind another
  std::int64_t tile = 1;  ///< a cell of a map is the mean over `tile` queries of their sums over `tile` keys
  struct Maps {
    std::int64_t rows = 0, columns = 0;  ///< cells of queries and keys
    std::vector<float> values;           ///< [layers of the stack, heads, rows, columns]
  };
  struct Sample {
    std::array<std::vector<double>, head_measures> values;  ///< [layers, heads]; NaN: not defined for this sample
    std::vector<Maps> maps;                                 ///< of each stack
  };
  std::vector<Sample> samples;
  /// [layers * heads, layers * heads]: over evenly spread queries of all samples; NaN between stacks.
  std::vector<float> similarity;

  const std::vector<double>& values(std::size_t sample, HeadMeasure measure) const {
    return samples[sample].values[static_cast<std::size_t>(measure)];
  }
  /// Of all heads: the mean over the samples for which the measure is defined.
  std::vector<double> mean(HeadMeasure) const;
};

/// Cells of all maps of an inspection together, at most: what a page can hold.
inline constexpr std::int64_t most_map_cells = 2'500'000;

/// At most train.batch samples; others of the batch have no targets. The gradients of the trainer are those of these
/// samples afterwards. The result is the same on all ranks. Collective.
Inspection inspect(Trainer&, const std::vector<InspectedSample>&);

}  // namespace choir
