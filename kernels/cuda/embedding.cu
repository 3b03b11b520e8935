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

// ---- Backward. Each block has every so many-th token of the table: frequent tokens are neighbours in most
// vocabularies. It reads all ids, lists the rows with its tokens, and adds the rows of one token after another. The
// number of blocks is fixed, so the time grows with the rows, and not with their square.

constexpr int rows_at_once = 32 * 32;  ///< 32 words of 32 bits

/// Which of the rows [begin, end), rows_at_once at most, fulfil `condition`: their offsets from `begin` in ascending
/// order. Returns how many. All threads of the block call it; it is a barrier.
template <class Condition>
__device__ int select(std::int64_t begin, std::int64_t end, std::int32_t (&selected)[rows_at_once],
                      const Condition& condition) {
  __shared__ std::uint32_t map[32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  bool found = false;
  for (int word = warp; word < 32; word += warps) {
    const std::int64_t row = begin + word * 32 + lane;
    const std::uint32_t matches = __ballot_sync(0xffffffffu, row < end && condition(row));
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
    if (matches >> lane & 1) selected[before + __popc(lower)] = word * 32 + lane;
  }
  __syncthreads();  // the next call writes to `selected` after its own first barrier only
  return __shfl_sync(0xffffffffu, up_to, 31);
}

/// Rows that have one of a block's tokens, in ascending order.
struct RowsOfBlock {
  std::int32_t row[rows_at_once], id[rows_at_once];
};

/// Adds the rows of the list to their tokens.
template <class T, int N>
__device__ void add_rows(const EmbeddingBackward<T>& args, const RowsOfBlock& list, int count,
                         std::int32_t (&selected)[rows_at_once]) {
  for (int first = 0; first < count; ++first) {
    const std::int32_t id = list.id[first];
    bool earlier = false;
    for (int k = static_cast<int>(threadIdx.x); k < first; k += static_cast<int>(blockDim.x))
      earlier |= list.id[k] == id;
    if (__syncthreads_or(earlier)) continue;
    const int rows = select(first, count, selected, [&](std::int64_t k) { return list.id[k] == id; });
    float* sum = args.dtable + (id - args.first_token) * args.width;
    for (std::int64_t i = std::int64_t{threadIdx.x} * N; i < args.width; i += std::int64_t{blockDim.x} * N) {
      cuda::Pack<N> total = cuda::load<N>(sum + i);
#pragma unroll 8  // loads that do not wait for one another: a frequent token has thousands of rows
      for (int k = 0; k < rows; ++k) {
        const cuda::Pack<N> term = cuda::load<N>(args.dy + list.row[first + selected[k]] * args.width + i);
#pragma unroll
        for (int j = 0; j < N; ++j) total.value[j] += term.value[j];
      }
      cuda::store(total, sum + i);
    }
  }
}

template <class T, int N>
__global__ void __launch_bounds__(cuda::threads_per_block) embedding_backward_kernel(EmbeddingBackward<T> args) {
  __shared__ std::int32_t selected[rows_at_once], of_token[rows_at_once];
  __shared__ RowsOfBlock list;
  int count = 0;
  for (std::int64_t begin = 0; begin < args.rows; begin += rows_at_once) {
    const int found = select(begin, args.rows, selected, [&](std::int64_t row) {
      const std::int64_t token = args.ids[row] - args.first_token;
      return token >= 0 && token < args.num_tokens && static_cast<std::uint32_t>(token) % gridDim.x == blockIdx.x;
    });
    if (count + found > rows_at_once) {
      add_rows<T, N>(args, list, count, of_token);
      __syncthreads();  // before the list is written
      count = 0;
    }
    for (int k = static_cast<int>(threadIdx.x); k < found; k += static_cast<int>(blockDim.x)) {
      const std::int64_t row = begin + selected[k];
      list.row[count + k] = static_cast<std::int32_t>(row);
      list.id[count + k] = args.ids[row];
    }
    count += found;
    __syncthreads();
  }
  add_rows<T, N>(args, list, count, of_token);
}

template <class T>
void embedding_backward(Cuda cuda, const EmbeddingBackward<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.dy, args.dtable}, [&]<int N>() {
    embedding_backward_kernel<T, N>
        <<<cuda::blocks_for(cuda, args.num_tokens, 4), cuda::threads_for_row(args.width / N), 0, cuda.stream>>>(args);
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
