// The routing of a layer of experts: kernels/experts.h says what each operation computes.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/experts.h"

namespace choir::ops {

using kernels::ExpertScore;

/// For N rows with k choices each.
struct Routed {
  Tensor choices;  ///< [N, k] i32
  Tensor weights;  ///< [N, k] f32 (f64 in tests)
};

/// logits [N, experts] f32 (f64 in tests). `bias` [experts] and `given` [N, k] i32 may be empty.
Routed route(Runtime&, const Tensor& logits, const Tensor& bias, const Tensor& given, std::int64_t chosen, ExpertScore);

/// [sequences, 2 runs, experts] i32
Tensor count_choices(Runtime&, const Tensor& choices, std::int64_t experts, const kernels::RowMap&);

/// gradient [experts] f32 (f64 in tests) += experts * (choices of each) - `choices`. counts [sequences, 2, experts] of
/// `choices` choices in all.
void add_imbalance(Runtime&, const Tensor& counts, std::int64_t choices, const Tensor& gradient);

struct Slots {
  Tensor of_rows;        ///< [N, k] i32
  Tensor rows_of_slots;  ///< [places * sequences * per_sequence] i32
};

/// Of an expert and one sequence.
struct SlotRule {
  std::int64_t capacity = 1;      ///< rows of the whole sequence
  std::int64_t per_sequence = 1;  ///< slots here: no fewer than min(capacity, positions held)
  kernels::ExpertPlaces places;
  std::int64_t context_ranks = 1, context_rank = 0;
};

/// counts [context ranks, sequences, 2, experts] i32: count_choices() of all context ranks. `cached` [experts] i32 in
/// generation, else empty.
Slots assign_slots(Runtime&, const Tensor& choices, const Tensor& counts, const Tensor& cached, const SlotRule&,
                   const kernels::RowMap&);

/// x [N, D] -> [slots, D], scaled by `weights` [N, k] unless that is empty
Tensor gather_slots(Runtime&, const Tensor& x, const Tensor& weights, const Slots&);
/// x [slots, D] -> [N, D], scaled by `weights` [N, k] unless that is empty
Tensor combine_slots(Runtime&, const Tensor& x, const Tensor& weights, const Slots&);
/// The gradient of the weights of combine_slots(): dy [N, D] and x [slots, D] -> [N, k]
Tensor combine_weight_gradient(Runtime&, const Tensor& dy, const Tensor& x, const Slots&);

/// The balance loss of all rows is factor * sum of c_e p_e. `counts` as in assign_slots(); empty: no such loss.
struct BalanceLoss {
  Tensor counts;
  double factor = 0;
};

/// dlogits [N, experts], from the gradient of the weights and of the balance loss
Tensor route_gradient(Runtime&, const Tensor& logits, const Routed&, const Tensor& dweights, ExpertScore,
                      const BalanceLoss&, const kernels::RowMap&);

/// sums [3] f64 += choices, choices without a slot, balance loss
void add_expert_sums(Runtime&, const Tensor& logits, const Slots&, ExpertScore, const BalanceLoss&, const Tensor& sums,
                     const kernels::RowMap&);

}  // namespace choir::ops
