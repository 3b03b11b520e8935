// Sums on the GPU, in two stages: blocks write partial sums to the workspace, and a second kernel adds them. The order
// of addition depends on the sizes and the number of multiprocessors only, so the bits repeat.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/partial_sums.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/reduce.h"

namespace choir::kernels {

namespace cuda {

constexpr int lanes = 32, groups = threads_per_block / lanes;  // a block is `groups` warps, each with its own rows

// A warp has 32 neighbouring columns of every `groups`th part; then the warps' sums are added in order. blockIdx.y is
// the sum.
__global__ void add_partial_sums_kernel(float* first, float* second, float* third, std::int64_t stride,
                                        const float* partial, int parts, std::int64_t padded_count,
                                        std::int64_t count) {
  __shared__ float of_group[groups][lanes];
  float* sum = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
  if (sum == nullptr) return;
  partial += blockIdx.y * padded_count;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const std::int64_t column = std::int64_t{blockIdx.x} * lanes + lane;
  float total = 0;
  if (column < count) {
#pragma unroll 4
    for (int part = group; part < parts; part += groups) total += partial[part * stride + column];
  }
  of_group[group][lane] = total;
  __syncthreads();
  if (group > 0 || column >= count) return;
  for (int other = 1; other < groups; ++other) total += of_group[other][lane];
  sum[column] += total;
}

void add_partial_sums(Cuda cuda, float* sum, float* second, float* third, int num_sums, const float* partial, int parts,
                      std::int64_t count) {
  const dim3 grid(static_cast<unsigned>((count + lanes - 1) / lanes), third ? 3 : second ? 2 : 1);
  add_partial_sums_kernel<<<grid, threads_per_block, 0, cuda.stream>>>(sum, second, third, num_sums * padded(count),
                                                                       partial, parts, padded(count), count);
  check_launch("add_partial_sums");
}

}  // namespace cuda

// ---- Columns. A block has a tile of columns, N for each lane, and one of `parts` parts of the rows.

using cuda::groups, cuda::lanes;

/// Enough parts to occupy the device, but few enough that every warp has rows.
template <class T>
static int column_sum_parts(Cuda cuda, std::int64_t rows, std::int64_t width) {
  constexpr std::int64_t columns = lanes * cuda::pack_size<T>;
  const std::int64_t tiles = std::max<std::int64_t>(1, (width + columns - 1) / columns);
  const std::int64_t wanted = (std::int64_t{cuda.multiprocessors} * 4 + tiles - 1) / tiles;
  return static_cast<int>(std::clamp<std::int64_t>(rows / (4 * groups), 1, wanted));
}

template <class T, int N>
__global__ void column_sum_kernel(ColumnSum<T> args, std::int64_t padded_width) {
  __shared__ float of_group[groups][N][lanes];
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const std::int64_t column = (std::int64_t{blockIdx.x} * lanes + lane) * N;
  const std::int64_t begin = blockIdx.y * args.rows / gridDim.y, end = (blockIdx.y + 1) * args.rows / gridDim.y;
  cuda::Pack<N> sum{};
  if (column < args.width) {
#pragma unroll 4
    for (std::int64_t row = begin + group; row < end; row += groups) {
      const cuda::Pack<N> x = cuda::load<N>(args.x + row * args.stride + column);
#pragma unroll
      for (int j = 0; j < N; ++j) sum.value[j] += x.value[j];
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) of_group[group][j][lane] = sum.value[j];
  __syncthreads();
  if (group > 0 || column >= args.width) return;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    for (int other = 1; other < groups; ++other) sum.value[j] += of_group[other][j][lane];
  }
  cuda::store(sum, static_cast<float*>(args.workspace) + blockIdx.y * padded_width + column);
}

template <class T>
std::int64_t column_sum_workspace_bytes(Cuda cuda, std::int64_t rows, std::int64_t width) {
  return column_sum_parts<T>(cuda, rows, width) * cuda::padded(width) * std::int64_t{sizeof(float)};
}

template <class T>
void column_sum(Cuda cuda, const ColumnSum<T>& args) {
  if (args.width == 0) return;  // a rank without heads
  const int parts = column_sum_parts<T>(cuda, args.rows, args.width);
  const std::int64_t stride = cuda::padded(args.width);
  // A pack must not reach beyond the width, so N divides that too.
  const std::int64_t common = args.width % cuda::pack_size<T> == 0 ? args.stride : 1;
  cuda::with_pack_size<T>(common, {args.x, args.workspace}, [&]<int N>() {
    const std::int64_t tiles = (args.width + lanes * N - 1) / (lanes * N);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(parts));
    column_sum_kernel<T, N><<<grid, cuda::threads_per_block, 0, cuda.stream>>>(args, stride);
  });
  cuda::check_launch("column_sum");
  cuda::add_partial_sums(cuda, args.sum, nullptr, nullptr, 1, static_cast<const float*>(args.workspace), parts,
                         args.width);
}

// ---- Squares. The ranges are cut into chunks of fixed length, assigned in turn to the blocks, each of which keeps one
// partial sum.

static int squared_norm_parts(Cuda cuda) { return cuda.multiprocessors * 4; }

std::int64_t squared_norm_workspace_bytes(Cuda cuda, std::int64_t) {
  return squared_norm_parts(cuda) * std::int64_t{sizeof(double)};
}

__device__ inline double add_square(double sum, float x) {
  const double value = x;
  return fma(value, value, sum);
}

__global__ void squared_norm_kernel(const float* x, const Range* ranges, std::int64_t num_ranges, double* partials) {
  constexpr std::int64_t chunk = cuda::threads_per_block * 16;
  const std::int64_t parts = gridDim.x;
  std::int64_t turn = 0;  // of the range's first chunk
  double sum = 0;
  for (std::int64_t r = 0; r < num_ranges; ++r) {
    const Range range = ranges[r];
    const std::int64_t chunks = (range.end - range.begin + chunk - 1) / chunk;
    const std::int64_t first = (blockIdx.x - turn % parts + parts) % parts;  // of this block's
    for (std::int64_t c = first; c < chunks; c += parts) {
      const std::int64_t begin = range.begin + c * chunk, end = min(begin + chunk, range.end);
      const float* from = x + begin;
      if (end - begin == chunk && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto four = cuda::load<4>(from + (i * cuda::threads_per_block + threadIdx.x) * 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum = add_square(sum, four.value[j]);
        }
      } else {
        for (std::int64_t i = begin + threadIdx.x; i < end; i += cuda::threads_per_block) sum = add_square(sum, x[i]);
      }
    }
    turn += chunks;
  }
  sum = cuda::block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void sum_of_partials_kernel(const double* partials, int parts, double* sum) {
  double total = 0;
  for (int i = threadIdx.x; i < parts; i += cuda::threads_per_block) total += partials[i];
  total = cuda::block_sum(total);
  if (threadIdx.x == 0) *sum = total;
}

void squared_norm(Cuda cuda, const SquaredNorm& args) {
  const int parts = squared_norm_parts(cuda);
  auto* partials = static_cast<double*>(args.workspace);
  squared_norm_kernel<<<parts, cuda::threads_per_block, 0, cuda.stream>>>(args.x, args.ranges, args.num_ranges,
                                                                          partials);
  cuda::check_launch("squared_norm");
  sum_of_partials_kernel<<<1, cuda::threads_per_block, 0, cuda.stream>>>(partials, parts, args.sum);
  cuda::check_launch("squared_norm");
}

template std::int64_t column_sum_workspace_bytes<float>(Cuda, std::int64_t, std::int64_t);
template std::int64_t column_sum_workspace_bytes<bf16>(Cuda, std::int64_t, std::int64_t);
template void column_sum(Cuda, const ColumnSum<float>&);
template void column_sum(Cuda, const ColumnSum<bf16>&);

}  // namespace choir::kernels
