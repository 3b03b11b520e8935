// Everything an operation may touch, passed and never found.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "framework/core/device.h"
#include "kernels/grid.h"
#include "kernels/step_scalars.h"

namespace choir {

/// The rotation of each position (kernels/rotary.h), and what it depends on.
struct RotaryTable {
  std::int64_t positions, head_width;
  double base;
  kernels::Grid grid;
  Tensor values;  ///< [positions, head_width] f32 (f64 in tests)
};

struct Runtime {
  Device& device;
  std::uint64_t seed = 1;
  DType compute_type = DType::f32;         ///< of activations, and of weight matrices as products read them
  Tensor scalars;                          ///< u8 [sizeof(StepScalars)] in device memory
  std::vector<RotaryTable> rotary_tables;  ///< made so far, by ops::rotary_table()

  Tensor empty(Shape shape, DType type, MemoryKind kind = MemoryKind::temporary) {
    return Tensor(device.allocator(), std::move(shape), type, kind);
  }
  const kernels::StepScalars* step_scalars() const { return static_cast<const kernels::StepScalars*>(scalars.raw()); }
};

/// A Philox key from the run's seed and what the numbers are for ("dropout blocks.3.attention"): FNV-1a, then a mix.
constexpr std::uint64_t random_key(std::uint64_t seed, std::string_view what) {
  std::uint64_t hash = 0xcbf29ce484222325ull ^ seed * 0x9E3779B97F4A7C15ull;
  for (const char c : what) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  hash ^= hash >> 32;
  hash *= 0xD6E8FEB86659FD93ull;
  return hash ^ (hash >> 32);
}

}  // namespace choir
