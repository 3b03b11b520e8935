// Everything a layer may use: the device's runtime, the mesh, and the place of its rows in the global batch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/core/runtime.h"

namespace choir {

/// The keys and values of the tokens already seen, of one layer, for generation.
struct KeyValueCache {
  Tensor keys, values;  ///< [positions, key/value heads held * E]
};

/// Weight gradients of a micro-batch that the schedule computes later than its activation gradients.
using DeferredWork = std::vector<std::function<void(struct Context&)>>;

struct Context {
  Runtime& runtime;
  Mesh& mesh;
  bool sequence = false;                 ///< sequence parallelism: between layers the tensor ranks split the rows
  std::int64_t sequences = 1;            ///< B of this micro-batch
  std::int64_t length = 1;               ///< T
  std::int64_t first_sample = 0;         ///< of this micro-batch in the global batch
  std::int64_t first_position = 0;       ///< of the first token of each sequence; 0 but in generation
  DeferredWork* deferred = nullptr;      ///< where linear layers leave their weight gradients; null: computed at once
  const KeyValueCache* cache = nullptr;  ///< of the layer at hand, in generation
  bool training = true;                  ///< false: no dropout
  std::int64_t rows() const { return sequences * length; }  ///< N
};

}  // namespace choir
