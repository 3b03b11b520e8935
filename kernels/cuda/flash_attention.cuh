// What the kernels of flash attention share: the mask, the sizes of tiles, and the copies between global and shared
// memory.
//
// Each kernel keeps a tile of rows (queries, or keys with their values) in shared memory and streams the tiles of the
// other side through two buffers: the next tile is copied while this one is used. A warp owns 16 of the rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/flash_attention.h"
#include "kernels/cuda/flash_attention_tile.cuh"
#include "kernels/philox.h"

namespace choir::kernels::cuda {

// ---- The mask

using Pairs = VisiblePairs<int>;  // check_flash_shape: the lengths are small enough
using Range = Pairs::Range;

/// What documents leave to the rows of a warp, queries or keys: indices of the other side.
template <int rows_per_lane>
struct WarpDocuments {
  Range of_warp;                ///< of all its rows
  Range of_row[rows_per_lane];  ///< of the lane's rows

  /// `range_of(row)`: of a row below `end`. `Tile::row(i)` is row i of the lane, from first_row on.
  template <class Tile, class RangeOf>
  __device__ void read(bool separate, int first_row, int end, const RangeOf& range_of) {
    constexpr int most = 1 << 30;  // check_flash_shape
    of_warp = {0, most};
#pragma unroll
    for (int i = 0; i < rows_per_lane; ++i) of_row[i] = {0, most};
    if (!separate || first_row >= end) return;
    of_warp = {range_of(first_row).begin, range_of(min(first_row + warp_rows, end) - 1).end};
#pragma unroll
    for (int i = 0; i < rows_per_lane; ++i) of_row[i] = range_of(min(first_row + Tile::row(i), end - 1));
  }
  __device__ bool any(Range others) const { return others.begin < of_warp.end && of_warp.begin < others.end; }
  __device__ bool sees(int i, int other) const { return of_row[i].begin <= other && other < of_row[i].end; }
};

/// `others`, without those outside the documents of rows [begin, end).
template <class RangeOf>
__device__ Range within_documents(bool separate, Range others, int begin, int end, const RangeOf& range_of) {
  if (!separate || begin >= end) return others;
  return intersect<int>(others, {range_of(begin).begin, range_of(end - 1).end});
}

// ---- Groups of query heads

__device__ inline int kv_head_of(const AttentionShape& s, int head) {
  return static_cast<int>((head + s.group_offset) / s.group_size);
}

/// The query heads that read a key/value head; may be empty.
__device__ inline Range heads_of_group(const AttentionShape& s, int kv_head) {
  const std::int64_t begin = kv_head * s.group_size - s.group_offset;
  return {static_cast<int>(max(std::int64_t{0}, begin)), static_cast<int>(min(s.heads, begin + s.group_size))};
}

// ---- Tiles

/// Sizes for heads of up to `width` features, a multiple of 32; narrower heads are padded with zeros.
template <class T, int width>
struct Tiling {
  static constexpr int stride = width + pack_size<T>;  ///< from row to row in shared memory (flash_attention_tile.cuh)
  static constexpr int rows = sizeof(T) * width > 512 ? 32 : 64;  ///< that stay
  static constexpr int streamed =                                 ///< rows of 8 KB, in whole tiles
      std::clamp(8192 / static_cast<int>(sizeof(T)) / width / 16 * 16, 16, 64);
  static constexpr int row_warps = rows / warp_rows;
};

/// For __launch_bounds__: the number of blocks that share a multiprocessor and its registers, as many as its shared
/// memory has room for: by default the compiler saves registers for more, and spills. f32 has registers for three.
/// If bf16 has room for more than `most`, the compiler's default is good: 0.
template <class T>
constexpr int resident_blocks(int shared_bytes, int most) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr int shared_bytes_of_multiprocessor = 164 << 10;
#else
  constexpr int shared_bytes_of_multiprocessor = 228 << 10;
#endif
  const int room = shared_bytes_of_multiprocessor / (shared_bytes + 1024);  // the driver takes 1 KB of each
  if (std::is_same_v<T, float>) return std::min(room, 3);
  return room <= most ? room : 0;
}

/// One head of a tensor: rows of `width` features, `stride` elements apart.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t stride;
  int width;
  bool in_packs;  ///< every row is aligned to 16 bytes and a multiple of them

  __device__ T* row(int i) const { return data + i * stride; }
};

/// Head `head` of sequence `batch` of a tensor [batch, length, heads, width].
template <class T>
__device__ HeadRows<T> head_rows(T* tensor, std::int64_t stride, std::int64_t length, std::int64_t width, int batch,
                                 int head, bool in_packs) {
  return {tensor + batch * length * stride + head * width, stride, static_cast<int>(width), in_packs};
}

/// shared [tile_rows, padded_width] = rows first, first + 1, ... of a head; zeros at and beyond row `end` and beyond
/// the head's width. All threads of the block take part; the copies may still be under way (wait_for_copies).
template <int tile_rows, int padded_width, int threads, class T>
__device__ void load_rows(T* shared, const HeadRows<const T>& from, int first, int end) {
  constexpr int pack = pack_size<T>, packs = padded_width / pack, stride = Tiling<T, padded_width>::stride;
  for (int n = static_cast<int>(threadIdx.x); n < tile_rows * packs; n += threads) {
    const int row = first + n / packs, column = n % packs * pack;
    const int present = row < end ? from.width - column : 0;
    const T* source = present > 0 ? from.row(row) + column : from.data;
    T* to = shared + n / packs * stride + column;
    if (from.in_packs) {
      copy_async<16>(to, source, present > 0);
    } else {
#pragma unroll
      for (int e = 0; e < pack; ++e) to[e] = e < present ? source[e] : T{};
    }
  }
}

/// shared [count] = from[first], from[first + 1], ...; zeros at and beyond `end`.
template <int count, int threads>
__device__ void load_row_values(float* shared, const float* from, int first, int end) {
  for (int n = static_cast<int>(threadIdx.x); n < count; n += threads) {
    const bool present = first + n < end;
    copy_async<4>(shared + n, present ? from + first + n : from, present);
  }
}

/// Rows first ... of a head, columns first_column ..., = a warp's tile, rounded to T; nothing at and beyond row `end`.
/// The tile goes through `shared`, the warp's own [16, columns] with rows `stride` apart, for stores of 16 bytes.
template <int stride, int columns, class T>
__device__ void store_rows(const WarpTile<T, columns>& tile, T* shared, const HeadRows<T>& to, int first,
                           int first_column, int end) {
  constexpr int pack = pack_size<T>, packs = columns / pack;
  store_shared<stride>(tile, shared);
  __syncwarp();
  for (int n = lane_of_warp(); n < warp_rows * packs; n += 32) {
    const int row = first + n / packs, column = n % packs * pack;
    const int present = row < end ? to.width - first_column - column : 0;
    if (present <= 0) continue;
    const T* from = shared + n / packs * stride + column;
    T* target = to.row(row) + first_column + column;
    if (to.in_packs) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int e = 0; e < min(pack, present); ++e) target[e] = from[e];
    }
  }
}

// ---- Numbers

inline constexpr double log2_of_e = 1.4426950408889634, log_of_2 = 0.6931471805599453;

/// 2^x, relative error 2^-22; 0 for -inf and below 2^-126.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- Scores

__device__ inline HeadScore<float> head_score(const AttentionShape& s, int head) {
  return {s.score, head, [](float x) { return exp2f(x); }};
}

/// By how many positions key `key` stands after query `query`.
__device__ inline float distance_of(const AttentionShape& s, int query, int key) {
  return static_cast<float>(key - query - s.score.diagonal);
}

/// HeadScore of a product. `derivative`: of the score by it.
__device__ inline float score_of(const HeadScore<float>& head, float product, float distance, float& derivative) {
  return head(product, distance, derivative, [](float x) { return tanhf(x); });
}

// ---- Dropout

/// Which values of a lane are kept, a bit for each, and what these are multiplied by.
struct LaneDropout {
  std::uint32_t kept = 0xffffffffu;
  float scale = 1;

  template <class Tile>
  __device__ float factor(int i, int j) const {
    return (kept >> (i * Tile::columns_per_lane + j) & 1) != 0 ? scale : 0.0f;
  }
};

/// `query_of(i, j)` and `key_of(i, j)`: of value[i][j] of a tile of the lane. The loop has one body, since its random
/// numbers would take many registers if several were made at a time.
template <class Tile, class QueryOf, class KeyOf>
__device__ LaneDropout lane_dropout(const AttentionShape& s, int batch, int head, const QueryOf& query_of,
                                    const KeyOf& key_of) {
  static_assert(Tile::rows_per_lane * Tile::columns_per_lane <= 32);
  if (s.dropout.p == 0) return {};
  const std::uint32_t threshold = drop_below(s.dropout.p);
  LaneDropout dropout{0, static_cast<float>(1 / (1 - s.dropout.p))};
#pragma unroll 1
  for (int n = 0; n < Tile::rows_per_lane * Tile::columns_per_lane; ++n) {
    const int i = n / Tile::columns_per_lane, j = n % Tile::columns_per_lane;
    const AttentionDropout::Word word = s.dropout.word_of(batch, head, query_of(i, j), key_of(i, j));
    const PhiloxBlock words = philox(s.dropout.key, word.block, s.dropout.scalars->step);
    const std::uint32_t low = word.number % 2 == 0 ? words[0] : words[1];
    const std::uint32_t high = word.number % 2 == 0 ? words[2] : words[3];
    dropout.kept |= static_cast<std::uint32_t>((word.number < 2 ? low : high) >= threshold) << n;
  }
  return dropout;
}

// ---- On the host

inline void check_flash_shape(const AttentionShape& s) {
  const auto refuse = [](const std::string& why) { throw Failure("flash attention", why); };
  if (s.head_width > flash_widest_head)
    refuse("a head of " + std::to_string(s.head_width) + " features is wider than " +
           std::to_string(flash_widest_head));
  if (s.q_length + s.kv_length >= std::int64_t{1} << 30)
    refuse(std::to_string(s.q_length) + " queries and " + std::to_string(s.kv_length) + " keys are 2^30 or more");
  if (s.heads > 0 && (s.heads - 1 + s.group_offset) / s.group_size >= s.kv_heads)
    refuse("query head " + std::to_string(s.heads - 1) + " reads key/value head " +
           std::to_string((s.heads - 1 + s.group_offset) / s.group_size) + ", but there are " +
           std::to_string(s.kv_heads) + " (group_size " + std::to_string(s.group_size) + ", group_offset " +
           std::to_string(s.group_offset) + ")");
}

/// Whether every row of every head at these addresses can be read and written with 16-byte accesses.
template <class T>
bool rows_in_packs(const AttentionShape& s, std::initializer_list<const void*> addresses) {
  return (s.head_width % pack_size<T> | s.q_stride % pack_size<T> | s.k_stride % pack_size<T> |
          s.v_stride % pack_size<T> | s.out_stride % pack_size<T>) == 0 &&
         aligned(addresses);
}

/// Calls body<width, plain>() with the smallest width, of those that the kernels are compiled for, that the head fits
/// in. The kernels are compiled twice, so that options cost nothing if they are off (AttentionShape::is_plain).
template <class Body>
void with_kernels_for(const AttentionShape& s, const Body& body) {
  const auto with_width = [&]<int width>() {
    if (s.is_plain()) return body.template operator()<width, true>();
    return body.template operator()<width, false>();
  };
  if (s.head_width <= 32) return with_width.template operator()<32>();
  if (s.head_width <= 64) return with_width.template operator()<64>();
  if (s.head_width <= 96) return with_width.template operator()<96>();
  if (s.head_width <= 128) return with_width.template operator()<128>();
  return with_width.template operator()<256>();
}

/// Tiles of `rows` rows x heads x batch.
inline dim3 grid_of(std::int64_t length, int rows, std::int64_t heads, std::int64_t batch) {
  return {static_cast<unsigned>((length + rows - 1) / rows), static_cast<unsigned>(heads),
          static_cast<unsigned>(batch)};
}

/// Launches a kernel with more shared memory than kernels get by default.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
            cudaStream_t stream, const std::type_identity_t<Parameters>&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        std::string("cudaFuncSetAttribute (") + name + ")");
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  check_launch(name);
}

}  // namespace choir::kernels::cuda
