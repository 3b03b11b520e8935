// Context parallelism: the ranks of the context axis split the positions of each sequence. Only attention reads keys
// and values of positions that another rank holds; all else is computed on the rows held.
//
// Balance. The positions are cut into 2 c slices. Rank i of c holds slices i and 2c - 1 - i, so that under a causal
// mask all ranks have equal work; under a full one any slices do.
//
//   gather   all-gather of keys and values; backward sums their gradients by a reduce-scatter
//   ring     in step s, rank i computes with the keys and values of rank i - s, and gets those of the next step
//            meanwhile. Parts are merged by their log-sum-exps; backward is exact with the merged one. A gradient of
//            keys and values goes home in the step after it was computed. A step in which no query of any rank sees a
//            key is left out (windows); with a full band no block is empty. Liu et al. 2023, arXiv 2310.01889
//   heads    all-to-all: between two exchanges a rank has all positions of a share of the heads. Jacobs et al. 2023,
//            arXiv 2309.14509
#pragma once

#include <cstdint>
#include <vector>

#include "framework/comm/context.h"
#include "framework/ops/head_routing.h"
#include "framework/parallel/head_partition.h"
#include "kernels/band.h"
#include "kernels/dropout.h"
#include "kernels/score.h"

namespace choir {

/// The rows of rank `rank` of a context axis of `ranks` ranks, of rows with all positions. length >= ranks.
Rows context_rows(Rows whole, std::int64_t ranks, std::int64_t rank);

/// The most positions of a sequence that one of the ranks of the context axis holds, if `held` are those of this one.
std::int64_t most_positions(const Rows& held, std::int64_t ranks);

/// Of the heads of a layer the first `always` compute all tokens; of the others, each token chooses `chosen`, and a
/// head computes the first `capacity` tokens of a sequence that chose it (kernels/head_routing.h).
struct HeadRouting {
  std::int64_t chosen = 0;  ///< 0: all heads compute all tokens
  std::int64_t always = 0, capacity = 0;
  double balance_factor = 0;  ///< ops::BalanceLoss::factor; 0: no balance loss
};

/// What attention needs besides its input [N, (H + 2 K) E held]: q, k, v side by side.
struct AttentionSpec {
  HeadPartition heads{};  ///< over the tensor axis
  std::int64_t tensor_rank = 0;
  std::int64_t head_width = 1;
  kernels::Band band{};                 ///< between positions of a sequence
  kernels::Score score{};               ///< of all heads and positions of a sequence
  kernels::AttentionDropout dropout{};  ///< likewise, from the first sample here on
  Tensor sinks{}, sink_gradient{};      ///< [query heads held]; empty: none
  HeadRouting routing{};
};

/// What backward reads. `heads` has here other heads and positions than the input.
struct Attended {
  Tensor qkv;  // [N, (H + 2 K) E held]
  Tensor out;  // [N, H E held]: attended_here() gives it for the rows and heads of the input
  Tensor lse;  // [H held * N]: [B, H held, positions] of each run
};

/// qkv [N, (H + 2 K) E held] -> out [N, H E held]. With one context rank that is ops::attention(). Collective over the
/// context axis.
Tensor attend(const Tensor& qkv, const AttentionSpec&, Attended& saved, Context&);
/// What attend() returned, out [N, H E held], of Attended::out. `heads` exchanges it again: saved in both forms, it would
/// be a sixteenth of a block's activations. Collective over the context axis.
Tensor attended_here(const Tensor& out, const AttentionSpec&, Context&);
/// dout [N, H E held] -> dqkv [N, (H + 2 K) E held]
Tensor attend_backward(const Tensor& dout, const AttentionSpec&, const Attended&, Context&);

/// What backward of attention to another sequence reads.
struct AttendedAcross {
  Tensor q;    // [N, H E held]
  Tensor kv;   // [M, 2 K E held]: k, v side by side, of the rows of the source held
  Tensor out;  // [N, H E held]
  Tensor lse;  // [H held * N]: [B, H held, positions] of each run
};

/// The rows of context.rows attend to those of context.source: q [N, H E held], kv [M, 2 K E held] -> out [N, H E
/// held]. The band is between no positions: it is full. On several context ranks keys and values are gathered, of
/// whatever kind the context is. Collective over the context axis.
Tensor attend_across(const Tensor& q, const Tensor& kv, const AttentionSpec&, AttendedAcross& saved, Context&);

struct AcrossGradients {
  Tensor dq, dkv;  // as q and kv
};
AcrossGradients attend_across_backward(const Tensor& dout, const AttentionSpec&, const AttendedAcross&, Context&);

/// attend() of heads that compute some of the rows: `rows` are those of the heads held. On several context ranks keys
/// and values are gathered, of whatever kind the context is. Attended::out and lse are those of slots, without gates.
Tensor attend_chosen(const Tensor& qkv, const ops::HeadRows& rows, const AttentionSpec&, Attended& saved, Context&);
struct ChosenGradients {
  Tensor dqkv;    // [N, (H + 2 K) E held]
  Tensor dgates;  // [N * H held, 1]
};
ChosenGradients attend_chosen_backward(const Tensor& dout, const ops::HeadRows& rows, const AttentionSpec&,
                                       const Attended&, Context&);

/// The offsets s of the ring's steps, ascending from 0: rank i sees keys of rank i - s, for some i.
std::vector<std::int64_t> ring_steps(const AttentionSpec&, std::int64_t length, std::int64_t ranks);

/// What attention does on rank `rank` of the context axis, for one sequence: two ranks for which this is equal execute
/// operations of the same number, size and cost.
struct ContextWork {
  struct Step {                          ///< of the ring; together they are also the work of a gather
    std::int64_t blocks = 0, pairs = 0;  ///< pairs of runs that see each other, and of a query and a key in them
    bool operator==(const Step&) const = default;
  };
  std::int64_t positions[2] = {};  ///< of each run
  std::vector<Step> steps;
  std::int64_t heads = 0, kv_heads = 0, group_offset = 0;  ///< of the share of the heads, if the kind is `heads`
  std::int64_t slots = 0;                                  ///< slots_of_heads()
  bool operator==(const ContextWork&) const = default;
};
ContextWork context_work(const AttentionSpec&, ContextKind, std::int64_t length, std::int64_t ranks, std::int64_t rank);

/// The bytes that a rank sends for forward and backward of one layer and one sequence of `length`, in the mean over the
/// context axis. `heads` is infinite if there are fewer heads than ranks.
struct ContextBytes {
  double ring, heads, gather;
};
ContextBytes context_bytes(const AttentionSpec&, std::int64_t length, std::int64_t ranks, DType type);

/// `asked`; if automatic, the one with the fewest bytes: ring if it is as good as any. If heads are routed: gather. The
/// same on all ranks.
ContextKind context_kind(ContextKind asked, const AttentionSpec&, std::int64_t length, std::int64_t ranks, DType type);

}  // namespace choir
