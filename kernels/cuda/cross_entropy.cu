// Softmax cross-entropy on the GPU, a block per row. A row is a slice of the vocabulary, 10^4 to 10^5 logits: the
// passes are bound by memory bandwidth. A block keeps what it has read of its row in shared memory, so that a row is
// read from memory once: up to 116,000 bf16 logits on Hopper, 83,000 on Ampere's A100. What does not fit is read again,
// from the second-level cache if it is still there.
#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>

#include "kernels/cross_entropy.h"
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels {

constexpr int threads_of_row = 512;  ///< at most; two blocks with GPT-2's vocabulary share a multiprocessor of Hopper

__device__ constexpr float lowest = -std::numeric_limits<float>::infinity();

/// The column of a row's target in this slice, or -1 if the row is padding or the target is in another slice.
template <class Args>
__device__ int column_of_target(const Args& args, std::int64_t row) {
  const std::int64_t token = args.targets[row] - args.first_token;
  return args.targets[row] >= 0 && token >= 0 && token < args.num_tokens ? static_cast<int>(token) : -1;
}

/// A row of logits, N at a time. Columns from num_tokens on are lowest; they may share a pack with logits and are not
/// read. N divides stride.
template <class T, int N>
class RowOfLogits {
 public:
  using Unit = std::conditional_t<N == 1, T, uint4>;

  /// `kept`: room for the first `room` packs.
  __device__ RowOfLogits(const T* logits, std::int64_t num_tokens, std::int64_t stride, Unit* kept, int room)
      : logits_(logits),
        num_tokens_(static_cast<int>(num_tokens)),
        packs_(static_cast<int>(stride) / N),
        kept_(kept),
        room_(room) {}

  /// body(i, the logits of columns [i, i + N)) for all packs up to the stride. A thread gets the same ones each time.
  /// `first`: from memory, and keeps them.
  template <bool first, class Body>
  __device__ void for_each_pack(const Body& body) const {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), whole = num_tokens_ / N;
#pragma unroll 2  // with 4, ptxas spills on sm_100
    for (int p = thread; p < whole; p += threads) {
      const bool keeps = p < room_;
      const Unit unit = first || !keeps ? *reinterpret_cast<const Unit*>(logits_ + p * N) : kept_[p];
      if (first && keeps) kept_[p] = unit;
      body(p * N, unpacked(unit));
    }
    for (int p = whole + thread; p < packs_; p += threads) body(p * N, last_logits(p * N));
  }

 private:
  __device__ static cuda::Pack<N> unpacked(const Unit& unit) {
    if constexpr (N == 1) {
      return cuda::load<1>(&unit);
    } else if constexpr (N == 4) {
      return {{__uint_as_float(unit.x), __uint_as_float(unit.y), __uint_as_float(unit.z), __uint_as_float(unit.w)}};
    } else {
      const float2 a = cuda::from_bf16_pair(unit.x), b = cuda::from_bf16_pair(unit.y);
      const float2 c = cuda::from_bf16_pair(unit.z), d = cuda::from_bf16_pair(unit.w);
      return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
    }
  }
  __device__ cuda::Pack<N> last_logits(int i) const {
    cuda::Pack<N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.value[j] = i + j < num_tokens_ ? cuda::load<1>(logits_ + i + j).value[0] : lowest;
    return pack;
  }

  const T* logits_;
  int num_tokens_, packs_;
  Unit* kept_;
  int room_;
};

struct RowStatistics {
  float max, sum;
};

/// In all threads of the block, which may write to the row afterwards.
template <class T, int N>
__device__ RowStatistics statistics_of(const RowOfLogits<T, N>& row) {
  float max[1] = {lowest};
  row.template for_each_pack<true>([&](int, const cuda::Pack<N>& values) {
#pragma unroll
    for (int j = 0; j < N; ++j) max[0] = fmaxf(max[0], values.value[j]);
  });
  cuda::block_reduce(max, cuda::Largest{});
  float sum = 0;
  row.template for_each_pack<false>([&](int, const cuda::Pack<N>& values) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum += expf(values.value[j] - max[0]);
  });
  return {max[0], cuda::block_sum(sum)};
}

/// `room`: packs of shared memory.
template <class T, int N>
__global__ void __launch_bounds__(threads_of_row)
    cross_entropy_statistics_kernel(CrossEntropyStatistics<T> args, int room) {
  extern __shared__ uint4 shared[];
  using Row = RowOfLogits<T, N>;
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const T* logits = args.logits + row * args.stride;
    const Row values(logits, args.num_tokens, args.stride, reinterpret_cast<typename Row::Unit*>(shared), room);
    const RowStatistics of_row = args.num_tokens == 0 ? RowStatistics{lowest, 0} : statistics_of(values);
    if (threadIdx.x != 0) continue;
    const int column = column_of_target(args, row);
    args.statistics[row] = of_row.max;
    args.statistics[args.rows + row] = of_row.sum;
    args.statistics[2 * args.rows + row] = column < 0 ? 0.0f : cuda::load<1>(logits + column).value[0];
  }
}

/// The statistics of all slices, from those of each.
template <class T>
__device__ RowStatistics joined(const CrossEntropy<T>& args, std::int64_t row, float& target) {
  RowStatistics all{lowest, 0};
  for (std::int64_t slice = 0; slice < args.slices; ++slice)
    all.max = fmaxf(all.max, args.statistics[3 * slice * args.rows + row]);
  target = 0;
  for (std::int64_t slice = 0; slice < args.slices; ++slice) {
    const float* of_slice = args.statistics + 3 * slice * args.rows + row;
    all.sum += of_slice[args.rows] * expf(of_slice[0] - all.max);
    target += of_slice[2 * args.rows];
  }
  return all;
}

template <class T, int N>
__global__ void __launch_bounds__(threads_of_row) cross_entropy_kernel(CrossEntropy<T> args, int room) {
  extern __shared__ uint4 shared[];
  using Row = RowOfLogits<T, N>;
  const auto scale = static_cast<float>(args.scale);
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    T* logits = args.logits + row * args.stride;
    const int column = column_of_target(args, row);
    const bool is_padding = args.targets[row] < 0;
    const Row values(logits, is_padding ? 0 : args.num_tokens, args.stride,
                     reinterpret_cast<typename Row::Unit*>(shared), room);
    float factor = 0, max = 0;
    if (!is_padding) {
      float target = column < 0 || threadIdx.x != 0 ? 0.0f : cuda::load<1>(logits + column).value[0];
      const RowStatistics all = args.statistics ? joined(args, row, target) : statistics_of(values);
      __syncthreads();  // the first thread has read the logit of the target, which is overwritten below
      if (threadIdx.x == 0) {
        args.losses[row] =
            log(static_cast<double>(all.sum)) + static_cast<double>(all.max) - static_cast<double>(target);
        if (args.right) args.right[row] = target == all.max ? 1 : 0;
      }
      factor = scale / all.sum;
      max = all.max;
    } else if (threadIdx.x == 0) {
      args.losses[row] = 0;
      if (args.right) args.right[row] = 0;
    }
    if (!args.gradient) continue;
    const auto write_gradient = [&](int i, cuda::Pack<N> pack) {
#pragma unroll
      for (int j = 0; j < N; ++j)
        pack.value[j] = fmaf(expf(pack.value[j] - max), factor, i + j == column ? -scale : 0.0f);
      cuda::store(pack, logits + i);
    };
    if (args.statistics)
      values.template for_each_pack<true>(write_gradient);
    else
      values.template for_each_pack<false>(write_gradient);
  }
}

__global__ void __launch_bounds__(threads_of_row) sum_of_losses_kernel(SumOfLosses args) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < args.rows; row += threads_of_row) total += args.losses[row];
  total = cuda::block_sum(total);
  if (threadIdx.x == 0) *args.sum += total;
}

/// A block for each row of `stride` logits, with as much of it in shared memory as a block can have.
template <class T, int N, class Args>
static void launch_for_rows(Cuda cuda, const char* name, void (*kernel)(Args, int), const Args& args) {
  int device = 0, most = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cuda::check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  constexpr int of_reduction = 1024;  // at most, of block_reduce()
  constexpr std::int64_t pack_bytes = N * sizeof(T);
  const std::int64_t packs = args.stride / N, room = std::min(packs, (most - of_reduction) / pack_bytes);
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most - of_reduction),
              std::string("cudaFuncSetAttribute (") + name + ")");
  const auto threads = static_cast<int>(std::clamp<std::int64_t>((packs + 31) / 32 * 32, 32, threads_of_row));
  kernel<<<cuda::blocks_for(cuda, args.rows), threads, static_cast<std::size_t>(room * pack_bytes), cuda.stream>>>(
      args, static_cast<int>(room));
  cuda::check_launch(name);
}

template <class T>
void cross_entropy_statistics(Cuda cuda, const CrossEntropyStatistics<T>& args) {
  cuda::with_pack_size<T>(args.stride, {args.logits}, [&]<int N>() {
    launch_for_rows<T, N>(cuda, "cross_entropy_statistics", cross_entropy_statistics_kernel<T, N>, args);
  });
}

template <class T>
void cross_entropy(Cuda cuda, const CrossEntropy<T>& args) {
  cuda::with_pack_size<T>(args.stride, {args.logits}, [&]<int N>() {
    launch_for_rows<T, N>(cuda, "cross_entropy", cross_entropy_kernel<T, N>, args);
  });
}

void sum_of_losses(Cuda cuda, const SumOfLosses& args) {
  sum_of_losses_kernel<<<1, threads_of_row, 0, cuda.stream>>>(args);
  cuda::check_launch("sum_of_losses");
}

template void cross_entropy_statistics(Cuda, const CrossEntropyStatistics<float>&);
template void cross_entropy_statistics(Cuda, const CrossEntropyStatistics<bf16>&);
template void cross_entropy(Cuda, const CrossEntropy<float>&);
template void cross_entropy(Cuda, const CrossEntropy<bf16>&);

}  // namespace choir::kernels
