// Context parallelism by heads: between two exchanges a rank has all positions of a share of the heads. Jacobs et al.
// 2023, arXiv 2309.14509

#include <utility>

#include "framework/parallel/context_axis.h"

namespace choir {
namespace {

/// Tensors for all ranks, which are released, and from all ranks. The one for this rank stays: the same handle.
std::vector<Tensor> exchange_with_all(const ContextAxis& axis, std::vector<Tensor> outgoing,
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
  std::vector<Tensor> incoming = exchange_with_all(axis, std::move(outgoing), [&](std::int64_t r) {
    return Shape{axis.rows_of(r).count(), width};
  });
  const Tensor whole = runtime.empty({axis.rows.sequences * axis.rows.length, width}, x.dtype());
  for (std::int64_t r = 0; r < axis.ranks; ++r) {
    Tensor& part = incoming[static_cast<std::size_t>(r)];
    for_each_run(part, axis.rows_of(r), whole,
                 [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
    part = {};
  }
  return whole;
}

/// The way back: whole [B * T, the columns of this rank], which is released -> from each rank its columns, [N, ...].
std::vector<Tensor> to_positions(const ContextAxis& axis, Tensor whole, const ColumnsOf& columns_of) {
  Runtime& runtime = axis.runtime;
  std::vector<Tensor> outgoing;
  for (std::int64_t r = 0; r < axis.ranks; ++r) {
    const Rows rows = axis.rows_of(r);
    outgoing.push_back(runtime.empty({rows.count(), whole.width()}, whole.dtype()));
    for_each_run(outgoing.back(), rows, whole,
                 [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  }
  whole = {};
  return exchange_with_all(axis, std::move(outgoing), [&](std::int64_t r) {
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

}  // namespace

Tensor attend_by_heads(const ContextAxis& axis, const Tensor& qkv, Attended& saved) {
  return exchange_out(axis,
                      attend_here(axis, to_heads(axis, qkv, all_columns(axis)), share_of(axis, axis.rank), saved));
}

Tensor exchange_out(const ContextAxis& axis, const Tensor& out) {
  Runtime& runtime = axis.runtime;
  const std::vector<Tensor> parts = to_positions(axis, out, query_columns(axis));
  const Tensor here = runtime.empty({axis.rows.count(), axis.width(axis.held.query)}, out.dtype());
  for (std::int64_t r = 0; r < axis.ranks; ++r)
    for_each_slice(here, parts[static_cast<std::size_t>(r)], query_columns(axis)(r),
                   [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  return here;
}

Tensor attend_by_heads_backward(const ContextAxis& axis, const Tensor& dout, const Attended& saved) {
  Runtime& runtime = axis.runtime;
  const std::vector<Tensor> parts = to_positions(
      axis, attend_here_backward(axis, to_heads(axis, dout, query_columns(axis)), share_of(axis, axis.rank), saved),
      all_columns(axis));
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

}  // namespace choir
