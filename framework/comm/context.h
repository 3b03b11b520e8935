// Everything a layer may use: the device's runtime, the mesh, and the place of its rows in the global batch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "framework/comm/context_kind.h"
#include "framework/comm/mesh.h"
#include "framework/core/rows.h"
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
  Rows rows{};  ///< of this micro-batch
  ContextKind kind = ContextKind::automatic;
  DeferredWork* deferred = nullptr;      ///< where linear layers leave their weight gradients; null: computed at once
  const KeyValueCache* cache = nullptr;  ///< of the layer at hand, in generation
  bool training = true;                  ///< false: no dropout
};

}  // namespace choir
