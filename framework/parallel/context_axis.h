// The context axis as attention sees it: what the ways to split attention over it (context.h) have in common.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/context.h"

namespace choir {

/// Query heads and the key/value heads that they read, by global numbers.
struct HeadRange {
  Slice query, key_value;
};

HeadRange heads_of(const AttentionSpec&, std::int64_t tensor_rank);

/// The share of context rank `rank` in the heads of a tensor rank.
HeadRange share_of_heads(const AttentionSpec&, std::int64_t tensor_rank, std::int64_t ranks, std::int64_t rank);

/// The context axis as attention sees it.
struct ContextAxis {
  const AttentionSpec& spec;
  Context& context;
  Runtime& runtime = context.runtime;
  Communicator& communicator = *context.mesh.context;
  std::int64_t ranks = communicator.size(), rank = communicator.rank();
  HeadRange held = heads_of(spec, spec.tensor_rank);
  const Rows& rows = context.rows;

  std::int64_t peer(std::int64_t offset) const { return (rank + offset + ranks) % ranks; }
  Rows rows_of(std::int64_t other) const {
    return context_rows(whole_rows(rows.sequences, rows.length, rows.first_sample), ranks, other);
  }

  std::int64_t width(const Slice& heads) const { return heads.count() * spec.head_width; }
  std::int64_t width(const HeadRange& heads) const { return width(heads.query) + 2 * width(heads.key_value); }
  Tensor q(const Tensor& qkv, const HeadRange& heads) const { return qkv.slice_columns(0, width(heads.query)); }
  Tensor kv(const Tensor& qkv, const HeadRange& heads) const {
    return qkv.slice_columns(width(heads.query), width(heads));
  }
  Tensor k(const Tensor& kv) const { return kv.slice_columns(0, kv.width() / 2); }
  Tensor v(const Tensor& kv) const { return kv.slice_columns(kv.width() / 2, kv.width()); }

  /// Queries from position `first_query` on and keys from `first_key` on.
  ops::AttentionOptions options(const HeadRange& heads, std::int64_t first_query, std::int64_t first_key) const {
    return {.batch = rows.sequences,
            .heads = heads.query.count(),
            .kv_heads = heads.key_value.count(),
            .head_width = spec.head_width,
            .group_size = spec.heads.group_size(),
            .group_offset = heads.query.begin % spec.heads.group_size(),
            .band = kernels::band_between(spec.band, first_query, first_key),
            .score = kernels::score_between(spec.score, heads.query.begin, first_query, first_key),
            .documents = context.documents.ranges,
            .first_query = context.documents.first_query + first_query,
            .first_key = first_key,
            .dropout = kernels::dropout_between(spec.dropout, heads.query.begin, first_query, first_key)};
  }
  /// Attention has written out [rows, heads * E] and lse: adds the sinks of these heads.
  void add_sinks(const HeadRange& heads, const Tensor& out, const Tensor& lse) const {
    if (spec.sinks) ops::attention_sink(runtime, options(heads, 0, 0), of_heads(spec.sinks, heads), out, lse);
  }
  void add_sinks_backward(const HeadRange& heads, const Tensor& out, const Tensor& lse, const Tensor& dout) const {
    if (spec.sinks)
      ops::attention_sink_backward(runtime, options(heads, 0, 0), of_heads(spec.sinks, heads), out, lse, dout,
                                   of_heads(spec.sink_gradient, heads));
  }
  Tensor of_heads(const Tensor& sinks, const HeadRange& heads) const {
    return sinks.slice_columns(heads.query.begin - held.query.begin, heads.query.end - held.query.begin);
  }
  Tensor zeros(Shape shape) const {
    const Tensor x = runtime.empty(std::move(shape), accumulate_type(runtime.compute_type));
    ops::fill(runtime, x, 0.0f);
    return x;
  }
};

inline constexpr int runs_of_a_rank = 2;

/// The rows of run `run` in a tensor of all rows held.
Tensor of_run(const Tensor& x, const Rows& rows, int run);
/// The log-sum-exps of run `run`.
Tensor lse_of_run(const Tensor& lse, const Rows& rows, int run, std::int64_t heads);

/// Calls body(part of `x` [B, positions * width], part of `whole` [B, positions * width]) for the runs of `rows`, of
/// x [rows, width] and whole [B * length, width] with all positions in order.
void for_each_run(const Tensor& x, const Rows& rows, const Tensor& whole,
                  const std::function<void(const Tensor&, const Tensor&)>& body);

/// True if some query sees some key.
bool sees(const kernels::Run& queries, const kernels::Run& keys, kernels::Band positions);

// ---- The ways. All are attend() and attend_backward() of context.h.

/// All keys are here.
Tensor attend_here(const ContextAxis&, const Tensor& qkv, const HeadRange&, Attended& saved);
Tensor attend_here_backward(const ContextAxis&, const Tensor& dout, const HeadRange&, const Attended&);

Tensor attend_gathered(const ContextAxis&, const Tensor& qkv, Attended& saved);
Tensor attend_gathered_backward(const ContextAxis&, const Tensor& dout, const Attended&);

Tensor attend_in_a_ring(const ContextAxis&, const Tensor& qkv, Attended& saved);
Tensor attend_in_a_ring_backward(const ContextAxis&, const Tensor& dout, const Attended&);

Tensor attend_by_heads(const ContextAxis&, const Tensor& qkv, Attended& saved);
/// out [B * T, E of a share of the heads] -> [N, H E held], the rows and heads of this rank
Tensor exchange_out(const ContextAxis&, const Tensor& out);
Tensor attend_by_heads_backward(const ContextAxis&, const Tensor& dout, const Attended&);

}  // namespace choir
