// The routing of attention's heads: kernels/head_routing.h says what each operation computes.
#pragma once

#include "framework/ops/experts.h"
#include "kernels/band.h"

namespace choir::ops {

/// Which rows the H heads held here compute, of N rows in B sequences; and where: in S slots of each sequence and head,
/// with T keys of each sequence. As of experts, row n of head h is row n * H + h of a tensor [N * H, ...].
struct HeadRows {
  Slots slots;    ///< of_rows [N * H, 1], rows_of_slots [B * S * H] i32
  Tensor gates;   ///< [N * H, 1] f32 (f64 in tests)
  Tensor ranges;  ///< [B * H * (S + T), 2] i32: AttentionOptions::documents of heads, in which key j is S + j
  std::int64_t per_sequence = 1;  ///< S
};

/// What the tensors do not say.
struct HeadRowsRule {
  std::int64_t always = 0;                 ///< heads of the layer from here on are routed
  std::int64_t first_head = 0, heads = 1;  ///< held here
  std::int64_t routed_per_sequence = 1;    ///< SlotRule::per_sequence
  std::int64_t per_sequence = 1;           ///< S
  std::int64_t keys = 1;                   ///< T: key j stands at position j
  kernels::Band band;                      ///< between positions
  Tensor documents{};                      ///< [B * positions, 2] i32, or empty: AttentionOptions::documents
};

/// `routed` slots are those of experts, of which each is a routed head.
HeadRows head_rows(Runtime&, const Routed&, const Slots& routed, const HeadRowsRule&, const kernels::RowMap&);

/// dgates [N * H, 1] -> the gradient of Routed::weights [N, k], by the heads held here
Tensor head_weight_gradient(Runtime&, const Tensor& dgates, const Routed&, const HeadRowsRule&);

/// sums [routed heads] f64 += the rows that each computes
void add_head_counts(Runtime&, const Slots& routed, const Tensor& sums);

}  // namespace choir::ops
