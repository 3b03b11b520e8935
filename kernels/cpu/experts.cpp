// The routing of a layer of experts on the CPU, without the way to slots and back (expert_slots.cpp): plain loops,
// divided by rows, or by places and sequences. Every sum has one order, so that the bits do not depend on the number of
// threads.
#include "kernels/experts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/parallel.h"

namespace choir::kernels {
namespace {

using cpu::Part;

template <class A>
struct Scores {
  const A* logits;  // [experts]
  std::int64_t experts;
  ExpertScore kind;
  A largest = 0, sum = 0;

  Scores(const A* of_row, std::int64_t count, ExpertScore score) : logits(of_row), experts(count), kind(score) {
    largest = logits[0];
    for (std::int64_t e = 1; e < experts; ++e) largest = std::max(largest, logits[e]);
    for (std::int64_t e = 0; e < experts; ++e) sum += score_of(e);
  }
  /// Of softmax: before the division by the sum.
  A score_of(std::int64_t e) const {
    return kind == ExpertScore::softmax ? std::exp(logits[e] - largest) : A(1) / (A(1) + std::exp(-logits[e]));
  }
  A share(std::int64_t e) const { return score_of(e) / sum; }
  /// d score / d logit = score * slope, up to a factor that is the same for all experts.
  A slope(std::int64_t e) const { return kind == ExpertScore::softmax ? A(1) : A(1) - score_of(e); }
};

template <class A>
void route_rows(const Route<A>& args, Part rows) {
  std::vector<A> keys(static_cast<std::size_t>(args.experts));
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const A* logits = args.logits + row * args.experts;
    std::int32_t* choices = args.choices + row * args.chosen;
    A* weights = args.weights + row * args.chosen;
    if (args.given == nullptr) route_keys(logits, args.bias, args.experts, args.score, keys.data());
    A before = 0;
    for (std::int64_t j = 0; j < args.chosen; ++j) {
      if (args.given != nullptr) {
        choices[j] = args.given[row * args.chosen + j];
        continue;
      }
      std::int64_t best = -1;
      A best_key = 0;
      for (std::int64_t e = 0; e < args.experts; ++e) {
        const A of_e = keys[static_cast<std::size_t>(e)];
        const bool later = j == 0 || of_e < before || (of_e == before && e > choices[j - 1]);
        if (!later || !(best < 0 || of_e > best_key) || std::isnan(of_e)) continue;
        best = e;
        best_key = of_e;
      }
      choices[j] = static_cast<std::int32_t>(best < 0 ? j : best);  // of NaN: any, its weight says so
      before = best_key;
    }
    A largest = logits[choices[0]], sum = 0;
    for (std::int64_t j = 1; j < args.chosen; ++j) largest = std::max(largest, logits[choices[j]]);
    for (std::int64_t j = 0; j < args.chosen; ++j) {
      weights[j] = args.score == ExpertScore::softmax ? std::exp(logits[choices[j]] - largest)
                                                      : A(1) / (A(1) + std::exp(-logits[choices[j]]));
      sum += weights[j];
    }
    for (std::int64_t j = 0; j < args.chosen; ++j) weights[j] /= sum;
  }
}

/// How often sequence `s` chose expert e, on all context ranks.
template <class A>
A chosen_by_sequence(const Balance& balance, const RowMap& map, std::int64_t experts, std::int64_t s, std::int64_t e) {
  std::int64_t sum = 0;
  for (std::int64_t rank = 0; rank < balance.ranks; ++rank)
    for (int run = 0; run < 2; ++run) sum += balance.counts[((rank * map.sequences + s) * 2 + run) * experts + e];
  return static_cast<A>(sum);
}

/// The sum over e of c_e p_e.
template <class A>
A balance_of_row(const Scores<A>& scores, const Balance& balance, const RowMap& map, std::int64_t row) {
  const std::int64_t s = map.place(row).sequence;
  A sum = 0;
  for (std::int64_t e = 0; e < scores.experts; ++e)
    sum += chosen_by_sequence<A>(balance, map, scores.experts, s, e) * scores.share(e);
  return sum;
}

template <class A>
void route_backward_rows(const RouteBackward<A>& args, Part rows) {
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int32_t* choices = args.choices + row * args.chosen;
    const A *weights = args.weights + row * args.chosen, *dweights = args.dweights + row * args.chosen;
    A* dlogits = args.dlogits + row * args.experts;
    const Scores<A> scores(args.logits + row * args.experts, args.experts, args.score);
    if (args.balance.counts != nullptr) {
      const A mean = balance_of_row(scores, args.balance, args.map, row);
      const std::int64_t s = args.map.place(row).sequence;
      for (std::int64_t e = 0; e < args.experts; ++e)
        dlogits[e] = static_cast<A>(args.balance.factor) * scores.share(e) * scores.slope(e) *
                     (chosen_by_sequence<A>(args.balance, args.map, args.experts, s, e) - mean);
    } else {
      std::fill_n(dlogits, args.experts, A(0));
    }
    A mean = 0;
    for (std::int64_t j = 0; j < args.chosen; ++j) mean += weights[j] * dweights[j];
    for (std::int64_t j = 0; j < args.chosen; ++j)
      dlogits[choices[j]] += weights[j] * scores.slope(choices[j]) * (dweights[j] - mean);
  }
}

template <class A>
void balance_terms(const ExpertSums<A>& args, Part rows) {
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const Scores<A> scores(args.logits + row * args.experts, args.experts, args.score);
    args.terms[row] = balance_of_row(scores, args.balance, args.map, row);
  }
}

/// The row of the i-th position of a run, of sequence s.
std::int64_t row_of(const RowMap& map, int run, std::int64_t s, std::int64_t i) {
  return (run == 0 ? 0 : map.sequences * map.runs[0].count()) + s * map.runs[run].count() + i;
}

/// The first of a row's choices that is e; -1: none. Later ones of the same expert (of NaN) get no slot.
std::int64_t choice_of(const std::int32_t* choices, std::int64_t chosen, std::int64_t e) {
  const auto* const found = std::find(choices, choices + chosen, static_cast<std::int32_t>(e));
  return found == choices + chosen ? -1 : found - choices;
}

void count_part(const CountChoices& args, Part items) {
  for (std::int64_t item = items.begin; item < items.end; ++item) {
    const std::int64_t e = item % args.experts, s = item / args.experts;
    for (int run = 0; run < 2; ++run) {
      std::int32_t count = 0;
      for (std::int64_t i = 0; i < args.map.runs[run].count(); ++i)
        if (choice_of(args.choices + row_of(args.map, run, s, i) * args.chosen, args.chosen, e) >= 0) ++count;
      args.counts[(s * 2 + run) * args.experts + e] = count;
    }
  }
}

void assign_part(const AssignSlots& args, Part items) {
  const std::int64_t experts = args.places.experts, sequences = args.map.sequences;
  for (std::int64_t item = items.begin; item < items.end; ++item) {
    const std::int64_t s = item % sequences, e = args.places.expert(item / sequences);
    const std::int64_t first = item * args.per_sequence;
    std::int64_t used = 0;
    for (int run = 0; run < 2 && e >= 0; ++run) {
      std::int64_t earlier = args.cached != nullptr && run == 0 && args.map.runs[0].begin > 0 ? args.cached[e] : 0;
      for (std::int64_t rank = 0; rank < args.context_ranks; ++rank)
        for (int other = 0; other < 2; ++other)
          if (args.order(rank, other) < args.order(args.context_rank, run))
            earlier += args.counts[((rank * sequences + s) * 2 + other) * experts + e];
      for (std::int64_t i = 0; i < args.map.runs[run].count(); ++i) {
        const std::int64_t row = row_of(args.map, run, s, i);
        const std::int64_t j = choice_of(args.choices + row * args.chosen, args.chosen, e);
        for (std::int64_t twice = j + 1; j >= 0 && twice < args.chosen; ++twice)
          if (args.choices[row * args.chosen + twice] == e) args.slots[row * args.chosen + twice] = -1;
        if (j < 0) continue;
        const bool kept = earlier++ < args.capacity;
        args.slots[row * args.chosen + j] = kept ? static_cast<std::int32_t>(first + used) : -1;
        if (kept) args.rows_of_slots[first + used++] = static_cast<std::int32_t>(row * args.chosen + j);
      }
      if (args.cached != nullptr && run == 0) args.cached[e] = static_cast<std::int32_t>(earlier);
    }
    for (; used < args.per_sequence; ++used) args.rows_of_slots[first + used] = -1;
  }
}

template <class Body>
void over(Cpu cpu, std::int64_t items, std::int64_t elements, const Body& body) {
  cpu::for_each_part(cpu::num_parts(cpu, items, elements), items, 1, body);
}

}  // namespace

template <class A>
void route_keys(const A* logits, const A* bias, std::int64_t experts, ExpertScore score, A* keys) {
  if (bias == nullptr) {
    std::copy_n(logits, experts, keys);
    return;
  }
  const Scores<A> scores(logits, experts, score);
  for (std::int64_t e = 0; e < experts; ++e)
    keys[e] = (score == ExpertScore::softmax ? scores.share(e) : scores.score_of(e)) + bias[e];
}

template <class A>
void route(Cpu cpu, const Route<A>& args) {
  over(cpu, args.rows, args.experts * (args.chosen + 8), [&](Part part) { route_rows(args, part); });
}

template <class A>
void route_backward(Cpu cpu, const RouteBackward<A>& args) {
  over(cpu, args.rows, args.experts * 16, [&](Part part) { route_backward_rows(args, part); });
}

template <class A>
void add_expert_sums(Cpu cpu, const ExpertSums<A>& args) {
  std::int64_t dropped = 0;
  for (std::int64_t i = 0; i < args.rows * args.chosen; ++i) dropped += args.slots[i] < 0 ? 1 : 0;
  args.sums[0] += static_cast<double>(args.rows * args.chosen);
  args.sums[1] += static_cast<double>(dropped);
  if (args.balance.counts == nullptr) return;
  over(cpu, args.rows, args.experts * 16, [&](Part part) { balance_terms(args, part); });
  double sum = 0;
  for (std::int64_t row = 0; row < args.rows; ++row) sum += static_cast<double>(args.terms[row]);
  args.sums[2] += args.balance.factor * sum;
}

void count_choices(Cpu cpu, const CountChoices& args) {
  over(cpu, args.map.sequences * args.experts, args.map.positions() * args.chosen,
       [&](Part part) { count_part(args, part); });
}

template <class A>
void add_imbalance(Cpu, const AddImbalance<A>& args) {
  for (std::int64_t e = 0; e < args.experts; ++e) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < args.sequences * 2; ++i) count += args.counts[i * args.experts + e];
    args.gradient[e] += static_cast<A>(args.experts * count - args.choices);
  }
}

void assign_slots(Cpu cpu, const AssignSlots& args) {
  over(cpu, args.places.count() * args.map.sequences, args.map.positions() * args.chosen,
       [&](Part part) { assign_part(args, part); });
}

template void route_keys(const float*, const float*, std::int64_t, ExpertScore, float*);
template void route_keys(const double*, const double*, std::int64_t, ExpertScore, double*);
template void route(Cpu, const Route<float>&);
template void route(Cpu, const Route<double>&);
template void route_backward(Cpu, const RouteBackward<float>&);
template void route_backward(Cpu, const RouteBackward<double>&);
template void add_expert_sums(Cpu, const ExpertSums<float>&);
template void add_expert_sums(Cpu, const ExpertSums<double>&);
template void add_imbalance(Cpu, const AddImbalance<float>&);
template void add_imbalance(Cpu, const AddImbalance<double>&);

}  // namespace choir::kernels
