// Proof that a layout computes what one rank computes.
//
// A narrowed copy of the configuration (the head counts, their ratio and the remainder of the vocabulary stay, for they
// are what a layout can get wrong) runs on one rank and in the asked layout: the loss, every gradient, and what three
// steps of SGD and of AdamW add to the parameters are compared tensor by tensor (comparison.h). A bf16 run is proved in
// f32 too, whose rounding hides nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/train/comparison.h"

namespace choir {

/// Layers to 2, head width to 8, short sequences, a small vocabulary with the same remainder over the tensor ranks.
/// Start values are as large as the inputs of products, 1 / sqrt(width): with small ones a branch would be lost beside
/// the stream that it is added to, and with it what a layout gets wrong there.
Config narrowed(const Config&, std::int64_t ranks);

/// Collective over `mesh`, whose layout is that of `config` (already narrowed); `alone` is a mesh of this rank only.
/// Rank 0 returns all comparisons, the others nothing.
std::vector<Comparison> verify_layout(const Config&, Device&, Mesh& mesh, Mesh& alone);

}  // namespace choir
