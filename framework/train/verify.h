// Proof that a layout computes what one rank computes.
//
// A narrowed copy of the configuration (the head counts, their ratio and the remainder of the vocabulary stay, for they
// are what a layout can get wrong) runs on one rank and in the asked layout: the loss, every gradient, and the
// parameters after three steps of SGD and of AdamW are compared tensor by tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"

namespace choir {

/// Layers to 2, head width to 8, short sequences, a small vocabulary with the same remainder over the tensor ranks.
Config narrowed(const Config&, std::int64_t ranks);

struct Comparison {
  std::string what;       ///< "gradient of blocks.0.attention.q.weight"
  double difference = 0;  ///< largest over the elements
  double tolerance = 0;
  bool holds() const { return difference <= tolerance; }  // false for NaN
};

/// How far two orders of summation may lie apart, relative to a tensor's largest element.
///
/// A gradient goes through about 16 roundings a block, forward and backward, each relative to sums of up to n terms
/// whose errors add like a random walk: k eps sqrt(n), with k = 16 (layers + 1) and n the longest sum of the model.
double gradient_tolerance(const Config&);

/// Collective over `mesh`, whose layout is that of `config` (already narrowed); `alone` is a mesh of this rank only.
/// Rank 0 returns all comparisons, the others nothing.
std::vector<Comparison> verify_layout(const Config&, Device&, Mesh& mesh, Mesh& alone);

}  // namespace choir
