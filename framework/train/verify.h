// Checks that a layout computes what one rank computes.
//
// A narrowed copy of the configuration runs on one rank and in the layout asked for. It keeps the head counts, their
// ratio and the remainder of the vocabulary, because a layout can get these wrong. The loss, every gradient, and the
// changes of the parameters in three steps of SGD and of AdamW are compared tensor by tensor (comparison.h). A bf16 run
// is also checked in f32, whose rounding hides less.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/train/comparison.h"

namespace choir {

/// Layers to 2, head width to 8, short sequences, a small vocabulary with the same remainder over the tensor ranks.
/// Start values are as large as the inputs of products, 1 / sqrt(width). With smaller ones a branch would be too small
/// beside the stream that it is added to, and an error of the layout in it would not be found.
Config narrowed(const Config&, std::int64_t ranks);

/// Collective over `mesh`, whose layout is that of `config` (already narrowed); `alone` is a mesh of this rank only.
/// Rank 0 returns all comparisons, the others nothing.
std::vector<Comparison> verify_layout(const Config&, Device&, Mesh& mesh, Mesh& alone);

}  // namespace choir
