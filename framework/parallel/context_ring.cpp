// Context parallelism in a ring: keys and values travel while a rank computes with those it has. Liu et al. 2023, arXiv
// 2310.01889

#include <limits>

#include "framework/parallel/context_axis.h"

namespace choir {
namespace {

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
  Stream& communicate = axis.communicator.stream();
  Event ready;
  ready.record(axis.runtime.device.compute());
  ready.wait(communicate);
  axis.communicator.exchange(sends, receives, communicate, "ring");
  pending.done.record(communicate);
  pending.call = axis.communicator.last_call();
  return pending;
}

/// Calls body(query run, key run) for the runs here that see keys of `other`.
void for_each_pair(const ContextAxis& axis, const Rows& other, const std::function<void(int, int)>& body) {
  for (int keys = 0; keys < runs_of_a_rank; ++keys)
    for (int queries = 0; queries < runs_of_a_rank; ++queries)
      if (sees(axis.rows.runs[queries], other.runs[keys], axis.spec.band)) body(queries, keys);
}

}  // namespace

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
  for (int run = 0; run < runs_of_a_rank; ++run)
    if (!axis.rows.runs[run].empty())
      axis.add_sinks(axis.held, of_run(total, axis.rows, run), lse_of_run(total_lse, axis.rows, run, heads));
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
  for (int run = 0; run < runs_of_a_rank; ++run)
    if (!axis.rows.runs[run].empty())
      axis.add_sinks_backward(axis.held, of_run(saved.out, axis.rows, run),
                              lse_of_run(saved.lse, axis.rows, run, heads), of_run(dout, axis.rows, run));
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

}  // namespace choir
