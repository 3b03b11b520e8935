// What a warp of flash attention computes: 16 rows of a matrix product, in f32 registers.
//
// One interface with two implementations: T = bf16 multiplies on tensor cores, T = f32 with multiply-adds. The kernels
// that use it are written once. Operands are in shared memory, rows `stride` elements apart: an odd multiple of 16
// bytes, so that the same columns of 8 rows are in different banks.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels::cuda {

inline constexpr int warp_rows = 16;

/// A [16, columns] tile of f32. Lane l holds value[i][j] of row row(i) and column column(j).
template <class T, int columns>
struct WarpTile;

/// The layout of the tensor cores: pairs of neighbours, four lanes to a row.
template <int columns>
struct WarpTile<bf16, columns> {
  static constexpr int rows_per_lane = 2, columns_per_lane = columns / 4, lanes_per_row = 4;
  float value[rows_per_lane][columns_per_lane] = {};

  __device__ static int row(int i) { return lane_of_warp() / 4 + 8 * i; }
  __device__ static int column(int j) { return j / 2 * 8 + lane_of_warp() % 4 * 2 + j % 2; }
};

/// Half a warp to 8 rows: each of its lanes has every 16th column.
template <int columns>
struct WarpTile<float, columns> {
  static constexpr int rows_per_lane = 8, columns_per_lane = columns / 16, lanes_per_row = 16;
  float value[rows_per_lane][columns_per_lane] = {};

  __device__ static int row(int i) { return lane_of_warp() / 16 * 8 + i; }
  __device__ static int column(int j) { return j * 16 + lane_of_warp() % 16; }
};

/// value(i, j) = apply(value(i, j), i, j) for the values that the lane holds.
template <class T, int columns, class Apply>
__device__ void for_each(WarpTile<T, columns>& tile, const Apply& apply) {
#pragma unroll
  for (int i = 0; i < tile.rows_per_lane; ++i) {
#pragma unroll
    for (int j = 0; j < tile.columns_per_lane; ++j) tile.value[i][j] = apply(tile.value[i][j], i, j);
  }
}

/// Combines the values of the lanes of a row; all of these lanes get the result.
template <class Tile, class Join>
__device__ float join_row(float value, Join join) {
#pragma unroll
  for (int distance = Tile::lanes_per_row / 2; distance > 0; distance /= 2)
    value = join(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// ---- c [16, columns] += a [16, depth] b^T, with a and b [columns, depth] in shared memory

template <int depth, int stride, int columns>
__device__ void multiply_add_transposed(WarpTile<bf16, columns>& c, const bf16* a, const bf16* b) {
  const int lane = lane_of_warp();
  const bf16* a_row = a + lane % 16 * stride + lane / 16 * 8;
  const bf16* b_row = b + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
#pragma unroll 2
  for (int k = 0; k < depth; k += 16) {
    std::uint32_t of_a[4];
    load_matrices(of_a, a_row + k);
#pragma unroll
    for (int j = 0; j < columns / 16; ++j) {
      std::uint32_t of_b[4];
      load_matrices(of_b, b_row + j * 16 * stride + k);
      multiply_add(c.value[0][4 * j], c.value[0][4 * j + 1], c.value[1][4 * j], c.value[1][4 * j + 1], of_a, of_b[0],
                   of_b[1]);
      multiply_add(c.value[0][4 * j + 2], c.value[0][4 * j + 3], c.value[1][4 * j + 2], c.value[1][4 * j + 3], of_a,
                   of_b[2], of_b[3]);
    }
  }
}

template <int depth, int stride, int columns>
__device__ void multiply_add_transposed(WarpTile<float, columns>& c, const float* a, const float* b) {
  const float* a_row = a + c.row(0) * stride;
  const float* b_row = b + c.column(0) * stride;
#pragma unroll 1  // a step is 32 or more multiply-adds; two steps at once want more registers than there are
  for (int k = 0; k < depth; k += 4) {
    float4 of_b[c.columns_per_lane];
#pragma unroll
    for (int j = 0; j < c.columns_per_lane; ++j)
      of_b[j] = *reinterpret_cast<const float4*>(b_row + j * 16 * stride + k);
#pragma unroll
    for (int i = 0; i < c.rows_per_lane; ++i) {
      const float4 of_a = *reinterpret_cast<const float4*>(a_row + i * stride + k);
#pragma unroll
      for (int j = 0; j < c.columns_per_lane; ++j) {
        float& sum = c.value[i][j];
        sum = fmaf(of_a.x, of_b[j].x, sum);
        sum = fmaf(of_a.y, of_b[j].y, sum);
        sum = fmaf(of_a.z, of_b[j].z, sum);
        sum = fmaf(of_a.w, of_b[j].w, sum);
      }
    }
  }
}

// ---- c [16, columns] += a [16, depth] b, with a in registers and b [depth, columns] in shared memory

/// a is rounded to bf16. A lane holds the same elements of a result as of an operand, so no lanes exchange any.
template <int stride, int depth, int columns>
__device__ void multiply_add(WarpTile<bf16, columns>& c, const WarpTile<bf16, depth>& a, const bf16* b) {
  const int lane = lane_of_warp();
  const bf16* b_row = b + lane % 16 * stride + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < depth / 16; ++k) {
    const std::uint32_t of_a[4] = {to_bf16_pair(a.value[0][4 * k], a.value[0][4 * k + 1]),
                                   to_bf16_pair(a.value[1][4 * k], a.value[1][4 * k + 1]),
                                   to_bf16_pair(a.value[0][4 * k + 2], a.value[0][4 * k + 3]),
                                   to_bf16_pair(a.value[1][4 * k + 2], a.value[1][4 * k + 3])};
#pragma unroll
    for (int j = 0; j < columns / 16; ++j) {
      std::uint32_t of_b[4];
      load_matrices_transposed(of_b, b_row + k * 16 * stride + j * 16);
      multiply_add(c.value[0][4 * j], c.value[0][4 * j + 1], c.value[1][4 * j], c.value[1][4 * j + 1], of_a, of_b[0],
                   of_b[1]);
      multiply_add(c.value[0][4 * j + 2], c.value[0][4 * j + 3], c.value[1][4 * j + 2], c.value[1][4 * j + 3], of_a,
                   of_b[2], of_b[3]);
    }
  }
}

/// Column k of a comes from the lane that has it.
template <int stride, int depth, int columns>
__device__ void multiply_add(WarpTile<float, columns>& c, const WarpTile<float, depth>& a, const float* b) {
  const int half = lane_of_warp() & 16;
  const float* b_row = b + c.column(0);
#pragma unroll
  for (int n = 0; n < a.columns_per_lane; ++n) {
#pragma unroll 2
    for (int k = 0; k < 16; ++k) {
      float of_b[c.columns_per_lane];
#pragma unroll
      for (int j = 0; j < c.columns_per_lane; ++j) of_b[j] = b_row[(n * 16 + k) * stride + j * 16];
#pragma unroll
      for (int i = 0; i < c.rows_per_lane; ++i) {
        const float of_a = __shfl_sync(0xffffffffu, a.value[i][n], half | k);
#pragma unroll
        for (int j = 0; j < c.columns_per_lane; ++j) c.value[i][j] = fmaf(of_a, of_b[j], c.value[i][j]);
      }
    }
  }
}

// ---- To shared memory, rounded once

template <int stride, int columns>
__device__ void store_shared(const WarpTile<bf16, columns>& tile, bf16* shared) {
#pragma unroll
  for (int i = 0; i < tile.rows_per_lane; ++i) {
#pragma unroll
    for (int j = 0; j < tile.columns_per_lane; j += 2)
      *reinterpret_cast<std::uint32_t*>(shared + tile.row(i) * stride + tile.column(j)) =
          to_bf16_pair(tile.value[i][j], tile.value[i][j + 1]);
  }
}

template <int stride, int columns>
__device__ void store_shared(const WarpTile<float, columns>& tile, float* shared) {
#pragma unroll
  for (int i = 0; i < tile.rows_per_lane; ++i) {
#pragma unroll
    for (int j = 0; j < tile.columns_per_lane; ++j) shared[tile.row(i) * stride + tile.column(j)] = tile.value[i][j];
  }
}

}  // namespace choir::kernels::cuda
