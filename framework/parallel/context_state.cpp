#include "framework/parallel/context_state.h"

#include <algorithm>

#include "framework/ops/linear_attention.h"
#include "framework/parallel/context_axis.h"

namespace choir {
namespace {

/// A run of positions of one of the ranks.
struct PlacedRun {
  std::int64_t begin, rank;
  int run;
  std::int64_t row() const { return rank * runs_of_a_rank + run; }  // in what is gathered
};

enum Direction { to_the_right, to_the_left };

/// Those in which states go.
std::vector<Direction> directions(const ContextAxis& axis) {
  if (axis.spec.band.last > 0) return {to_the_right, to_the_left};
  return {to_the_right};
}

std::vector<PlacedRun> runs_in_order(const ContextAxis& axis, Direction direction) {
  std::vector<PlacedRun> runs;
  for (std::int64_t rank = 0; rank < axis.ranks; ++rank)
    for (int run = 0; run < runs_of_a_rank; ++run)
      if (const kernels::Run& positions = axis.rows_of(rank).runs[run]; !positions.empty())
        runs.push_back({positions.begin, rank, run});
  std::sort(runs.begin(), runs.end(), [direction](const PlacedRun& a, const PlacedRun& b) {
    return direction == to_the_right ? a.begin < b.begin : a.begin > b.begin;
  });
  return runs;
}

ops::LinearAttentionOptions options_of(const ContextAxis& axis, Direction direction) {
  return {.batch = axis.rows.sequences,
          .heads = axis.held.query.count(),
          .head_width = axis.spec.head_width,
          .reverse = direction == to_the_left};
}

/// Rows of states, by direction and of all heads of all sequences, with their totals behind them: numbers, or matrices.
struct StateRow {
  bool matrices;
  std::int64_t states, elements, elements_of_total, width_of_states, width_of_totals;
  StateRow(const ContextAxis& axis, const Tensor& log_rate)
      : matrices(log_rate),
        states(axis.rows.sequences * axis.held.query.count()),
        elements(axis.spec.head_width * axis.spec.head_width),
        elements_of_total(matrices ? elements : 1),
        width_of_states(std::ssize(directions(axis)) * states * elements),
        width_of_totals(std::ssize(directions(axis)) * states * elements_of_total) {}

  std::int64_t width() const { return width_of_states + width_of_totals; }
  Tensor state(const Tensor& rows, std::int64_t row, Direction direction) const {
    const std::int64_t begin = direction * states * elements;
    return rows.slice_rows(row, row + 1).slice_columns(begin, begin + states * elements).reshape({states, elements});
  }
  Tensor totals(const Tensor& rows) const { return rows.slice_columns(width_of_states, width()); }
  Tensor total(const Tensor& totals, std::int64_t row, Direction direction) const {
    const std::int64_t begin = direction * states * elements_of_total;
    const Tensor one = totals.slice_rows(row, row + 1).slice_columns(begin, begin + states * elements_of_total);
    return matrices ? one.reshape({states, elements}) : one.reshape({states});
  }
};

Tensor part_or_empty(const Tensor& x, const Rows& rows, int run) { return x ? of_run(x, rows, run) : Tensor{}; }

Tensor gather(const ContextAxis& axis, const Tensor& mine, const char* label) {
  const Tensor all = axis.runtime.empty({axis.ranks * mine.rows(), mine.width()}, mine.dtype());
  axis.communicator.all_gather(mine, all, axis.runtime.device.compute(), label);
  return all;
}

Tensor copy_of(Runtime& runtime, const Tensor& x) {
  const Tensor copy = runtime.empty({x.rows(), x.width()}, x.dtype());
  ops::copy(runtime, x, copy);
  return copy;
}

/// The states before the runs held here, and the totals of all runs.
void find_states(const ContextAxis& axis, StatesAttended& saved) {
  if (axis.ranks == 1) return;
  Runtime& runtime = axis.runtime;
  const StateRow row(axis, saved.log_rate);
  const Tensor mine = axis.zeros({runs_of_a_rank, row.width()}), kv = axis.kv(saved.qkv, axis.held);
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    for (const Direction direction : directions(axis))
      ops::linear_attention_state(runtime, options_of(axis, direction), of_run(axis.k(kv), axis.rows, run),
                                  of_run(axis.v(kv), axis.rows, run), of_run(saved.log_decay, axis.rows, run),
                                  row.state(mine, run, direction), row.total(row.totals(mine), run, direction),
                                  part_or_empty(saved.log_rate, axis.rows, run));
  }
  const Tensor all = gather(axis, mine, "states");
  saved.totals = keep(copy_of(runtime, row.totals(all)));
  for (const Direction direction : directions(axis)) {
    const Tensor state = axis.zeros({row.states, row.elements});
    for (const PlacedRun& placed : runs_in_order(axis, direction)) {
      if (placed.rank == axis.rank) saved.states[direction][placed.run] = keep(copy_of(runtime, state));
      ops::carry_state(runtime, row.state(all, placed.row(), direction),
                       row.total(saved.totals, placed.row(), direction), state);
    }
  }
}

/// The gradients of the states after the runs held here, by direction.
void find_gradients(const ContextAxis& axis, const Tensor& dout, const StatesAttended& saved, Tensor (&dlast)[2][2]) {
  if (axis.ranks == 1) return;
  Runtime& runtime = axis.runtime;
  const StateRow row(axis, saved.log_rate);
  const Tensor mine = axis.zeros({runs_of_a_rank, row.width_of_states});
  const Tensor q = axis.q(saved.qkv, axis.held), k = axis.k(axis.kv(saved.qkv, axis.held));
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    for (const Direction direction : directions(axis))
      ops::linear_attention_state_gradient(runtime, options_of(axis, direction), of_run(q, axis.rows, run),
                                           of_run(k, axis.rows, run), of_run(dout, axis.rows, run),
                                           of_run(saved.log_decay, axis.rows, run), row.state(mine, run, direction),
                                           part_or_empty(saved.log_rate, axis.rows, run));
  }
  const Tensor all = gather(axis, mine, "gradients of states");
  for (const Direction direction : directions(axis)) {
    const Tensor dstate = axis.zeros({row.states, row.elements});
    for (const PlacedRun& placed : runs_in_order(axis, direction == to_the_right ? to_the_left : to_the_right)) {
      if (placed.rank == axis.rank) dlast[direction][placed.run] = copy_of(runtime, dstate);
      ops::carry_state(runtime, row.state(all, placed.row(), direction),
                       row.total(saved.totals, placed.row(), direction), dstate,
                       /*gradient=*/true);
    }
  }
}

}  // namespace

Tensor attend_to_states(const Tensor& qkv, const Tensor& log_decay, const Tensor& log_rate, const AttentionSpec& spec,
                        StatesAttended& saved, Context& context) {
  const ContextAxis axis{spec, context};
  saved.qkv = keep(qkv);
  saved.log_decay = keep(log_decay);
  saved.log_rate = log_rate ? keep(log_rate) : Tensor{};
  find_states(axis, saved);
  const Tensor q = axis.q(qkv, axis.held), kv = axis.kv(qkv, axis.held);
  const Tensor out = axis.runtime.empty({q.rows(), q.width()}, q.dtype());
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    const auto part = [&](const Tensor& x) { return of_run(x, axis.rows, run); };
    for (const Direction direction : directions(axis))
      ops::linear_attention(axis.runtime, options_of(axis, direction), part(q), part(axis.k(kv)), part(axis.v(kv)),
                            part(log_decay), saved.states[direction][run], part(out), {},
                            part_or_empty(log_rate, axis.rows, run));
  }
  return out;
}

StateGradients attend_to_states_backward(const Tensor& dout, const AttentionSpec& spec, const StatesAttended& saved,
                                         Context& context) {
  const ContextAxis axis{spec, context};
  Runtime& runtime = axis.runtime;
  Tensor dlast[2][runs_of_a_rank];
  find_gradients(axis, dout, saved, dlast);
  const Tensor q = axis.q(saved.qkv, axis.held), kv = axis.kv(saved.qkv, axis.held);
  const StateGradients gradients{
      .dqkv = runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype()),
      .dlog_decay = runtime.empty({saved.log_decay.rows(), saved.log_decay.width()}, saved.log_decay.dtype()),
      .dlog_rate = saved.log_rate
                       ? runtime.empty({saved.log_rate.rows(), saved.log_rate.width()}, saved.log_rate.dtype())
                       : Tensor{}};
  const Tensor dq = axis.q(gradients.dqkv, axis.held), dkv = axis.kv(gradients.dqkv, axis.held);
  for (int run = 0; run < runs_of_a_rank; ++run) {
    if (axis.rows.runs[run].empty()) continue;
    const auto part = [&](const Tensor& x) { return of_run(x, axis.rows, run); };
    for (const Direction direction : directions(axis))
      ops::linear_attention_backward(runtime, options_of(axis, direction), part(q), part(axis.k(kv)), part(axis.v(kv)),
                                     part(dout), part(saved.log_decay), saved.states[direction][run],
                                     dlast[direction][run], part(dq), part(axis.k(dkv)), part(axis.v(dkv)),
                                     part(gradients.dlog_decay), part_or_empty(saved.log_rate, axis.rows, run),
                                     part_or_empty(gradients.dlog_rate, axis.rows, run));
  }
  return gradients;
}

}  // namespace choir
