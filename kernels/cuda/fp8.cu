// Numbers of 8 bits on the GPU: scales, rounding, and what the codes stand for. The product is in matmul.cpp.
//
// A warp has a row. Columns take two passes, as their sums do (reduce.cu): blocks write the largest of parts of the
// rows to the workspace, and a second kernel takes the largest of these.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/fp8.h"

namespace choir::kernels {
namespace cuda {
namespace {

constexpr int lanes = 32, warps = threads_per_block / lanes;

/// N numbers of bf16 as they are stored, in registers.
template <int N>
struct Bits {
  unsigned value[N];
};

template <int N>
__device__ Bits<N> load_bits(const bf16* from) {
  if constexpr (N == 1) {
    return {{from->bits}};
  } else {
    static_assert(N == 8);
    const uint4 w = *reinterpret_cast<const uint4*>(from);
    return {{w.x & 0xffffu, w.x >> 16, w.y & 0xffffu, w.y >> 16, w.z & 0xffffu, w.z >> 16, w.w & 0xffffu, w.w >> 16}};
  }
}

/// Absolute values of bf16 are ordered as their bits are, and NaN is beyond all.
__device__ inline unsigned larger(unsigned largest, unsigned bits) { return max(largest, bits & 0x7fffu); }

__device__ inline std::uint8_t code_of(unsigned bits, float inverse_scale) {
  return to_e4m3(__uint_as_float(bits << 16) * inverse_scale);
}

/// In every lane of the warp.
template <int N>
__device__ std::uint8_t exponent_of_row(const bf16* row, std::int64_t width) {
  unsigned largest = 0;
  for (std::int64_t i = threadIdx.x % lanes * N; i < width; i += lanes * N) {
    const Bits<N> x = load_bits<N>(row + i);
#pragma unroll
    for (int j = 0; j < N; ++j) largest = larger(largest, x.value[j]);
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  return scale_exponent(largest);
}

template <int N>
__global__ void exponents_of_rows_kernel(ScaleExponents args) {
  for (std::int64_t row = thread_of_grid() / lanes; row < args.rows; row += threads_of_grid() / lanes) {
    const std::uint8_t exponent = exponent_of_row<N>(args.x + row * args.stride, args.width);
    if (threadIdx.x % lanes == 0) args.exponents[row] = exponent;
  }
}

/// A block has a tile of columns, N for each lane, and one of gridDim.y parts of the rows. `partial` [parts, width].
template <int N>
__global__ void largest_of_columns_kernel(ScaleExponents args, std::uint16_t* partial) {
  __shared__ unsigned of_warp[warps][N][lanes];
  const int lane = threadIdx.x % lanes, warp = threadIdx.x / lanes;
  const std::int64_t column = (std::int64_t{blockIdx.x} * lanes + lane) * N;
  const std::int64_t begin = blockIdx.y * args.rows / gridDim.y, end = (blockIdx.y + 1) * args.rows / gridDim.y;
  Bits<N> largest{};
  if (column < args.width) {
    for (std::int64_t row = begin + warp; row < end; row += warps) {
      const Bits<N> x = load_bits<N>(args.x + row * args.stride + column);
#pragma unroll
      for (int j = 0; j < N; ++j) largest.value[j] = larger(largest.value[j], x.value[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) of_warp[warp][j][lane] = largest.value[j];
  __syncthreads();
  if (warp > 0 || column >= args.width) return;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    for (int other = 1; other < warps; ++other) largest.value[j] = max(largest.value[j], of_warp[other][j][lane]);
    partial[blockIdx.y * args.width + column + j] = static_cast<std::uint16_t>(largest.value[j]);
  }
}

__global__ void exponents_of_columns_kernel(const std::uint16_t* partial, int parts, std::int64_t width,
                                            std::uint8_t* exponents) {
  for (std::int64_t column = thread_of_grid(); column < width; column += threads_of_grid()) {
    unsigned largest = 0;
    for (int part = 0; part < parts; ++part) largest = max(largest, unsigned{partial[part * width + column]});
    exponents[column] = scale_exponent(largest);
  }
}

/// Enough parts of the rows to occupy the device, but few enough that every warp has some.
int parts_of_rows(Cuda device, std::int64_t rows, std::int64_t width) {
  const std::int64_t tiles = std::max<std::int64_t>(1, width / (lanes * pack_size<bf16>));
  const std::int64_t wanted = (std::int64_t{device.multiprocessors} * 4 + tiles - 1) / tiles;
  return static_cast<int>(std::clamp<std::int64_t>(rows / (4 * warps), 1, wanted));
}

template <int N>
__global__ void quantise_rows_kernel(Quantise args) {
  const std::int64_t length = codes_of(args.width);
  const int lane = threadIdx.x % lanes;
  for (std::int64_t row = thread_of_grid() / lanes; row < args.rows; row += threads_of_grid() / lanes) {
    const std::uint8_t exponent =
        args.exponents ? args.exponents[row] : exponent_of_row<N>(args.x + row * args.stride, args.width);
    const float inverse = inverse_scale_of(exponent);
    if (lane == 0) args.scales[row] = scale_of(exponent);
    for (std::int64_t i = lane * N; i < length; i += lanes * N) {
      Bits<N> x{};
      if (i < args.width) x = load_bits<N>(args.x + row * args.stride + i);
      std::uint8_t* to = args.codes + row * length + i;
      if constexpr (N == 1) {
        *to = code_of(x.value[0], inverse);
      } else {
        uint2 words{};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          words.x |= unsigned{code_of(x.value[j], inverse)} << 8 * j;
          words.y |= unsigned{code_of(x.value[j + 4], inverse)} << 8 * j;
        }
        *reinterpret_cast<uint2*>(to) = words;
      }
    }
  }
}

constexpr int tile = 64;

/// A block has a tile of x. Its codes change places in shared memory, and leave as words of four.
__global__ void quantise_columns_kernel(Quantise args) {
  // [column][row]; with four more bytes, lanes write to different banks.
  __shared__ alignas(4) std::uint8_t codes[tile][tile + 4];
  const std::int64_t length = codes_of(args.rows);
  const std::int64_t first_row = std::int64_t{blockIdx.y} * tile, first_column = std::int64_t{blockIdx.x} * tile;
  const int lane = threadIdx.x % lanes, warp = threadIdx.x / lanes;
  for (int column = lane; column < tile; column += lanes) {
    const bool exists = first_column + column < args.width;
    const std::uint8_t exponent = exists ? args.exponents[first_column + column] : smallest_scale_exponent;
    const float inverse = inverse_scale_of(exponent);
    if (exists && blockIdx.y == 0 && warp == 0) args.scales[first_column + column] = scale_of(exponent);
    for (int row = warp; row < tile; row += warps) {
      const bool here = exists && first_row + row < args.rows;
      const unsigned bits = here ? args.x[(first_row + row) * args.stride + first_column + column].bits : 0u;
      codes[column][row] = code_of(bits, inverse);
    }
  }
  __syncthreads();
  constexpr int words = tile / 4;
  for (int i = threadIdx.x; i < tile * words; i += threads_per_block) {
    const int column = i / words, row = i % words * 4;
    if (first_column + column >= args.width || first_row + row >= length) continue;
    *reinterpret_cast<unsigned*>(args.codes + (first_column + column) * length + first_row + row) =
        *reinterpret_cast<const unsigned*>(&codes[column][row]);
  }
}

__global__ void dequantise_kernel(const std::uint8_t* codes, const float* scales, bf16* y, std::int64_t rows,
                                  std::int64_t width) {
  const std::int64_t packs = width / 8;
  for (std::int64_t i = thread_of_grid(); i < rows * packs; i += threads_of_grid()) {
    const uint2 words = *reinterpret_cast<const uint2*>(codes + i * 8);
    const float scale = scales[i / packs];
    Pack<8> values;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      values.value[j] = value_of_e4m3(static_cast<std::uint8_t>(words.x >> 8 * j)) * scale;
      values.value[j + 4] = value_of_e4m3(static_cast<std::uint8_t>(words.y >> 8 * j)) * scale;
    }
    store(values, y + i * 8);
  }
}

/// body<N>() with as many numbers at once as the addresses, the stride and the width allow.
template <class Body>
void with_numbers_at_once(const bf16* x, std::int64_t width, std::int64_t stride, const Body& body) {
  with_pack_size<bf16>(width % pack_size<bf16> == 0 ? stride : 1, {x}, body);
}

unsigned tiles_of(std::int64_t count) { return static_cast<unsigned>((count + tile - 1) / tile); }

}  // namespace

void dequantise(Cuda device, const std::uint8_t* codes, const float* scales, bf16* y, std::int64_t rows,
                std::int64_t width) {
  if (rows == 0) return;
  dequantise_kernel<<<blocks_for_elements<8>(device, rows * width), threads_per_block, 0, device.stream>>>(
      codes, scales, y, rows, width);
  check_launch("dequantise");
}

}  // namespace cuda

std::int64_t scale_exponents_workspace_bytes(Cuda device, const ScaleExponents& args) {
  if (!args.by_columns) return 0;
  return cuda::parts_of_rows(device, args.rows, args.width) * args.width * std::int64_t{sizeof(std::uint16_t)};
}

void scale_exponents(Cuda device, const ScaleExponents& args) {
  if ((args.by_columns ? args.width : args.rows) == 0) return;
  cuda::with_numbers_at_once(args.x, args.width, args.stride, [&]<int N>() {
    if (!args.by_columns) {
      cuda::exponents_of_rows_kernel<N><<<cuda::blocks_for(device, (args.rows + cuda::warps - 1) / cuda::warps),
                                          cuda::threads_per_block, 0, device.stream>>>(args);
      return;
    }
    const int parts = cuda::parts_of_rows(device, args.rows, args.width);
    const dim3 grid(static_cast<unsigned>((args.width + cuda::lanes * N - 1) / (cuda::lanes * N)),
                    static_cast<unsigned>(parts));
    auto* const partial = static_cast<std::uint16_t*>(args.workspace);
    cuda::largest_of_columns_kernel<N><<<grid, cuda::threads_per_block, 0, device.stream>>>(args, partial);
    cuda::check_launch("scale_exponents");
    cuda::exponents_of_columns_kernel<<<cuda::blocks_for_elements<1>(device, args.width), cuda::threads_per_block, 0,
                                        device.stream>>>(partial, parts, args.width, args.exponents);
  });
  cuda::check_launch("scale_exponents");
}

void quantise(Cuda device, const Quantise& args) {
  if ((args.by_columns ? args.width : args.rows) == 0) return;
  if (args.by_columns) {
    const dim3 grid(cuda::tiles_of(args.width), cuda::tiles_of(codes_of(args.rows)));
    cuda::quantise_columns_kernel<<<grid, cuda::threads_per_block, 0, device.stream>>>(args);
  } else {
    cuda::with_numbers_at_once(args.x, args.width, args.stride, [&]<int N>() {
      cuda::quantise_rows_kernel<N><<<cuda::blocks_for(device, (args.rows + cuda::warps - 1) / cuda::warps),
                                      cuda::threads_per_block, 0, device.stream>>>(args);
    });
  }
  cuda::check_launch("quantise");
}

}  // namespace choir::kernels
