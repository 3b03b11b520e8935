// Flash attention, forward: Dao, "FlashAttention-2" (2023), arXiv 2307.08691, algorithm 1.
//
// A block takes 64 queries of one head and passes over the keys that they see. With s = scale log2(e) q k^T for a tile
// of keys, and m, l, o the maximum, the sum and the output so far (all 0 or -inf at first):
//   m' = max(m, max_j s_j),  p_j = 2^(s_j - m'),  l' = 2^(m - m') l + sum_j p_j,  o' = 2^(m - m') o + p v
// and at the end out = o / l and lse = log(2) m + log(l). p is rounded to T for the product with v, l is not. Dropout
// changes the p of this product only.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/flash_attention.cuh"

namespace choir::kernels::cuda {

template <class T, int width>
constexpr int forward_threads = Tiling<T, width>::row_warps * 32;

/// q [rows], then two buffers of k and v [streamed].
template <class T, int width>
constexpr int forward_shared_bytes =
    (Tiling<T, width>::rows + 4 * Tiling<T, width>::streamed) * Tiling<T, width>::stride* int{sizeof(T)};

template <class T, int width, bool plain>
__global__ void __launch_bounds__(forward_threads<T, width>,
                                  plain ? resident_blocks<T>(forward_shared_bytes<T, width>, 4) : 1)
    flash_forward_kernel(AttentionForward<T> args, Pairs pairs, bool in_packs) {
  using Tiles = Tiling<T, width>;
  using Scores = WarpTile<T, Tiles::streamed>;
  using Output = WarpTile<T, width>;
  constexpr int stride = Tiles::stride, threads = forward_threads<T, width>;
  constexpr float infinity = __builtin_huge_valf();
  extern __shared__ uint4 shared_memory[];
  T* const q_tile = reinterpret_cast<T*>(shared_memory);
  T* const kv_tiles = q_tile + Tiles::rows * stride;

  const AttentionShape& s = args.shape;
  const int head = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const auto q = head_rows(args.q, s.q_stride, s.q_length, s.head_width, batch, head, in_packs);
  const auto k = head_rows(args.k, s.k_stride, s.kv_length, s.head_width, batch, kv_head_of(s, head), in_packs);
  const auto v = head_rows(args.v, s.v_stride, s.kv_length, s.head_width, batch, kv_head_of(s, head), in_packs);
  const auto out = head_rows(args.out, s.out_stride, s.q_length, s.head_width, batch, head, in_packs);

  // Under a causal mask the last queries see the most keys: they start first.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Tiles::rows;
  [[maybe_unused]] const auto keys_of = [&](int query) { return s.documents.keys_of(batch, head, query); };
  Range keys = pairs.keys_of(Range{first_query, first_query + Tiles::rows});
  if constexpr (!plain)
    keys = within_documents(s.documents.separate, keys, first_query, min(first_query + Tiles::rows, pairs.q_length),
                            keys_of);
  const auto load_keys = [&](int first_key, int buffer) {
    T* const k_tile = kv_tiles + 2 * buffer * Tiles::streamed * stride;
    load_rows<Tiles::streamed, width, threads>(k_tile, k, first_key, keys.end);
    load_rows<Tiles::streamed, width, threads>(k_tile + Tiles::streamed * stride, v, first_key, keys.end);
  };
  load_rows<Tiles::rows, width, threads>(q_tile, q, first_query, pairs.q_length);
  if (keys.begin < keys.end) load_keys(keys.begin, 0);

  const int warp_row = static_cast<int>(threadIdx.x) / 32 * warp_rows, warp_query = first_query + warp_row;
  const float scale = static_cast<float>(s.scale * log2_of_e);
  [[maybe_unused]] WarpDocuments<Scores::rows_per_lane> documents;
  if constexpr (!plain) documents.template read<Scores>(s.documents.separate, warp_query, pairs.q_length, keys_of);
  Output output;
  float maximum[Output::rows_per_lane], sum[Output::rows_per_lane];  // of the row; of the lane's part of the row
#pragma unroll
  for (int i = 0; i < Output::rows_per_lane; ++i) maximum[i] = -infinity, sum[i] = 0;

  int buffer = 0;
  for (int first_key = keys.begin; first_key < keys.end; first_key += Tiles::streamed, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile is here, and everyone is done with the tile before
    if (first_key + Tiles::streamed < keys.end) load_keys(first_key + Tiles::streamed, buffer ^ 1);
    const Range of_warp = {warp_query, warp_query + warp_rows}, of_tile = {first_key, first_key + Tiles::streamed};
    if (!pairs.any(of_warp, of_tile)) continue;
    if constexpr (!plain)
      if (!documents.any(of_tile)) continue;
    const T* const k_tile = kv_tiles + 2 * buffer * Tiles::streamed * stride;
    const T* const v_tile = k_tile + Tiles::streamed * stride;

    Scores p;
    multiply_add_transposed<width, stride>(p, q_tile + warp_row * stride, k_tile);
    if constexpr (plain) {
      for_each(p, [&](float product, int, int) { return product * scale; });
    } else {
      const HeadScore<float> of_head = head_score(s, head);
      const float distance = distance_of(s, warp_query, first_key);
      for_each(p, [&](float product, int i, int j) {
        float derivative;
        return score_of(of_head, product * scale, distance + static_cast<float>(p.column(j) - p.row(i)), derivative);
      });
    }
    if (!pairs.all(of_warp, of_tile)) {
      for_each(p, [&](float score, int i, int j) {
        return pairs.sees(warp_query + p.row(i), first_key + p.column(j)) ? score : -infinity;
      });
    }
    if constexpr (!plain)
      for_each(
          p, [&](float score, int i, int j) { return documents.sees(i, first_key + p.column(j)) ? score : -infinity; });
#pragma unroll
    for (int i = 0; i < Scores::rows_per_lane; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < Scores::columns_per_lane; ++j) largest = fmaxf(largest, p.value[i][j]);
      largest = join_row<Scores>(largest, Largest{});
      const float reference = largest == -infinity ? 0.0f : largest;  // nothing seen yet: -inf - -inf is NaN
      const float rescale = power_of_two(maximum[i] - reference);
      maximum[i] = largest;
      sum[i] *= rescale;
#pragma unroll
      for (int j = 0; j < Scores::columns_per_lane; ++j) {
        p.value[i][j] = power_of_two(p.value[i][j] - reference);
        sum[i] += p.value[i][j];
      }
#pragma unroll
      for (int j = 0; j < Output::columns_per_lane; ++j) output.value[i][j] *= rescale;
    }
    if constexpr (!plain) {
      const LaneDropout dropout = lane_dropout<Scores>(
          s, batch, head, [&](int i, int) { return warp_query + p.row(i); },
          [&](int, int j) { return first_key + p.column(j); });
      for_each(p, [&](float probability, int i, int j) { return probability * dropout.factor<Scores>(i, j); });
    }
    multiply_add<stride>(output, p, v_tile);
  }
  wait_for_copies();
  __syncthreads();

  float* const lse = args.lse + (batch * s.heads + head) * s.q_length;
#pragma unroll
  for (int i = 0; i < Output::rows_per_lane; ++i) {
    const float total = join_row<Scores>(sum[i], Plus{});
    const float inverse = total == 0 ? 0.0f : 1 / total;  // a query that sees no key gives 0
#pragma unroll
    for (int j = 0; j < Output::columns_per_lane; ++j) output.value[i][j] *= inverse;
    const int query = warp_query + Output::row(i);
    if (Output::column(0) == 0 && query < pairs.q_length)
      lse[query] = total == 0 ? -infinity : fmaf(maximum[i], static_cast<float>(log_of_2), logf(total));
  }
  store_rows<stride>(output, q_tile + warp_row * stride, out, warp_query, 0, pairs.q_length);
}

template <class T>
std::int64_t flash_forward_workspace_bytes(const AttentionShape&) {
  return 0;
}

template <class T>
void flash_forward(Cuda cuda, const AttentionForward<T>& args) {
  const AttentionShape& s = args.shape;
  check_flash_shape(s);
  with_kernels_for(s, [&]<int width, bool plain>() {
    launch("flash_forward", flash_forward_kernel<T, width, plain>,
           grid_of(s.q_length, Tiling<T, width>::rows, s.heads, s.batch), forward_threads<T, width>,
           forward_shared_bytes<T, width>, cuda.stream, args, visible_pairs<int>(s),
           rows_in_packs<T>(s, {args.q, args.k, args.v, args.out}));
  });
}

template std::int64_t flash_forward_workspace_bytes<float>(const AttentionShape&);
template std::int64_t flash_forward_workspace_bytes<bf16>(const AttentionShape&);
template void flash_forward(Cuda, const AttentionForward<float>&);
template void flash_forward(Cuda, const AttentionForward<bf16>&);

}  // namespace choir::kernels::cuda
