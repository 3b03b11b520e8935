// The double of cuBLASLt (cublas_lt.cpp): cuBLASLt's own functions on the simulated GPU, and refusals on demand.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>

namespace choir::simgpu {

/// From now on the heuristics find algorithms only for products without an epilogue or with a bias, or for all again.
void refuse_epilogues(bool refuse);

/// The algorithms that the heuristics know, best first, and how long each computes on the clock of events: all no time,
/// or as the numbers in CHOIR_SIMGPU_ALGORITHM_SECONDS say.
inline constexpr std::uint32_t num_algorithms = 8;
inline constexpr std::uint32_t split_algorithm = 3, split_rounding = 5;  // see reduction_of()
void set_algorithm_seconds(const std::array<double, num_algorithms>& seconds);
/// The numbers of those that have been enqueued since the last call, as bits.
std::uint32_t take_used_algorithms();

/// How often the heuristics have been called.
std::int64_t heuristics_asked();

}  // namespace choir::simgpu
