// Context parallelism by an all-gather of keys and values. In bytes it is the ring's traffic in one call.

#include <algorithm>

#include "framework/parallel/context_axis.h"

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
  const std::int64_t heads = axis.held.query.count(), block = gather_block(axis);
  const Tensor kv = gather_positions(axis, axis.kv(saved.qkv, axis.held)), q = axis.q(saved.qkv, axis.held);
  const Tensor dqkv = runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  const Tensor dq = axis.q(dqkv, axis.held);
  const Tensor sums = axis.zeros({axis.ranks * block, kv.width()});  // by rank
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const kernels::Run& queries = axis.rows.runs[run];
    if (queries.empty()) continue;
    axis.add_sinks_backward(axis.held, of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads),
                            of_run(dout, axis.rows, run));
    const Tensor dkv = runtime.empty({kv.rows(), kv.width()}, kv.dtype());
    ops::attention_backward(runtime, axis.options(axis.held, queries.begin, 0), of_run(q, axis.rows, run), axis.k(kv),
                            axis.v(kv), of_run(saved.out, axis.rows, run), lse_of_run(saved.lse, axis.rows, run, heads),
                            of_run(dout, axis.rows, run), of_run(dq, axis.rows, run), axis.k(dkv), axis.v(dkv));
    for (std::int64_t r = 0; r < axis.ranks; ++r)
      for_each_run(sums.slice_rows(r * block, (r + 1) * block), axis.rows_of(r), dkv,
                   [&](const Tensor& sum, const Tensor& part) { ops::accumulate(runtime, part, sum); });
  }
  const Tensor mine = runtime.empty({block, kv.width()}, sums.dtype());
  axis.communicator.reduce_scatter(sums, mine, Reduce::sum, runtime.device.compute(), "keys and values");
  ops::narrow(runtime, mine.slice_rows(0, q.rows()), axis.kv(dqkv, axis.held));
  return dqkv;
}

}  // namespace choir
