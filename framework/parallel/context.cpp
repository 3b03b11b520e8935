#include "framework/parallel/context.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// Query heads and the key/value heads that they read, by global numbers.
struct HeadRange {
  Slice query, key_value;
};

HeadRange heads_of(const AttentionSpec& a, std::int64_t tensor_rank) {
  return {a.heads.query(tensor_rank), a.heads.key_value(tensor_rank)};
}

/// The share of context rank `rank` in the heads of a tensor rank.
HeadRange share_of_heads(const AttentionSpec& a, std::int64_t tensor_rank, std::int64_t ranks, std::int64_t rank) {
  const Slice all = a.heads.query(tensor_rank), share = even_slice(all.count(), ranks, rank);
  const Slice query{all.begin + share.begin, all.begin + share.end};
  return {query, {query.begin / a.heads.group_size(), (query.end - 1) / a.heads.group_size() + 1}};
}

/// The band between queries and keys of which the first stand at these positions, if `positions` is the band of all:
/// query i and key j stand at first_query + i and first_key + j.
kernels::Band band_between(kernels::Band positions, std::int64_t first_query, std::int64_t first_key) {
  const auto shifted = [&](std::int64_t end) {
    return end == kernels::unlimited || end == -kernels::unlimited ? end : end + first_query - first_key;
  };
  return {shifted(positions.first), shifted(positions.last)};
}

/// The context axis as attention sees it.
struct ContextAxis {
  const AttentionSpec& spec;
  Context& context;
  Runtime& runtime = context.runtime;
  Communicator& communicator = *context.mesh.context;
  std::int64_t ranks = communicator.size(), rank = communicator.rank();
  HeadRange held = heads_of(spec, spec.tensor_rank);
  const Rows& rows = context.rows;
  kernels::Band band = kernels::causal_band(rows.length, rows.length, spec.window);  // between positions

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
            .band = band_between(band, first_query, first_key)};
  }
  Tensor zeros(Shape shape) const {
    const Tensor x = runtime.empty(std::move(shape), accumulate_type(runtime.compute_type));
    ops::fill(runtime, x, 0.0f);
    return x;
  }
};

constexpr int runs_of_a_rank = 2;

/// The rows of run `run` in a tensor of all rows held.
Tensor of_run(const Tensor& x, const Rows& rows, int run) {
  const std::int64_t begin = run == 0 ? 0 : rows.count(0);
  return x.slice_rows(begin, begin + rows.count(run));
}

/// The log-sum-exps of run `run`.
Tensor lse_of_run(const Tensor& lse, const Rows& rows, int run, std::int64_t heads) {
  const std::int64_t begin = run == 0 ? 0 : rows.count(0);
  return lse.slice_columns(heads * begin, heads * (begin + rows.count(run)));
}

/// Calls body(part of `x` [B, positions * width], part of `whole` [B, positions * width]) for the runs of `rows`, of
/// x [rows, width] and whole [B * length, width] with all positions in order.
void for_each_run(const Tensor& x, const Rows& rows, const Tensor& whole,
                  const std::function<void(const Tensor&, const Tensor&)>& body) {
  const std::int64_t width = x.width();
  const Tensor sequences = whole.reshape({rows.sequences, rows.length * width});
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const auto [begin, end] = rows.runs[run];
    if (begin >= end) continue;
    body(of_run(x, rows, run).reshape({rows.sequences, (end - begin) * width}),
         sequences.slice_columns(begin * width, end * width));
  }
}

bool sees(const kernels::Run& queries, const kernels::Run& keys, kernels::Band band) {
  if (queries.empty() || keys.empty()) return false;
  const kernels::VisiblePairs<std::int64_t> pairs(band_between(band, queries.begin, keys.begin),
                                                  queries.count(), keys.count());
  return pairs.any({0, queries.count()}, {0, keys.count()});
}

/// An exchange on the communication stream; the compute stream goes on meanwhile.
struct PendingExchange {
  Event done;
  std::uint64_t call = 0;

  void wait(const ContextAxis& axis) const {
    done.wait(axis.runtime.device.compute());
    axis.communicator.waited_for(call);
  }
};

PendingExchange start_exchange(const ContextAxis& axis, const std::vector<Message>& sends,
                               const std::vector<Message>& receives) {
  PendingExchange pending;
  if (sends.empty() && receives.empty()) return pending;
  Device& device = axis.runtime.device;
  Event ready;
  ready.record(device.compute());
  ready.wait(device.communicate());
  axis.communicator.exchange(sends, receives, device.communicate(), "ring");
  pending.done.record(device.communicate());
  pending.call = axis.communicator.last_call();
  return pending;
}

// ---- One rank

Tensor attend_here(const ContextAxis& axis, const Tensor& qkv, const HeadRange& heads, Attended& saved) {
  const Tensor kv = axis.kv(qkv, heads);
  saved.qkv = keep(qkv);
  saved.out = keep(
      ops::attention(axis.runtime, axis.options(heads, 0, 0), axis.q(qkv, heads), axis.k(kv), axis.v(kv), saved.lse));
  keep(saved.lse);
  return saved.out;
}

Tensor attend_here_backward(const ContextAxis& axis, const Tensor& dout, const HeadRange& heads,
                            const Attended& saved) {
  const Tensor dqkv = axis.runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  const Tensor kv = axis.kv(saved.qkv, heads), dkv = axis.kv(dqkv, heads);
  ops::attention_backward(axis.runtime, axis.options(heads, 0, 0), axis.q(saved.qkv, heads), axis.k(kv), axis.v(kv),
                          saved.out, saved.lse, dout, axis.q(dqkv, heads), axis.k(dkv), axis.v(dkv));
  return dqkv;
}

// ---- Gather

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

// ---- Ring

/// Calls body(query run, key run) for the runs here that see keys of `other`.
void for_each_pair(const ContextAxis& axis, const Rows& other, const std::function<void(int, int)>& body) {
  for (int keys = 0; keys < runs_of_a_rank; ++keys)
    for (int queries = 0; queries < runs_of_a_rank; ++queries)
      if (sees(axis.rows.runs[queries], other.runs[keys], axis.band)) body(queries, keys);
}

Tensor attend_in_a_ring(const ContextAxis& axis, const Tensor& qkv, Attended& saved) {
  Runtime& runtime = axis.runtime;
  const std::int64_t heads = axis.held.query.count();
  const std::vector<std::int64_t> steps = ring_steps(axis.spec, axis.rows.length, axis.ranks);
  const Tensor q = axis.q(qkv, axis.held), own = ops::contiguous(runtime, axis.kv(qkv, axis.held));
  const DType sums = accumulate_type(q.dtype());
  const Tensor total = axis.zeros({q.rows(), q.width()}), total_lse = runtime.empty({heads * q.rows()}, sums);
  ops::fill(runtime, total_lse, -std::numeric_limits<float>::infinity());

  Tensor kv = own;
  for (std::size_t n = 0; n < steps.size(); ++n) {
    std::vector<Message> sends, receives;
    if (n + 1 < steps.size()) {
      const std::int64_t from = axis.peer(-steps[n + 1]), to = axis.peer(steps[n + 1]);
      sends.push_back({own, static_cast<int>(to)});
      receives.push_back(
          {runtime.empty({axis.rows_of(from).count(), own.width()}, own.dtype()), static_cast<int>(from)});
    }
    const PendingExchange pending = start_exchange(axis, sends, receives);
    const Rows other = axis.rows_of(axis.peer(-steps[n]));
    for_each_pair(axis, other, [&](int queries, int keys) {
      const ops::AttentionOptions options =
          axis.options(axis.held, axis.rows.runs[queries].begin, other.runs[keys].begin);
      const Tensor block = of_run(kv, other, keys);
      Tensor lse;
      const Tensor out =
          ops::attention(runtime, options, of_run(q, axis.rows, queries), axis.k(block), axis.v(block), lse);
      ops::merge_attention(runtime, options, out, lse, of_run(total, axis.rows, queries),
                           lse_of_run(total_lse, axis.rows, queries, heads));
    });
    pending.wait(axis);
    kv = receives.empty() ? Tensor{} : receives.front().tensor;
  }
  saved.qkv = keep(qkv);
  saved.lse = keep(total_lse);
  saved.out = total;
  if (total.dtype() != q.dtype()) {
    saved.out = runtime.empty({q.rows(), q.width()}, q.dtype());
    ops::narrow(runtime, total, saved.out);
  }
  return keep(saved.out);
}

Tensor attend_in_a_ring_backward(const ContextAxis& axis, const Tensor& dout, const Attended& saved) {
  Runtime& runtime = axis.runtime;
  const std::int64_t heads = axis.held.query.count();
  const std::vector<std::int64_t> steps = ring_steps(axis.spec, axis.rows.length, axis.ranks);
  const Tensor q = ops::contiguous(runtime, axis.q(saved.qkv, axis.held));
  const Tensor own = ops::contiguous(runtime, axis.kv(saved.qkv, axis.held));
  const Tensor dq = axis.zeros({q.rows(), q.width()}), home = axis.zeros({own.rows(), own.width()});

  constexpr int of_keys = 0, of_gradients = 1;  // tags
  Tensor kv = own, away;                        // away: the gradient of another rank's keys and values, to be sent
  for (std::size_t n = 0; n <= steps.size(); ++n) {
    std::vector<Message> sends, receives;
    Tensor next, arriving;
    if (n + 1 < steps.size()) {
      const std::int64_t from = axis.peer(-steps[n + 1]), to = axis.peer(steps[n + 1]);
      next = runtime.empty({axis.rows_of(from).count(), own.width()}, own.dtype());
      sends.push_back({own, static_cast<int>(to), of_keys});
      receives.push_back({next, static_cast<int>(from), of_keys});
    }
    if (away) {
      const std::int64_t to = axis.peer(-steps[n - 1]), from = axis.peer(steps[n - 1]);
      arriving = runtime.empty({own.rows(), own.width()}, home.dtype());
      sends.push_back({away, static_cast<int>(to), of_gradients});
      receives.push_back({arriving, static_cast<int>(from), of_gradients});
    }
    const PendingExchange pending = start_exchange(axis, sends, receives);
    Tensor computed;
    if (n < steps.size()) {
      const Rows other = axis.rows_of(axis.peer(-steps[n]));
      const Tensor dkv = steps[n] == 0 ? home : axis.zeros({kv.rows(), kv.width()});
      for_each_pair(axis, other, [&](int queries, int keys) {
        const Tensor q_run = of_run(q, axis.rows, queries), block = of_run(kv, other, keys);
        const Tensor dq_part = runtime.empty({q_run.rows(), q_run.width()}, q.dtype());
        const Tensor dkv_part = runtime.empty({block.rows(), block.width()}, kv.dtype());
        ops::attention_backward(runtime, axis.options(axis.held, axis.rows.runs[queries].begin, other.runs[keys].begin),
                                q_run, axis.k(block), axis.v(block), of_run(saved.out, axis.rows, queries),
                                lse_of_run(saved.lse, axis.rows, queries, heads), of_run(dout, axis.rows, queries),
                                dq_part, axis.k(dkv_part), axis.v(dkv_part));
        ops::accumulate(runtime, dq_part, of_run(dq, axis.rows, queries));
        ops::accumulate(runtime, dkv_part, of_run(dkv, other, keys));
      });
      if (steps[n] != 0) computed = dkv;
    }
    pending.wait(axis);
    if (arriving) ops::accumulate(runtime, arriving, home);
    away = computed;
    kv = next;
  }
  const Tensor dqkv = runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  ops::narrow(runtime, dq, axis.q(dqkv, axis.held));
  ops::narrow(runtime, home, axis.kv(dqkv, axis.held));
  return dqkv;
}

// ---- Heads

/// Tensors for all ranks and from all ranks. The one for this rank stays: the same handle.
std::vector<Tensor> exchange_with_all(const ContextAxis& axis, const std::vector<Tensor>& outgoing,
                                      const std::function<Shape(std::int64_t)>& shape) {
  std::vector<Tensor> incoming;
  std::vector<Message> sends, receives;
  for (std::int64_t r = 0; r < axis.ranks; ++r)
    incoming.push_back(r == axis.rank ? outgoing[static_cast<std::size_t>(r)]
                                      : axis.runtime.empty(shape(r), outgoing.front().dtype()));
  for (std::int64_t step = 1; step < axis.ranks; ++step) {
    const std::int64_t to = axis.peer(step), from = axis.peer(-step);
    sends.push_back({outgoing[static_cast<std::size_t>(to)], static_cast<int>(to)});
    receives.push_back({incoming[static_cast<std::size_t>(from)], static_cast<int>(from)});
  }
  axis.communicator.exchange(sends, receives, axis.runtime.device.compute(), "heads");
  return incoming;
}

/// Columns of x that each rank gets, as slices side by side.
using ColumnsOf = std::function<std::vector<Slice>(std::int64_t rank)>;

std::int64_t width_of(const std::vector<Slice>& columns) {
  std::int64_t width = 0;
  for (const Slice& slice : columns) width += slice.count();
  return width;
}

/// Calls body(columns of x, columns of part) for the slices of x that lie side by side in `part`.
void for_each_slice(const Tensor& x, const Tensor& part, const std::vector<Slice>& columns,
                    const std::function<void(const Tensor&, const Tensor&)>& body) {
  std::int64_t begin = 0;
  for (const Slice& slice : columns) {
    body(x.slice_columns(slice.begin, slice.end), part.slice_columns(begin, begin + slice.count()));
    begin += slice.count();
  }
}

/// x [N, all columns] -> [B * T, the columns of this rank]
Tensor to_heads(const ContextAxis& axis, const Tensor& x, const ColumnsOf& columns_of) {
  Runtime& runtime = axis.runtime;
  const std::int64_t width = width_of(columns_of(axis.rank));
  std::vector<Tensor> outgoing;
  for (std::int64_t r = 0; r < axis.ranks; ++r) {
    const std::vector<Slice> columns = columns_of(r);
    outgoing.push_back(runtime.empty({x.rows(), width_of(columns)}, x.dtype()));
    for_each_slice(x, outgoing.back(), columns,
                   [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
  }
  const std::vector<Tensor> incoming = exchange_with_all(axis, outgoing, [&](std::int64_t r) {
    return Shape{axis.rows_of(r).count(), width};
  });
  const Tensor whole = runtime.empty({axis.rows.sequences * axis.rows.length, width}, x.dtype());
  for (std::int64_t r = 0; r < axis.ranks; ++r)
    for_each_run(incoming[static_cast<std::size_t>(r)], axis.rows_of(r), whole,
                 [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
  return whole;
}

/// The way back: whole [B * T, the columns of this rank] -> from each rank its columns, [N, ...].
std::vector<Tensor> to_positions(const ContextAxis& axis, const Tensor& whole, const ColumnsOf& columns_of) {
  Runtime& runtime = axis.runtime;
  std::vector<Tensor> outgoing;
  for (std::int64_t r = 0; r < axis.ranks; ++r) {
    const Rows rows = axis.rows_of(r);
    outgoing.push_back(runtime.empty({rows.count(), whole.width()}, whole.dtype()));
    for_each_run(outgoing.back(), rows, whole,
                 [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  }
  return exchange_with_all(axis, outgoing, [&](std::int64_t r) {
    return Shape{axis.rows.count(), width_of(columns_of(r))};
  });
}

HeadRange share_of(const ContextAxis& axis, std::int64_t rank) {
  return share_of_heads(axis.spec, axis.spec.tensor_rank, axis.ranks, rank);
}

Slice columns_of(const ContextAxis& axis, const Slice& heads, const Slice& all) {
  return {(heads.begin - all.begin) * axis.spec.head_width, (heads.end - all.begin) * axis.spec.head_width};
}

/// Of out: the query heads of each rank.
ColumnsOf query_columns(const ContextAxis& axis) {
  return
      [&axis](std::int64_t rank) { return std::vector{columns_of(axis, share_of(axis, rank).query, axis.held.query)}; };
}

/// Of k and v side by side.
ColumnsOf key_value_columns(const ContextAxis& axis) {
  return [&axis](std::int64_t rank) {
    const Slice k = columns_of(axis, share_of(axis, rank).key_value, axis.held.key_value);
    const std::int64_t all = axis.width(axis.held.key_value);
    return std::vector{k, Slice{k.begin + all, k.end + all}};
  };
}

/// Of q, k and v side by side.
ColumnsOf all_columns(const ContextAxis& axis) {
  return [&axis](std::int64_t rank) {
    std::vector<Slice> columns = query_columns(axis)(rank);
    const std::int64_t before = axis.width(axis.held.query);
    for (const Slice& slice : key_value_columns(axis)(rank))
      columns.push_back({slice.begin + before, slice.end + before});
    return columns;
  };
}

Tensor attend_by_heads(const ContextAxis& axis, const Tensor& qkv, Attended& saved) {
  Runtime& runtime = axis.runtime;
  const Tensor mine = attend_here(axis, to_heads(axis, qkv, all_columns(axis)), share_of(axis, axis.rank), saved);
  const std::vector<Tensor> parts = to_positions(axis, mine, query_columns(axis));
  const Tensor out = runtime.empty({qkv.rows(), axis.width(axis.held.query)}, qkv.dtype());
  for (std::int64_t r = 0; r < axis.ranks; ++r)
    for_each_slice(out, parts[static_cast<std::size_t>(r)], query_columns(axis)(r),
                   [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  return out;
}

Tensor attend_by_heads_backward(const ContextAxis& axis, const Tensor& dout, const Attended& saved) {
  Runtime& runtime = axis.runtime;
  const Tensor mine =
      attend_here_backward(axis, to_heads(axis, dout, query_columns(axis)), share_of(axis, axis.rank), saved);
  const std::vector<Tensor> parts = to_positions(axis, mine, all_columns(axis));
  const Tensor dqkv = runtime.empty({dout.rows(), axis.width(axis.held)}, dout.dtype());
  const Tensor dkv = axis.zeros({dout.rows(), 2 * axis.width(axis.held.key_value)});  // ranks share key/value heads
  for (std::int64_t r = 0; r < axis.ranks; ++r) {
    const Tensor& part = parts[static_cast<std::size_t>(r)];
    const HeadRange share = share_of(axis, r);
    for_each_slice(dqkv, axis.q(part, share), query_columns(axis)(r),
                   [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
    for_each_slice(dkv, axis.kv(part, share), key_value_columns(axis)(r),
                   [&](const Tensor& sum, const Tensor& term) { ops::accumulate(runtime, term, sum); });
  }
  ops::narrow(runtime, dkv, axis.kv(dqkv, axis.held));
  return dqkv;
}

}  // namespace

Rows context_rows(Rows whole, std::int64_t ranks, std::int64_t rank) {
  const Slice head = even_slice(whole.length, 2 * ranks, rank);
  const Slice tail = even_slice(whole.length, 2 * ranks, 2 * ranks - 1 - rank);
  whole.runs[0] = {head.begin, head.end};
  whole.runs[1] = {tail.begin, tail.end};
  if (head.end == tail.begin || tail.count() == 0) {
    whole.runs[0].end += tail.count();
    whole.runs[1] = {0, 0};
  }
  return whole;
}

std::vector<std::int64_t> ring_steps(const AttentionSpec& spec, std::int64_t length, std::int64_t ranks) {
  const kernels::Band band = kernels::causal_band(length, length, spec.window);
  const auto sees_any = [&](std::int64_t here, std::int64_t there) {
    const Rows queries = context_rows(whole_rows(1, length), ranks, here);
    const Rows keys = context_rows(whole_rows(1, length), ranks, there);
    return std::any_of(queries.runs, queries.runs + runs_of_a_rank, [&](const kernels::Run& q) {
      return std::any_of(keys.runs, keys.runs + runs_of_a_rank,
                         [&](const kernels::Run& k) { return sees(q, k, band); });
    });
  };
  std::vector<std::int64_t> steps;
  for (std::int64_t s = 0; s < ranks; ++s)
    for (std::int64_t rank = 0; rank < ranks; ++rank)
      if (sees_any(rank, (rank - s + ranks) % ranks)) {
        steps.push_back(s);
        break;
      }
  return steps;
}

ContextBytes context_bytes(const AttentionSpec& spec, std::int64_t length, std::int64_t ranks, DType type) {
  // Of tensor rank 0, which has the most heads: so all tensor ranks choose alike.
  const HeadRange held = heads_of(spec, 0);
  const auto positions = static_cast<double>(length) / static_cast<double>(ranks);  // of a rank
  const auto width = [&](std::int64_t heads) { return static_cast<double>(heads * spec.head_width); };
  const auto element = static_cast<double>(size_of(type)), sum = static_cast<double>(size_of(accumulate_type(type)));
  const auto others = static_cast<double>(ranks - 1);
  // Keys and values twice, their gradients once.
  const double once = positions * width(2 * held.key_value.count()) * (2 * element + sum);
  const auto visited = static_cast<double>(ring_steps(spec, length, ranks).size() - 1);
  ContextBytes bytes{.ring = visited * once, .heads = std::numeric_limits<double>::infinity(), .gather = others * once};
  if (spec.heads.heads / spec.heads.ranks < ranks) return bytes;
  std::int64_t heads = 0;  // of all messages of a rank, if it sent one to itself too
  for (std::int64_t r = 0; r < ranks; ++r) {
    const HeadRange share = share_of_heads(spec, 0, ranks, r);
    heads += 2 * share.query.count() + 2 * share.key_value.count();
  }
  bytes.heads = 2 * positions * width(heads) * element * others / static_cast<double>(ranks);
  return bytes;
}

ContextKind context_kind(ContextKind asked, const AttentionSpec& spec, std::int64_t length, std::int64_t ranks,
                         DType type) {
  if (asked != ContextKind::automatic) return asked;
  const ContextBytes bytes = context_bytes(spec, length, ranks, type);
  if (bytes.ring <= std::min(bytes.heads, bytes.gather)) return ContextKind::ring;
  return bytes.heads <= bytes.gather ? ContextKind::heads : ContextKind::gather;
}

static ContextKind kind_of(const ContextAxis& axis, DType type) {
  return context_kind(axis.context.kind, axis.spec, axis.rows.length, axis.ranks, type);
}

Tensor attend(const Tensor& qkv, const AttentionSpec& spec, Attended& saved, Context& context) {
  const ContextAxis axis{spec, context};
  if (axis.ranks == 1) return attend_here(axis, qkv, axis.held, saved);
  switch (kind_of(axis, qkv.dtype())) {
    case ContextKind::gather:
      return attend_gathered(axis, qkv, saved);
    case ContextKind::heads:
      return attend_by_heads(axis, qkv, saved);
    case ContextKind::automatic:
    case ContextKind::ring:
      break;
  }
  return attend_in_a_ring(axis, qkv, saved);
}

Tensor attend_backward(const Tensor& dout, const AttentionSpec& spec, const Attended& saved, Context& context) {
  const ContextAxis axis{spec, context};
  if (axis.ranks == 1) return attend_here_backward(axis, dout, axis.held, saved);
  switch (kind_of(axis, dout.dtype())) {
    case ContextKind::gather:
      return attend_gathered_backward(axis, dout, saved);
    case ContextKind::heads:
      return attend_by_heads_backward(axis, dout, saved);
    case ContextKind::automatic:
    case ContextKind::ring:
      break;
  }
  return attend_in_a_ring_backward(axis, dout, saved);
}

}  // namespace choir
