// Everything a layer may use: the device's runtime, the mesh, and the place of its rows in the global batch.
#pragma once

#include <cstdint>

#include "framework/comm/mesh.h"
#include "framework/core/runtime.h"

namespace choir {

struct Context {
  Runtime& runtime;
  Mesh& mesh;
  bool sequence = false;          ///< sequence parallelism: between layers the tensor ranks split the rows
  std::int64_t sequences = 1;     ///< B of this micro-batch
  std::int64_t length = 1;        ///< T
  std::int64_t first_sample = 0;  ///< of this micro-batch in the global batch
  bool training = true;           ///< false: no dropout
  std::int64_t rows() const { return sequences * length; }  ///< N
};

}  // namespace choir
