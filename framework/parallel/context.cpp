#include "framework/parallel/context.h"

#include <algorithm>
#include <limits>

#include "framework/parallel/context_axis.h"
#include "framework/parallel/head_slots.h"

namespace choir {

Rows context_rows(Rows whole, std::int64_t ranks, std::int64_t rank) {
  const Slice head = even_slice(whole.length, 2 * ranks, rank);
  const Slice tail = even_slice(whole.length, 2 * ranks, 2 * ranks - 1 - rank);
  whole.runs[0] = {head.begin, head.end};
  whole.runs[1] = {tail.begin, tail.end};
  const bool is_all = head.begin == 0 && head.end == tail.begin && tail.end == whole.length;
  if (is_all) whole.runs[0].end = tail.end;
  if (is_all || tail.count() == 0) whole.runs[1] = {0, 0};
  return whole;
}

std::int64_t most_positions(const Rows& held, std::int64_t ranks) {
  std::int64_t most = held.positions();
  for (std::int64_t rank = 0; ranks > 1 && rank < ranks; ++rank)
    most = std::max(most, context_rows(whole_rows(1, held.length), ranks, rank).positions());
  return most;
}

std::vector<std::int64_t> ring_steps(const AttentionSpec& spec, std::int64_t length, std::int64_t ranks) {
  const auto sees_any = [&](std::int64_t here, std::int64_t there) {
    const Rows queries = context_rows(whole_rows(1, length), ranks, here);
    const Rows keys = context_rows(whole_rows(1, length), ranks, there);
    return std::any_of(queries.runs, queries.runs + runs_of_a_rank, [&](const kernels::Run& q) {
      return std::any_of(keys.runs, keys.runs + runs_of_a_rank,
                         [&](const kernels::Run& k) { return sees(q, k, spec.band); });
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

ContextWork context_work(const AttentionSpec& spec, ContextKind kind, std::int64_t length, std::int64_t ranks,
                         std::int64_t rank) {
  const Rows here = context_rows(whole_rows(1, length), ranks, rank);
  ContextWork work{.positions = {here.runs[0].count(), here.runs[1].count()}};
  for (const std::int64_t s : ring_steps(spec, length, ranks)) {
    const Rows there = context_rows(whole_rows(1, length), ranks, (rank - s + ranks) % ranks);
    ContextWork::Step step;
    for (const kernels::Run& q : here.runs)
      for (const kernels::Run& k : there.runs) {
        if (!sees(q, k, spec.band)) continue;
        ++step.blocks;
        step.pairs += kernels::VisiblePairs<std::int64_t>(kernels::band_between(spec.band, q.begin, k.begin), q.count(),
                                                          k.count())
                          .count();
      }
    work.steps.push_back(step);
  }
  work.slots = slots_of_heads(spec, here, ranks);
  if (kind != ContextKind::heads) return work;
  const HeadRange share = share_of_heads(spec, spec.tensor_rank, ranks, rank);
  work.heads = share.query.count();
  work.kv_heads = share.key_value.count();
  work.group_offset = share.query.begin % spec.heads.group_size();
  return work;
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
  std::int64_t heads = 0;                     // of all messages of a rank, if it sent one to itself too
  for (std::int64_t r = 0; r < ranks; ++r) {  // q, k, v and out; out again, dout, dq, dk, dv
    const HeadRange share = share_of_heads(spec, 0, ranks, r);
    heads += 5 * share.query.count() + 4 * share.key_value.count();
  }
  bytes.heads = positions * width(heads) * element * others / static_cast<double>(ranks);
  return bytes;
}

ContextKind context_kind(ContextKind asked, const AttentionSpec& spec, std::int64_t length, std::int64_t ranks,
                         DType type) {
  if (spec.routing.chosen > 0) return ContextKind::gather;
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

Tensor attended_here(const Tensor& out, const AttentionSpec& spec, Context& context) {
  const ContextAxis axis{spec, context};
  return axis.ranks > 1 && kind_of(axis, out.dtype()) == ContextKind::heads ? exchange_out(axis, out) : out;
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
