// What a run says of its heads every train.inspect_every steps: from a few queries of the first sequence of the step,
// so that it costs little.
#pragma once

#include <vector>

#include "framework/train/trainer.h"

namespace choir {

/// [layers of all stacks, heads]; NaN: no query says anything.
struct HeadSamples {
  std::vector<double> entropy;        ///< of a query's probabilities, in bits: the mean over the queries
  std::vector<double> largest_logit;  ///< the largest score, after soft cap and ALiBi; of linear attention the
                                      ///< logarithm of the largest absolute weight
  std::vector<double> sink;  ///< what goes to the first token, of the document or the source, and to a learned logit
};

inline constexpr std::int64_t sampled_queries = 8;

/// Of sample 0 of the step, `first`, of which `record` has the micro-batch on the ranks that computed it. The same on
/// all ranks. Collective.
HeadSamples sample_heads(Trainer&, const AttentionRecord& record, const SampleBuffer& first);

}  // namespace choir
