// The second stage of sums over rows: many blocks have each written a row of partial sums.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels::cuda {

/// Elements from one row of partial sums to the next, so that each begins at an aligned address.
inline std::int64_t padded(std::int64_t width) { return (width + 15) / 16 * 16; }

/// sum[i] += sum over parts of partial[part][0][i], i in [0, count), in an order that depends on `parts` alone; and
/// second[i] and third[i] those of partial[part][1][i] and partial[part][2][i], unless they are null. A part has
/// padded(count) elements for each of `num_sums` sums.
void add_partial_sums(Cuda cuda, float* sum, float* second, float* third, int num_sums, const float* partial, int parts,
                      std::int64_t count);

}  // namespace choir::kernels::cuda
