// Token and position embeddings on the GPU. No atomics: one thread adds all rows of one element of the table, in
// ascending order, which gives the same bits as the CPU kernels.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/embedding.h"

namespace choir::kernels {

/// Rows of `width` units of a table; a Unit is as many bytes as one access moves.
template <class Unit>
__global__ void embedding_forward_kernel(const std::int32_t* ids, const Unit* table, Unit* y, std::int64_t rows,
                                         std::int64_t width, std::int64_t first_token, std::int64_t num_tokens) {
  for (std::int64_t i = cuda::thread_of_grid(); i < rows * width; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / width, column = i % width;
    const std::int64_t token = ids[row] - first_token;
    y[i] = token >= 0 && token < num_tokens ? table[token * width + column] : Unit{};
  }
}

template <class T>
void embedding_forward(Cuda cuda, const EmbeddingForward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.table, args.y}, [&]<int N>() {
    using Single = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint32_t>;
    using Unit = std::conditional_t<N == 1, Single, uint4>;
    const std::int64_t width = args.width / N;
    embedding_forward_kernel<<<cuda::blocks_for_elements<1>(cuda, args.rows * width), cuda::threads_per_block, 0,
                               cuda.stream>>>(args.ids, reinterpret_cast<const Unit*>(args.table),
                                              reinterpret_cast<Unit*>(args.y), args.rows, width, args.first_token,
                                              args.num_tokens);
  });
  cuda::check_launch("embedding_forward");
}

// ---- Backward. The block of the first row with a token adds all rows with this token. A block finds them by reading
// the ids, which stay in the second-level cache: at most rows^2 / 2 ids, little compared with dy up to about 10^5 rows
// per call.

/// True, in all threads, if one of ids[0, end) is `id`.
__device__ inline bool occurs(const std::int32_t* ids, std::int64_t end, std::int32_t id) {
  constexpr int ahead = 4;  // ids of a thread between two barriers
  const std::int64_t step = std::int64_t{blockDim.x} * ahead;
  for (std::int64_t begin = 0; begin < end; begin += step) {
    bool found = false;
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const std::int64_t row = begin + k * blockDim.x + threadIdx.x;
      if (row < end) found |= ids[row] == id;
    }
    if (__syncthreads_or(found)) return true;
  }
  return false;
}

/// Rows that are searched at once: 32 words of 32 bits.
constexpr int rows_of_map = 32 * 32;

/// Writes which of the rows [begin, begin + rows_of_map) have `id`, in ascending order, as offsets from `begin`.
/// Returns how many.
__device__ inline int rows_with(const std::int32_t* ids, std::int64_t begin, std::int64_t end, std::int32_t id,
                                std::int32_t (&rows)[rows_of_map]) {
  __shared__ std::uint32_t map[32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  bool found = false;
  for (int word = warp; word < 32; word += warps) {
    const std::int64_t row = begin + word * 32 + lane;
    const std::uint32_t matches = __ballot_sync(0xffffffffu, row < end && ids[row] == id);
    if (lane == 0) map[word] = matches;
    found |= matches != 0;
  }
  if (!__syncthreads_or(found)) return 0;

  int up_to = __popc(map[lane]);  // matches in the words up to and including the lane's
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, up_to, distance);
    if (lane >= distance) up_to += below;
  }
  for (int word = warp; word < 32; word += warps) {
    const std::uint32_t matches = map[word], lower = matches & ((1u << lane) - 1);
    const int before = __shfl_sync(0xffffffffu, up_to, word) - __popc(matches);
    if (matches >> lane & 1) rows[before + __popc(lower)] = word * 32 + lane;
  }
  __syncthreads();  // the next call writes to `rows` after its own first barrier only
  return __shfl_sync(0xffffffffu, up_to, 31);
}

template <class T, int N>
__global__ void __launch_bounds__(cuda::threads_per_block) embedding_backward_kernel(EmbeddingBackward<T> args) {
  __shared__ std::int32_t rows[rows_of_map];
  for (std::int64_t first = blockIdx.x; first < args.rows; first += gridDim.x) {
    const std::int32_t id = args.ids[first];
    const std::int64_t token = id - args.first_token;
    if (token < 0 || token >= args.num_tokens || occurs(args.ids, first, id)) continue;
    float* sum = args.dtable + token * args.width;
    for (std::int64_t begin = first; begin < args.rows; begin += rows_of_map) {
      const int count = rows_with(args.ids, begin, args.rows, id, rows);
      if (count == 0) continue;
      const T* dy = args.dy + begin * args.width;
      for (std::int64_t i = std::int64_t{threadIdx.x} * N; i < args.width; i += std::int64_t{blockDim.x} * N) {
        cuda::Pack<N> total = cuda::load<N>(sum + i);
#pragma unroll 8  // loads that do not wait for one another: a frequent token has thousands of rows
        for (int k = 0; k < count; ++k) {
          const cuda::Pack<N> term = cuda::load<N>(dy + rows[k] * args.width + i);
#pragma unroll
          for (int j = 0; j < N; ++j) total.value[j] += term.value[j];
        }
        cuda::store(total, sum + i);
      }
    }
  }
}

template <class T>
void embedding_backward(Cuda cuda, const EmbeddingBackward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.dy, args.dtable}, [&]<int N>() {
    // As many blocks as rows: most of them end at once, and the rows of a frequent token keep one block busy.
    const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(args.rows, 1, 0x7fffffff));
    embedding_backward_kernel<T, N><<<blocks, cuda::threads_for_row(args.width / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("embedding_backward");
}

/// N divides width.
template <class T, int N>
__global__ void position_forward_kernel(PositionForward<T> args) {
  const std::int64_t packs = args.width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < args.rows * packs; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / packs, column = i % packs * N;
    const std::int64_t position = args.positions ? args.positions[row] : args.map.position(row);
    cuda::Pack<N> sum = cuda::load<N>(args.x + row * args.width + column);
    const cuda::Pack<N> other = cuda::load<N>(args.table + position * args.width + column);
#pragma unroll
    for (int j = 0; j < N; ++j) sum.value[j] += other.value[j];
    cuda::store(sum, args.y + row * args.width + column);
  }
}

template <class T>
void position_forward(Cuda cuda, const PositionForward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.x, args.table, args.y}, [&]<int N>() {
    position_forward_kernel<T, N>
        <<<cuda::blocks_for_elements<N>(cuda, args.rows * args.width), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("position_forward");
}

/// N divides width.
template <class T, int N>
__global__ void position_backward_kernel(PositionBackward<T> args) {
  const std::int64_t packs = args.width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < args.map.positions() * packs; i += cuda::threads_of_grid()) {
    const std::int64_t column = i % packs * N;
    const RowMap::RowsOfPosition rows = args.map.rows_of(i / packs, args.rows);
    if (rows.begin >= rows.end) continue;
    float* sum = args.dtable + rows.position * args.width + column;
    cuda::Pack<N> total = cuda::load<N>(sum);
#pragma unroll 4
    for (std::int64_t row = rows.begin; row < rows.end; row += rows.step) {
      const cuda::Pack<N> term = cuda::load<N>(args.dy + row * args.width + column);
#pragma unroll
      for (int j = 0; j < N; ++j) total.value[j] += term.value[j];
    }
    cuda::store(total, sum);
  }
}

template <class T>
void position_backward(Cuda cuda, const PositionBackward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.dy, args.dtable}, [&]<int N>() {
    position_backward_kernel<T, N><<<cuda::blocks_for_elements<N>(cuda, args.map.positions() * args.width),
                                     cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("position_backward");
}

template void embedding_forward(Cuda, const EmbeddingForward<float>&);
template void embedding_forward(Cuda, const EmbeddingForward<bf16>&);
template void embedding_backward(Cuda, const EmbeddingBackward<float>&);
template void embedding_backward(Cuda, const EmbeddingBackward<bf16>&);
template void position_forward(Cuda, const PositionForward<float>&);
template void position_forward(Cuda, const PositionForward<bf16>&);
template void position_backward(Cuda, const PositionBackward<float>&);
template void position_backward(Cuda, const PositionBackward<bf16>&);

}  // namespace choir::kernels
