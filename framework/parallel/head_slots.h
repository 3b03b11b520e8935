// Heads that compute some of the rows (kernels/head_routing.h): between rows and slots.
#pragma once

#include "framework/ops/attention.h"
#include "framework/parallel/context.h"

namespace choir {

/// The slots of each sequence and head on a rank that holds the rows `held`; 0: heads are not routed. A rank with a
/// head that is always on has a slot for every row.
std::int64_t slots_of_heads(const AttentionSpec&, const Rows& held, std::int64_t context_ranks);

/// Which rows of this rank the heads held here compute, by the slots of routed heads.
ops::HeadRowsRule head_rows_rule(const AttentionSpec&, const Context&);

/// Of queries in slots and keys of all positions, from the options of queries and keys of all positions.
ops::AttentionOptions options_of_slots(ops::AttentionOptions, const ops::HeadRows&, const AttentionSpec&, const Rows&);

/// x [N, H E] -> [B S, H E], scaled by `gates` [N * H, 1] unless that is empty; slots that no row has are zero
Tensor to_slots(Runtime&, const Tensor& x, const Tensor& gates, const ops::HeadRows&);
/// lse [B, H, S] of slots -> that of rows, as Attended::lse has it: infinite where a head does not compute the row, so
/// that all its probabilities are 0. For who looks into the heads: waits for the device.
Tensor lse_of_rows(Runtime&, const Tensor& lse, const ops::HeadRows&, const Rows&);

/// x [B S, H E] -> [N, H E], scaled likewise; zero for the heads that do not compute a row
Tensor from_slots(Runtime&, const Tensor& x, const Tensor& gates, const ops::HeadRows&);

}  // namespace choir
