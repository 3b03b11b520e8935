// Layer norm and RMS norm on the GPU: a block per row, or a warp per row in the backward of rows that its registers
// have room for. A row is read two or three times, but from memory once: the first-level cache has room for the rows of
// the running blocks. The variance is computed in two passes.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/partial_sums.h"
#include "kernels/cuda/residual.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/norm.h"

namespace choir::kernels {

/// Row `row` of the norm, by one block.
template <class T, int N>
__device__ void normalise_row(const NormForward<T>& args, std::int64_t row) {
  const auto width = static_cast<float>(args.width), epsilon = static_cast<float>(args.epsilon);
  const T* x = args.x + row * args.width;
  T* y = args.y + row * args.width;
  float mean = 0;
  if (args.mean) {
    float sum = 0;
    cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
      const cuda::Pack<M> values = cuda::load<M>(x + i);
#pragma unroll
      for (int j = 0; j < M; ++j) sum += values.value[j];
    });
    mean = cuda::block_sum(sum) / width;
  }
  float squares = 0;
  cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
    const cuda::Pack<M> values = cuda::load<M>(x + i);
#pragma unroll
    for (int j = 0; j < M; ++j) {
      const float deviation = values.value[j] - mean;
      squares = fmaf(deviation, deviation, squares);
    }
  });
  const float rstd = 1 / sqrtf(cuda::block_sum(squares) / width + epsilon);
  if (threadIdx.x == 0) {
    if (args.mean) args.mean[row] = mean;
    args.rstd[row] = rstd;
  }
  cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
    cuda::Pack<M> values = cuda::load<M>(x + i);
    const cuda::Pack<M> weight = cuda::load<M>(args.weight + i);
    const cuda::Pack<M> bias = args.bias ? cuda::load<M>(args.bias + i) : cuda::Pack<M>{};
#pragma unroll
    for (int j = 0; j < M; ++j) values.value[j] = fmaf((values.value[j] - mean) * rstd, weight.value[j], bias.value[j]);
    cuda::store(values, y + i);
  });
}

template <class T, int N>
__global__ void __launch_bounds__(cuda::threads_per_block) norm_forward_kernel(NormForward<T> args) {
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) normalise_row<T, N>(args, row);
}

/// A thread reads what it has written itself. Four blocks of a multiprocessor leave 64 registers to each thread: by
/// itself the compiler takes 40, and has two too few.
template <class T, int N>
__global__ void __launch_bounds__(cuda::threads_per_block, 4)
    residual_norm_forward_kernel(ResidualForward<T> residual, DropoutRule rule, NormForward<T> norm) {
  const std::uint64_t step = rule.scalars ? rule.scalars->step : 0;
  for (std::int64_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
    cuda::for_each_pack_of_row<N>(norm.width, [&]<int M>(std::int64_t i) {
      const std::int64_t at = row * norm.width + i;
      cuda::store(residual_sum<M>(residual, rule, step, at, i), residual.y + at);
    });
    normalise_row<T, N>(norm, row);
  }
}

template <class T>
void norm_forward(Cuda cuda, const NormForward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.x, args.weight, args.bias, args.y}, [&]<int N>() {
    norm_forward_kernel<T, N>
        <<<cuda::blocks_for(cuda, args.rows), cuda::threads_for_row(args.width / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("norm_forward");
}

template <class T>
void residual_norm_forward(Cuda cuda, const ResidualForward<T>& residual, const NormForward<T>& norm) {
  cuda::with_pack_size<T>(
      norm.width, {residual.x, residual.delta, residual.bias, residual.y, norm.weight, norm.bias, norm.y},
      [&]<int N>() {
        residual_norm_forward_kernel<T, N>
            <<<cuda::blocks_for(cuda, norm.rows), cuda::threads_for_row(norm.width / N), 0, cuda.stream>>>(
                residual, DropoutRule(residual.dropout, norm.width), norm);
      });
  cuda::check_launch("residual_norm_forward");
}

// ---- Backward. A block adds its rows' share of dweight and dbias to sums of its own, and writes them to its part of
// the workspace; a second kernel adds the parts. A thread owns the same columns in every row, so these sums need no
// barrier.

// With a warp per row: room for 168 registers of each thread, 72 of them sums.
constexpr int widest_row_of_warp = 768, warps_of_block = 4, blocks_of_multiprocessor = 3;

/// Sums in a part: dweight, dbias, residual_sum.
constexpr int num_sums = 3;

/// Blocks, and parts of the workspace: enough to occupy the device, but few enough that each has several rows.
static int norm_backward_parts(Cuda cuda, std::int64_t rows, std::int64_t width) {
  if (width > widest_row_of_warp) return cuda::blocks_for(cuda, (rows + 3) / 4, 4);
  const std::int64_t rows_of_block = 4 * warps_of_block;
  return cuda::blocks_for(cuda, (rows + rows_of_block - 1) / rows_of_block, blocks_of_multiprocessor);
}

// With n = (x - mean) rstd and g = dy weight:
//   dx      = rstd (g - mean_of(g) - n mean_of(g n)) + residual,   mean_of(g) = 0 in RMS norm
//   dweight = sum over rows of dy n,  dbias = sum over rows of dy,  residual_sum = sum over rows of residual
//
/// A lane has `packs` packs of N columns, 32 N apart.
template <class T, int N, int packs>
__global__ void __launch_bounds__(32 * warps_of_block, blocks_of_multiprocessor)
    norm_backward_of_warps_kernel(NormBackward<T> args, std::int64_t padded_width) {
  constexpr int columns = packs * N;
  __shared__ float of_block[num_sums][32 * columns];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto width = static_cast<int>(args.width);
  const auto for_each_column = [&](const auto& body) {  // of this lane
#pragma unroll
    for (int pack = 0; pack < packs; ++pack)
      if (const int i = (pack * 32 + lane) * N; i < width) body(pack, i);
  };
  float of_weight[columns] = {}, of_bias[columns] = {}, of_residual[columns] = {};
  const float share = 1 / static_cast<float>(args.width);
  for (std::int64_t row = std::int64_t{blockIdx.x} * warps_of_block + warp; row < args.rows;
       row += std::int64_t{gridDim.x} * warps_of_block) {
    const T* x = args.x + row * args.width;
    const T* dy = args.dy + row * args.width;
    const T* residual = args.residual ? args.residual + row * args.width : nullptr;
    T* dx = args.dx + row * args.width;
    const float mean = args.mean ? args.mean[row] : 0.0f, rstd = args.rstd[row];
    float sum_g = 0, sum_gn = 0;
    for_each_column([&](int, int i) {
      const cuda::Pack<N> values = cuda::load<N>(x + i), slope = cuda::load<N>(dy + i);
      const cuda::Pack<N> weight = cuda::load<N>(args.weight + i);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float n = (values.value[j] - mean) * rstd, g = slope.value[j] * weight.value[j];
        sum_g += g;
        sum_gn = fmaf(g, n, sum_gn);
      }
    });
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sum_g += __shfl_xor_sync(0xffffffffu, sum_g, distance);
      sum_gn += __shfl_xor_sync(0xffffffffu, sum_gn, distance);
    }
    const float mean_g = args.mean ? sum_g * share : 0.0f, mean_gn = sum_gn * share;
    for_each_column([&](int pack, int i) {
      const cuda::Pack<N> values = cuda::load<N>(x + i), slope = cuda::load<N>(dy + i);
      const cuda::Pack<N> weight = cuda::load<N>(args.weight + i);
      cuda::Pack<N> result = residual ? cuda::load<N>(residual + i) : cuda::Pack<N>{};
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float n = (values.value[j] - mean) * rstd, g = slope.value[j] * weight.value[j];
        of_residual[pack * N + j] += result.value[j];
        result.value[j] = fmaf(fmaf(-n, mean_gn, g - mean_g), rstd, result.value[j]);
        of_weight[pack * N + j] = fmaf(slope.value[j], n, of_weight[pack * N + j]);
        of_bias[pack * N + j] += slope.value[j];
      }
      cuda::store(result, dx + i);
    });
  }
  for (int turn = 0; turn < warps_of_block; ++turn) {  // in one order
    if (turn == warp) {
      for_each_column([&](int pack, int i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          of_block[0][i + j] = (turn > 0 ? of_block[0][i + j] : 0.0f) + of_weight[pack * N + j];
          of_block[1][i + j] = (turn > 0 ? of_block[1][i + j] : 0.0f) + of_bias[pack * N + j];
          of_block[2][i + j] = (turn > 0 ? of_block[2][i + j] : 0.0f) + of_residual[pack * N + j];
        }
      });
    }
    __syncthreads();
  }
  float* partial = static_cast<float*>(args.workspace) + blockIdx.x * num_sums * padded_width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += 32 * warps_of_block) {
    partial[i] = of_block[0][i];
    if (args.dbias) partial[padded_width + i] = of_block[1][i];
    if (args.residual_sum) partial[2 * padded_width + i] = of_block[2][i];
  }
}

/// A block per row. Its sums are in shared memory if they fit, else in its part of the workspace.
template <class T, int N, bool in_shared>
__global__ void __launch_bounds__(cuda::threads_per_block)
    norm_backward_kernel(NormBackward<T> args, std::int64_t padded_width) {
  extern __shared__ __align__(16) float shared_sums[];
  float* partial = static_cast<float*>(args.workspace) + blockIdx.x * num_sums * padded_width;
  float* dweight = in_shared ? shared_sums : partial;
  float* dbias = dweight + padded_width;
  float* residual_sum = dbias + padded_width;
  cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
    cuda::store(cuda::Pack<M>{}, dweight + i);
    if (args.dbias) cuda::store(cuda::Pack<M>{}, dbias + i);
    if (args.residual_sum) cuda::store(cuda::Pack<M>{}, residual_sum + i);
  });
  const float share = 1 / static_cast<float>(args.width);
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const T* x = args.x + row * args.width;
    const T* dy = args.dy + row * args.width;
    const T* residual = args.residual ? args.residual + row * args.width : nullptr;
    T* dx = args.dx + row * args.width;
    const float mean = args.mean ? args.mean[row] : 0.0f, rstd = args.rstd[row];
    float sums[2] = {};  // of g, of g n
    cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
      const cuda::Pack<M> values = cuda::load<M>(x + i), slope = cuda::load<M>(dy + i);
      const cuda::Pack<M> weight = cuda::load<M>(args.weight + i);
#pragma unroll
      for (int j = 0; j < M; ++j) {
        const float n = (values.value[j] - mean) * rstd, g = slope.value[j] * weight.value[j];
        sums[0] += g;
        sums[1] = fmaf(g, n, sums[1]);
      }
    });
    cuda::block_reduce(sums, cuda::Plus{});
    const float mean_g = args.mean ? sums[0] * share : 0.0f, mean_gn = sums[1] * share;
    cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
      const cuda::Pack<M> values = cuda::load<M>(x + i), slope = cuda::load<M>(dy + i);
      const cuda::Pack<M> weight = cuda::load<M>(args.weight + i);
      cuda::Pack<M> result = residual ? cuda::load<M>(residual + i) : cuda::Pack<M>{};
      if (args.residual_sum) {
        cuda::Pack<M> of_residual = cuda::load<M>(residual_sum + i);
#pragma unroll
        for (int j = 0; j < M; ++j) of_residual.value[j] += result.value[j];
        cuda::store(of_residual, residual_sum + i);
      }
      cuda::Pack<M> of_weight = cuda::load<M>(dweight + i);
#pragma unroll
      for (int j = 0; j < M; ++j) {
        const float n = (values.value[j] - mean) * rstd, g = slope.value[j] * weight.value[j];
        result.value[j] = fmaf(fmaf(-n, mean_gn, g - mean_g), rstd, result.value[j]);
        of_weight.value[j] = fmaf(slope.value[j], n, of_weight.value[j]);
      }
      cuda::store(result, dx + i);
      cuda::store(of_weight, dweight + i);
      if (args.dbias) {
        cuda::Pack<M> of_bias = cuda::load<M>(dbias + i);
#pragma unroll
        for (int j = 0; j < M; ++j) of_bias.value[j] += slope.value[j];
        cuda::store(of_bias, dbias + i);
      }
    });
  }
  if constexpr (in_shared) {
    cuda::for_each_pack_of_row<N>(args.width, [&]<int M>(std::int64_t i) {
      cuda::store(cuda::load<M>(dweight + i), partial + i);
      if (args.dbias) cuda::store(cuda::load<M>(dbias + i), partial + padded_width + i);
      if (args.residual_sum) cuda::store(cuda::load<M>(residual_sum + i), partial + 2 * padded_width + i);
    });
  }
}

/// Shared memory that a block can have by default on every GPU.
constexpr std::int64_t shared_bytes = 48 * 1024 - 1024;

static std::int64_t sums_bytes(std::int64_t width, int sums) {
  return cuda::padded(width) * sums * std::int64_t{sizeof(float)};
}

template <class T>
std::int64_t norm_backward_workspace_bytes(Cuda cuda, std::int64_t rows, std::int64_t width) {
  return norm_backward_parts(cuda, rows, width) * sums_bytes(width, num_sums);
}

template <class T>
void norm_backward(Cuda cuda, const NormBackward<T>& args) {
  const int parts = norm_backward_parts(cuda, args.rows, args.width);
  const std::int64_t padded_width = cuda::padded(args.width);
  const std::int64_t bytes = sums_bytes(args.width, args.residual_sum ? 3 : args.dbias ? 2 : 1);
  const auto warp_per_row = [&]<int N, int columns>() {  // columns of a lane
    norm_backward_of_warps_kernel<T, N, columns / N>
        <<<parts, 32 * warps_of_block, 0, cuda.stream>>>(args, padded_width);
  };
  cuda::with_pack_size<T>(
      args.width, {args.dy, args.x, args.weight, args.residual, args.dx, args.workspace}, [&]<int N>() {
        if constexpr (N > 1) {
          if (args.width <= 256) return warp_per_row.template operator()<N, 8>();
          if (args.width <= widest_row_of_warp) return warp_per_row.template operator()<N, 24>();
        }
        const int threads = cuda::threads_for_row(args.width / N);
        if (bytes <= shared_bytes)
          norm_backward_kernel<T, N, true>
              <<<parts, threads, static_cast<std::size_t>(bytes), cuda.stream>>>(args, padded_width);
        else
          norm_backward_kernel<T, N, false><<<parts, threads, 0, cuda.stream>>>(args, padded_width);
      });
  cuda::check_launch("norm_backward");
  cuda::add_partial_sums(cuda, args.dweight, args.dbias, args.residual_sum, num_sums,
                         static_cast<const float*>(args.workspace), parts, args.width);
}

template void norm_forward(Cuda, const NormForward<float>&);
template void norm_forward(Cuda, const NormForward<bf16>&);
template void residual_norm_forward(Cuda, const ResidualForward<float>&, const NormForward<float>&);
template void residual_norm_forward(Cuda, const ResidualForward<bf16>&, const NormForward<bf16>&);
template std::int64_t norm_backward_workspace_bytes<float>(Cuda, std::int64_t, std::int64_t);
template std::int64_t norm_backward_workspace_bytes<bf16>(Cuda, std::int64_t, std::int64_t);
template void norm_backward(Cuda, const NormBackward<float>&);
template void norm_backward(Cuda, const NormBackward<bf16>&);

}  // namespace choir::kernels
