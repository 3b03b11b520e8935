// The routing of heads on the CPU: plain loops, divided by sequences and heads.
#include "kernels/head_routing.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"

namespace choir::kernels {
namespace {

using cpu::Part;

/// Calls body(row, gate) for the rows of a head, by ascending position.
template <class A, class Body>
void for_each_row_of_head(const HeadRows<A>& args, std::int64_t sequence, std::int64_t head, const Body& body) {
  const std::int64_t routed = args.first_head + head - args.always;
  if (routed < 0) {
    for (std::int64_t i = 0; i < args.map.positions(); ++i) body(args.map.row_at(sequence, i), A(1));
    return;
  }
  const std::int32_t* of_head =
      args.rows_of_routed + (routed * args.map.sequences + sequence) * args.routed_per_sequence;
  for (std::int64_t i = 0; i < args.routed_per_sequence && of_head[i] >= 0; ++i)
    body(of_head[i] / args.chosen, static_cast<A>(args.chosen) * args.weights[of_head[i]]);
}

template <class A>
void rows_of_heads(const HeadRows<A>& args, Part items) {
  const VisiblePairs<std::int64_t> pairs(args.band, args.map.last_position() + 1, args.keys);
  for (std::int64_t item = items.begin; item < items.end; ++item) {
    const std::int64_t sequence = item / args.heads, head = item % args.heads;
    for (std::int64_t i = 0; i < args.map.positions(); ++i) {
      const std::int64_t at = args.map.row_at(sequence, i) * args.heads + head;
      args.gates[at] = 0;
      args.slots[at] = -1;
    }
    DocumentRange* of_slots = args.ranges + item * (args.per_sequence + args.keys);
    DocumentRange* of_keys = of_slots + args.per_sequence;
    const auto shift = static_cast<std::int32_t>(args.per_sequence);
    std::int64_t used = 0;
    for_each_row_of_head(args, sequence, head, [&](std::int64_t row, A gate) {
      const std::int64_t slot = (sequence * args.per_sequence + used) * args.heads + head, at = row * args.heads + head;
      args.gates[at] = gate;
      args.slots[at] = static_cast<std::int32_t>(slot);
      args.rows_of_slots[slot] = static_cast<std::int32_t>(at);
      const auto keys = keys_at_position(pairs, args.documents, sequence, args.map.position(row));
      of_slots[used++] = {shift + static_cast<std::int32_t>(keys.begin), shift + static_cast<std::int32_t>(keys.end)};
    });
    const std::int32_t end = used > 0 ? of_slots[used - 1].end : shift;
    for (std::int64_t i = used; i < args.per_sequence; ++i) {
      of_slots[i] = {end, end};
      args.rows_of_slots[(sequence * args.per_sequence + i) * args.heads + head] = -1;
    }
    std::int64_t first = 0, last = 0;  // of the slots that see the key
    for (std::int64_t key = 0; key < args.keys; ++key) {
      while (first < used && of_slots[first].end - shift <= key) ++first;
      while (last < used && of_slots[last].begin - shift <= key) ++last;
      of_keys[key] = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(last)};
    }
  }
}

template <class A>
void weight_gradient_of_rows(const HeadWeightGradient<A>& args, Part rows) {
  for (std::int64_t i = rows.begin * args.chosen; i < rows.end * args.chosen; ++i) {
    const std::int64_t head = args.always + args.choices[i] - args.first_head;
    const bool held = 0 <= head && head < args.heads;
    args.dweights[i] = held ? static_cast<A>(args.chosen) * args.dgates[i / args.chosen * args.heads + head] : A(0);
  }
}

}  // namespace

template <class A>
void compute_head_rows(Cpu cpu, const HeadRows<A>& args) {
  const std::int64_t items = args.map.sequences * args.heads;
  cpu::for_each_part(cpu::num_parts(cpu, items, args.map.positions() * 8), items, 1,
                     [&](Part part) { rows_of_heads(args, part); });
}

template <class A>
void head_weight_gradient(Cpu cpu, const HeadWeightGradient<A>& args) {
  cpu::for_each_part(cpu::num_parts(cpu, args.rows, args.chosen), args.rows, 1,
                     [&](Part part) { weight_gradient_of_rows(args, part); });
}

void add_head_counts(Cpu cpu, const HeadCounts& args) {
  cpu::for_each_part(cpu::num_parts(cpu, args.heads, args.slots), args.heads, 1, [&](Part heads) {
    for (std::int64_t head = heads.begin; head < heads.end; ++head) {
      const std::int32_t* slots = args.rows_of_routed + head * args.slots;
      const auto used = std::count_if(slots, slots + args.slots, [](std::int32_t row) { return row >= 0; });
      args.sums[head] += static_cast<double>(used);
    }
  });
}

template void compute_head_rows(Cpu, const HeadRows<float>&);
template void compute_head_rows(Cpu, const HeadRows<double>&);
template void head_weight_gradient(Cpu, const HeadWeightGradient<float>&);
template void head_weight_gradient(Cpu, const HeadWeightGradient<double>&);

}  // namespace choir::kernels
