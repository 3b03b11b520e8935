// Context parallelism by an all-gather of keys and values. In bytes it is the ring's traffic in one call. Attention to
// another sequence, and that of heads that compute some of the rows, have no other way.

#include <algorithm>

#include "framework/parallel/context_axis.h"
#include "framework/parallel/head_slots.h"

namespace choir {
namespace {

/// Rows of a block of the collectives: those of the rank with the most.
std::int64_t gather_block(const ContextAxis& axis) {
  std::int64_t most = 0;
  for (std::int64_t r = 0; r < axis.ranks; ++r) most = std::max(most, axis.rows_of(r).count());
  return most;
}

/// x [N, width] of all ranks, by position: [B * T, width].
Tensor gather_positions(const ContextAxis& axis, const Tensor& x) {
  if (axis.ranks == 1) return x;
  Runtime& runtime = axis.runtime;
  const std::int64_t block = gather_block(axis), width = x.width();
  const Tensor mine = runtime.empty({block, width}, x.dtype());
  ops::copy(runtime, x, mine.slice_rows(0, x.rows()));
  if (x.rows() < block) ops::fill(runtime, mine.slice_rows(x.rows(), block), 0.0f);
  const Tensor blocks = runtime.empty({axis.ranks * block, width}, x.dtype());
  axis.communicator.all_gather(mine, blocks, runtime.device.compute(), "keys and values");
  const Tensor whole = runtime.empty({axis.rows.sequences * axis.rows.length, width}, x.dtype());
  for (std::int64_t r = 0; r < axis.ranks; ++r)
    for_each_run(blocks.slice_rows(r * block, (r + 1) * block), axis.rows_of(r), whole,
                 [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
  return whole;
}

/// A gradient of keys and values of all positions, of which the ranks have terms: their sum, at home.
class GatheredGradient {
 public:
  /// Of `axis`, which outlives this, and [rows, width] held.
  GatheredGradient(const ContextAxis& axis, std::int64_t width)
      : axis_(axis), block_(gather_block(axis)), sums_(axis.zeros({axis.ranks * block_, width})) {}

  /// Adds a term [B * T, width].
  void add(const Tensor& term) const {
    for (std::int64_t r = 0; r < axis_.ranks; ++r)
      for_each_run(sums_.slice_rows(r * block_, (r + 1) * block_), axis_.rows_of(r), term,
                   [&](const Tensor& sum, const Tensor& part) { ops::accumulate(axis_.runtime, part, sum); });
  }

  /// The sum over the ranks goes to `to` [rows held, width]. Collective over the context axis.
  void scatter(const Tensor& to) const {
    Runtime& runtime = axis_.runtime;
    const Tensor mine = runtime.empty({block_, sums_.width()}, sums_.dtype());
    axis_.communicator.reduce_scatter(sums_, mine, Reduce::sum, runtime.device.compute(), "keys and values");
    ops::narrow(runtime, mine.slice_rows(0, to.rows()), to);
  }

 private:
  const ContextAxis& axis_;
  std::int64_t block_;
  Tensor sums_;  // by rank
};

}  // namespace

Tensor attend_gathered(const ContextAxis& axis, const Tensor& qkv, Attended& saved) {
  Runtime& runtime = axis.runtime;
  const std::int64_t heads = axis.held.query.count();
  const Tensor kv = gather_positions(axis, axis.kv(qkv, axis.held)), q = axis.q(qkv, axis.held);
  saved.qkv = keep(qkv);
  saved.out = keep(runtime.empty({q.rows(), q.width()}, q.dtype()));
  saved.lse = keep(runtime.empty({heads * q.rows()}, accumulate_type(q.dtype())));
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const kernels::Run& queries = axis.rows.runs[run];
    if (queries.empty()) continue;
    ops::attention(runtime, axis.options(axis.held, queries.begin, 0), of_run(q, axis.rows, run), axis.k(kv),
                   axis.v(kv), of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads));
    axis.add_sinks(axis.held, of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads));
  }
  return saved.out;
}

Tensor attend_gathered_backward(const ContextAxis& axis, const Tensor& dout, const Attended& saved) {
  Runtime& runtime = axis.runtime;
  const std::int64_t heads = axis.held.query.count();
  const Tensor kv = gather_positions(axis, axis.kv(saved.qkv, axis.held)), q = axis.q(saved.qkv, axis.held);
  const Tensor dqkv = runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  const Tensor dq = axis.q(dqkv, axis.held);
  const GatheredGradient sum(axis, kv.width());
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const kernels::Run& queries = axis.rows.runs[run];
    if (queries.empty()) continue;
    axis.add_sinks_backward(axis.held, of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads),
                            of_run(dout, axis.rows, run));
    const Tensor dkv = runtime.empty({kv.rows(), kv.width()}, kv.dtype());
    ops::attention_backward(runtime, axis.options(axis.held, queries.begin, 0), of_run(q, axis.rows, run), axis.k(kv),
                            axis.v(kv), of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads),
                            of_run(dout, axis.rows, run), of_run(dq, axis.rows, run), axis.k(dkv), axis.v(dkv));
    sum.add(dkv);
  }
  sum.scatter(axis.kv(dqkv, axis.held));
  return dqkv;
}

Tensor attend_chosen(const Tensor& qkv, const ops::HeadRows& rows, const AttentionSpec& spec, Attended& saved,
                     Context& context) {
  Runtime& runtime = context.runtime;
  const ContextAxis axis{spec, context};
  const Tensor kv = gather_positions(axis, axis.kv(qkv, axis.held));
  const ops::AttentionOptions options = options_of_slots(axis.options(axis.held, 0, 0), rows, spec, context.rows);
  saved.qkv = keep(qkv);
  saved.out = keep(ops::attention(runtime, options, to_slots(runtime, axis.q(qkv, axis.held), {}, rows), axis.k(kv),
                                  axis.v(kv), saved.lse));
  keep(saved.lse);
  axis.add_sinks(axis.held, saved.out, saved.lse);
  return from_slots(runtime, saved.out, rows.gates, rows);
}

ChosenGradients attend_chosen_backward(const Tensor& dout, const ops::HeadRows& rows, const AttentionSpec& spec,
                                       const Attended& saved, Context& context) {
  Runtime& runtime = context.runtime;
  const ContextAxis axis{spec, context};
  const std::int64_t width = spec.head_width;
  const ops::AttentionOptions options = options_of_slots(axis.options(axis.held, 0, 0), rows, spec, context.rows);
  ChosenGradients gradients;
  gradients.dgates = ops::combine_weight_gradient(runtime, dout.reshape({dout.count() / width, width}),
                                                  saved.out.reshape({saved.out.count() / width, width}), rows.slots);
  const Tensor dslots = to_slots(runtime, dout, rows.gates, rows);
  axis.add_sinks_backward(axis.held, saved.out, saved.lse, dslots);
  gradients.dqkv = runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  const Tensor kv = gather_positions(axis, axis.kv(saved.qkv, axis.held)),
               dkv_here = axis.kv(gradients.dqkv, axis.held);
  const Tensor dkv = axis.ranks == 1 ? dkv_here : runtime.empty({kv.rows(), kv.width()}, kv.dtype());
  const Tensor q = to_slots(runtime, axis.q(saved.qkv, axis.held), {}, rows);
  const Tensor dq = runtime.empty({q.rows(), q.width()}, q.dtype());
  ops::attention_backward(runtime, options, q, axis.k(kv), axis.v(kv), saved.out, saved.lse, dslots, dq, axis.k(dkv),
                          axis.v(dkv));
  ops::copy(runtime, from_slots(runtime, dq, {}, rows), axis.q(gradients.dqkv, axis.held));
  if (axis.ranks == 1) return gradients;
  const GatheredGradient sum(axis, kv.width());
  sum.add(dkv);
  sum.scatter(dkv_here);
  return gradients;
}

Tensor attend_across(const Tensor& q, const Tensor& kv, const AttentionSpec& spec, AttendedAcross& saved,
                     Context& context) {
  Runtime& runtime = context.runtime;
  Context of_keys = of_source(context), of_queries = context;
  of_queries.documents = seen_of_source(context);
  const ContextAxis axis{spec, of_queries}, source{spec, of_keys};
  const std::int64_t heads = axis.held.query.count();
  const Tensor all = gather_positions(source, kv);
  saved.q = keep(q);
  saved.kv = keep(kv);
  saved.out = keep(runtime.empty({q.rows(), q.width()}, q.dtype()));
  saved.lse = keep(runtime.empty({heads * q.rows()}, accumulate_type(q.dtype())));
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    const Tensor out = of_run(saved.out, axis.rows, run), lse = lse_of_run(saved.lse, axis.rows, run, heads);
    ops::attention(runtime, axis.options(axis.held, axis.rows.runs[run].begin, 0), of_run(q, axis.rows, run),
                   axis.k(all), axis.v(all), out, lse);
    axis.add_sinks(axis.held, out, lse);
  }
  return saved.out;
}

AcrossGradients attend_across_backward(const Tensor& dout, const AttentionSpec& spec, const AttendedAcross& saved,
                                       Context& context) {
  Runtime& runtime = context.runtime;
  Context of_keys = of_source(context), of_queries = context;
  of_queries.documents = seen_of_source(context);
  const ContextAxis axis{spec, of_queries}, source{spec, of_keys};
  const std::int64_t heads = axis.held.query.count();
  const Tensor all = gather_positions(source, saved.kv);
  const Tensor dq = runtime.empty({saved.q.rows(), saved.q.width()}, saved.q.dtype());
  const Tensor dkv = runtime.empty({saved.kv.rows(), saved.kv.width()}, saved.kv.dtype());
  const GatheredGradient sum(source, dkv.width());
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    const Tensor out = of_run(saved.out, axis.rows, run), lse = lse_of_run(saved.lse, axis.rows, run, heads);
    const Tensor dout_run = of_run(dout, axis.rows, run);
    axis.add_sinks_backward(axis.held, out, lse, dout_run);
    const Tensor term = runtime.empty({all.rows(), all.width()}, all.dtype());
    ops::attention_backward(runtime, axis.options(axis.held, axis.rows.runs[run].begin, 0),
                            of_run(saved.q, axis.rows, run), axis.k(all), axis.v(all), out, lse, dout_run,
                            of_run(dq, axis.rows, run), axis.k(term), axis.v(term));
    sum.add(term);
  }
  sum.scatter(dkv);
  return {.dq = dq, .dkv = dkv};
}

}  // namespace choir
