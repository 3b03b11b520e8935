// The routing of attention's heads (mixture of heads: Jin et al. 2024, arXiv 2410.11842): the first heads of a layer
// are always on, and of the others each token chooses some, by the routing of experts (kernels/experts.h), of which a
// head is one. A head computes attention for the rows that chose it:
//
//   compute_head_rows      where the rows of each head are: slots, gates, and the keys that they see
//   head_weight_gradient   gradients of gates -> gradients of the weights of choices
//   add_head_counts        how many rows each routed head computes
//
// The rows of a head stand in its slots by ascending position, and attention is that of `per_sequence` queries of each
// sequence and head, whose masks are ranges of their own (kernels/documents.h). Slots that no row has see no key.
// The gate of a head that is always on is 1. That of a chosen one is its weight times the number of choices: equal
// scores give gates of 1.
#pragma once

#include <cstdint>

#include "kernels/band.h"
#include "kernels/documents.h"
#include "kernels/experts.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

/// A row is one of this rank; a head, one of those held here: numbers first_head, first_head + 1, ... of the layer.
template <class A>
struct HeadRows {
  const A* weights;                    ///< [rows, chosen]: Route
  const std::int32_t* rows_of_routed;  ///< [routed heads, sequences, routed_per_sequence]: AssignSlots::rows_of_slots
  A* gates;                            ///< [rows, heads]: 0 if the head does not compute the row
  std::int32_t* slots;                 ///< [rows, heads]: the slot, or -1
  std::int32_t* rows_of_slots;         ///< [sequences, per_sequence, heads]: row * heads + head, or -1
  /// [sequences, heads, per_sequence + keys]: of the slots of a head, then of the keys. A slot's range is that of the
  /// keys that it sees, from per_sequence on; a key's, that of the slots that see it.
  DocumentRange* ranges;
  std::int64_t chosen, always;  ///< heads from `always` on are routed
  std::int64_t first_head, heads;
  std::int64_t routed_per_sequence, per_sequence;
  std::int64_t keys;      ///< of a sequence: key j stands at position j
  RowMap map;             ///< of the rows
  Band band;              ///< between positions
  Documents documents{};  ///< of positions
};

/// dweights of a choice whose head is not held here, or has not computed the row, is 0.
template <class A>
struct HeadWeightGradient {
  const std::int32_t* choices;  ///< [rows, chosen]
  const A* dgates;              ///< [rows, heads]: 0 where the gate is
  A* dweights;                  ///< [rows, chosen]
  std::int64_t rows, chosen, always, first_head, heads;
};

/// sums[h] += the slots of routed head h that a row has.
struct HeadCounts {
  const std::int32_t* rows_of_routed;  ///< [heads, slots]
  double* sums;                        ///< [heads]
  std::int64_t heads, slots;
};

/// What is seen at a position: of the keys [0, keys). Not empty for a position that is held.
template <class Index>
constexpr IndexRange<Index> keys_at_position(const VisiblePairs<Index>& pairs, const Documents& documents,
                                             std::int64_t sequence, Index position) {
  const IndexRange<Index> keys = pairs.keys_of(position);
  return documents.separate ? intersect(keys, documents.keys_of(sequence, 0, position)) : keys;
}

template <class A>
void compute_head_rows(Cpu, const HeadRows<A>&);
template <class A>
void compute_head_rows(Cuda, const HeadRows<A>&);
template <class A>
void head_weight_gradient(Cpu, const HeadWeightGradient<A>&);
template <class A>
void head_weight_gradient(Cuda, const HeadWeightGradient<A>&);
void add_head_counts(Cpu, const HeadCounts&);
void add_head_counts(Cuda, const HeadCounts&);

}  // namespace choir::kernels
