// The double of cuBLASLt (cublas_lt.cpp): cuBLASLt's own functions on the simulated GPU, and refusals on demand.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace choir::simgpu {

/// From now on the heuristics find algorithms only for products without an epilogue or with a bias, or for all again.
void refuse_epilogues(bool refuse);

/// How often the heuristics have been called.
std::int64_t heuristics_asked();

}  // namespace choir::simgpu
