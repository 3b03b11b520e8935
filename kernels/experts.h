// The routing of a layer of experts: which experts a token gets, which of their slots, and the way there and back.
//
//   route            each row chooses the `chosen` experts with the highest scores (ties: the lower index); its weights
//                    are the scores of the chosen, normalised: softmax over them, or sigmoid divided by their sum
//   count_choices    how many rows of a sequence choose an expert
//   add_imbalance    by how much an expert is chosen more often than the mean, as a gradient of its bias (Wang et al.
//                    2024, arXiv 2408.15664)
//   assign_slots     an expert computes at most `capacity` rows of each sequence, the first ones by position
//   gather_slots     rows -> slots; slots that nobody has are zero
//   combine_slots    slots -> rows, the weighted sum over the chosen experts
//
// A sequence has `per_sequence` slots of each expert here. The slots of all experts are one array
// [ranks][most experts of a rank][sequences][per_sequence], so that a block of it goes to each rank of the expert axis.
#pragma once

#include <cstdint>

#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

/// A row chooses at most this many experts: one for each thread of a warp.
inline constexpr std::int64_t most_chosen_experts = 32;

enum class ExpertScore : std::uint8_t { softmax, sigmoid };

/// Experts on ranks, as evenly as possible: the first experts % ranks ranks have one more. A rank has a block of
/// most() places; the last one may be empty.
struct ExpertPlaces {
  std::int64_t experts = 1, ranks = 1;
  constexpr std::int64_t most() const { return (experts + ranks - 1) / ranks; }
  constexpr std::int64_t count() const { return most() * ranks; }
  constexpr std::int64_t held(std::int64_t rank) const { return experts / ranks + (rank < experts % ranks ? 1 : 0); }
  constexpr std::int64_t first(std::int64_t rank) const {
    const std::int64_t more = experts % ranks;
    return rank * (experts / ranks) + (rank < more ? rank : more);
  }
  /// The expert at a place; -1: none.
  constexpr std::int64_t expert(std::int64_t place) const {
    const std::int64_t rank = place / most(), index = place - rank * most();
    return index < held(rank) ? first(rank) + index : -1;
  }
};

/// One row each: choices in descending order of their keys. The key is the logit; with a bias, score + bias. The score
/// of softmax is that over all experts.
template <class A>
struct Route {
  const A* logits;            ///< [rows, experts]
  const A* bias;              ///< [experts], or null
  const std::int32_t* given;  ///< [rows, chosen]: choices to use instead, or null
  std::int32_t* choices;      ///< [rows, chosen]
  A* weights;                 ///< [rows, chosen]
  std::int64_t rows, experts, chosen;
  ExpertScore score;
};

/// The keys [experts] of one row, for the CPU.
template <class A>
void route_keys(const A* logits, const A* bias, std::int64_t experts, ExpertScore, A* keys);

/// The expected share of each choice for the balance of experts (Shazeer et al. 2017, arXiv 1701.06538; Fedus et al.
/// 2021, arXiv 2101.03961), of each sequence for itself. p [experts] are the scores of a row divided by their sum, c
/// [experts] how often its sequence chose each expert. The balance loss is factor * sum over rows of sum over e c_e
/// p_e.
struct Balance {
  const std::int32_t* counts = nullptr;  ///< [runs, sequences, 2, experts]: count_choices() of all context ranks
  std::int64_t ranks = 1;                ///< context ranks
  double factor = 0;
};

/// dlogits of route, for the gradient of its weights, plus that of the balance loss (counts null: none).
template <class A>
struct RouteBackward {
  const A* logits;              ///< [rows, experts]
  const std::int32_t* choices;  ///< [rows, chosen]
  const A* weights;             ///< [rows, chosen]
  const A* dweights;            ///< [rows, chosen]
  A* dlogits;                   ///< [rows, experts]
  std::int64_t rows, experts, chosen;
  ExpertScore score;
  RowMap map;
  Balance balance;
};

/// sums[0] += choices, sums[1] += choices without a slot, sums[2] += the balance loss.
template <class A>
struct ExpertSums {
  const A* logits;            ///< [rows, experts]
  const std::int32_t* slots;  ///< [rows, chosen]
  A* terms;                   ///< [rows]: workspace
  double* sums;               ///< [3]
  std::int64_t rows, experts, chosen;
  ExpertScore score;
  RowMap map;
  Balance balance;
};

/// counts[s][run][e] = the rows of one run of sequence s that choose e.
struct CountChoices {
  const std::int32_t* choices;  ///< [rows, chosen]
  std::int32_t* counts;         ///< [sequences, 2, experts]
  std::int64_t experts, chosen;
  RowMap map;
};

/// gradient[e] += experts * (choices of e) - all choices: exact below 2^24 in f32.
template <class A>
struct AddImbalance {
  const std::int32_t* counts;  ///< [sequences, 2, experts]: count_choices()
  A* gradient;                 ///< [experts]
  std::int64_t sequences, experts, choices;
};

/// A row gets a slot of expert e if fewer than `capacity` earlier rows of its sequence chose e: those of earlier runs,
/// of any context rank, by `counts`; those of the run by their positions; in generation those before, in `cached`.
struct AssignSlots {
  const std::int32_t* choices;  ///< [rows, chosen]
  const std::int32_t* counts;   ///< [context ranks, sequences, 2, experts]
  std::int32_t* cached;         ///< [experts], of one sequence with one run: read, and the new counts added; or null
  std::int32_t* slots;          ///< [rows, chosen]: the slot, or -1
  std::int32_t* rows_of_slots;  ///< [places.count() * sequences * per_sequence]: row * chosen + its choice, or -1
  std::int64_t chosen, capacity, per_sequence;
  ExpertPlaces places;
  RowMap map;
  std::int64_t context_ranks = 1, context_rank = 0;
  /// Runs in the order of positions: rank r has number r and, from the other end, 2 ranks - 1 - r.
  constexpr std::int64_t order(std::int64_t rank, int run) const {
    return run == 0 ? rank : 2 * context_ranks - 1 - rank;
  }
};

/// y[i] = weights[c] x[c / chosen] with c = rows_of_slots[i]; zero if that is negative. Without weights: 1.
template <class T>
struct GatherSlots {
  const T* x;                         ///< [rows, width]
  const Accumulate<T>* weights;       ///< [rows, chosen], or null
  const std::int32_t* rows_of_slots;  ///< [slots]
  T* y;                               ///< [slots, width]
  std::int64_t slots, width, chosen;
};

/// y[n] = sum over j of weights[n][j] x[slots[n][j]], in the order of j; negative slots are left out.
template <class T>
struct CombineSlots {
  const T* x;                    ///< [slots, width]
  const Accumulate<T>* weights;  ///< [rows, chosen], or null
  const std::int32_t* slots;     ///< [rows, chosen]
  T* y;                          ///< [rows, width]
  std::int64_t rows, width, chosen;
};

/// dweights[n][j] = the product of dy[n] and x[slots[n][j]], or 0.
template <class T>
struct CombineWeightGradient {
  const T* dy;                ///< [rows, width]
  const T* x;                 ///< [slots, width]
  const std::int32_t* slots;  ///< [rows, chosen]
  Accumulate<T>* dweights;    ///< [rows, chosen]
  std::int64_t rows, width, chosen;
};

template <class A>
void route(Cpu, const Route<A>&);
template <class A>
void route(Cuda, const Route<A>&);
template <class A>
void route_backward(Cpu, const RouteBackward<A>&);
template <class A>
void route_backward(Cuda, const RouteBackward<A>&);
template <class A>
void add_expert_sums(Cpu, const ExpertSums<A>&);
template <class A>
void add_expert_sums(Cuda, const ExpertSums<A>&);
void count_choices(Cpu, const CountChoices&);
void count_choices(Cuda, const CountChoices&);
template <class A>
void add_imbalance(Cpu, const AddImbalance<A>&);
template <class A>
void add_imbalance(Cuda, const AddImbalance<A>&);
void assign_slots(Cpu, const AssignSlots&);
void assign_slots(Cuda, const AssignSlots&);
template <class T>
void gather_slots(Cpu, const GatherSlots<T>&);
template <class T>
void gather_slots(Cuda, const GatherSlots<T>&);
template <class T>
void combine_slots(Cpu, const CombineSlots<T>&);
template <class T>
void combine_slots(Cuda, const CombineSlots<T>&);
template <class T>
void combine_weight_gradient(Cpu, const CombineWeightGradient<T>&);
template <class T>
void combine_weight_gradient(Cuda, const CombineWeightGradient<T>&);

}  // namespace choir::kernels
