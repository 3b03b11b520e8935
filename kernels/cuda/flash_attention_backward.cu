// Flash attention, backward: Dao, "FlashAttention-2" (2023), arXiv 2307.08691, algorithm 2, without its atomics.
//
//   delta_i = sum_e dout_ie out_ie        p_ij = exp(s_ij - lse_i)        dp_ij = m_ij dout_i v_j
//   ds_ij   = p_ij (dp_ij - delta_i) times the derivative of the score s_ij by its product
//   dq_i    = scale sum_j ds_ij k_j       dk_j = scale sum_i ds_ij q_i             dv_j  = sum_i m_ij p_ij dout_i
//
// m is the factor of dropout, 1 without.
//
// Three kernels: delta; dq, a block per 64 queries of a head; dk and dv, a block per 64 keys of a key/value head, which
// passes over the queries of all heads that read it. p and ds are computed twice, so that every sum has one owner and
// one order. p and ds are rounded to T for their products.
#include "kernels/cuda/flash_attention.cuh"

namespace choir::kernels::cuda {

// ---- delta [batch, heads, q_length]: a warp per query

template <class T>
__global__ void __launch_bounds__(threads_per_block) flash_delta_kernel(AttentionBackward<T> args, float* delta) {
  const AttentionShape& s = args.shape;
  const std::int64_t warps = threads_of_grid() / 32, queries = s.batch * s.heads * s.q_length;
  for (std::int64_t n = thread_of_grid() / 32; n < queries; n += warps) {
    const std::int64_t query = n % s.q_length, head = n / s.q_length % s.heads, batch = n / s.q_length / s.heads;
    const std::int64_t row = (batch * s.q_length + query) * s.out_stride + head * s.head_width;
    float sum = 0;
    for (std::int64_t e = lane_of_warp(); e < s.head_width; e += 32)
      sum = fmaf(load<1>(args.dout + row + e).value[0], load<1>(args.out + row + e).value[0], sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane_of_warp() == 0) delta[n] = sum;
  }
}

// ---- dq

template <class T, int width>
constexpr int dq_threads = Tiling<T, width>::row_warps * 32;

/// q and dout [rows], then two buffers of k and v [streamed].
template <class T, int width>
constexpr int dq_shared_bytes =
    (2 * Tiling<T, width>::rows + 4 * Tiling<T, width>::streamed) * Tiling<T, width>::stride* int{sizeof(T)};

template <class T, int width, bool plain>
__global__ void __launch_bounds__(dq_threads<T, width>, plain ? resident_blocks<T>(dq_shared_bytes<T, width>, 3) : 1)
    flash_dq_kernel(AttentionBackward<T> args, const float* delta, Pairs pairs, bool in_packs) {
  using Tiles = Tiling<T, width>;
  using Scores = WarpTile<T, Tiles::streamed>;
  using Gradient = WarpTile<T, width>;
  constexpr int stride = Tiles::stride, threads = dq_threads<T, width>;
  extern __shared__ uint4 shared_memory[];
  T* const q_tile = reinterpret_cast<T*>(shared_memory);
  T* const dout_tile = q_tile + Tiles::rows * stride;
  T* const kv_tiles = dout_tile + Tiles::rows * stride;

  const AttentionShape& s = args.shape;
  const int head = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const auto q = head_rows(args.q, s.q_stride, s.q_length, s.head_width, batch, head, in_packs);
  const auto dout = head_rows(args.dout, s.out_stride, s.q_length, s.head_width, batch, head, in_packs);
  const auto k = head_rows(args.k, s.k_stride, s.kv_length, s.head_width, batch, kv_head_of(s, head), in_packs);
  const auto v = head_rows(args.v, s.v_stride, s.kv_length, s.head_width, batch, kv_head_of(s, head), in_packs);
  const auto dq = head_rows(args.dq, s.q_stride, s.q_length, s.head_width, batch, head, in_packs);

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
  load_rows<Tiles::rows, width, threads>(dout_tile, dout, first_query, pairs.q_length);
  if (keys.begin < keys.end) load_keys(keys.begin, 0);

  const int warp_row = static_cast<int>(threadIdx.x) / 32 * warp_rows, warp_query = first_query + warp_row;
  const float scale = static_cast<float>(s.scale * log2_of_e);
  float log2_sum[Scores::rows_per_lane], row_delta[Scores::rows_per_lane];
#pragma unroll
  for (int i = 0; i < Scores::rows_per_lane; ++i) {
    const int query = warp_query + Scores::row(i);
    const std::int64_t n = (batch * s.heads + head) * s.q_length + query;
    log2_sum[i] = query < pairs.q_length ? args.lse[n] * static_cast<float>(log2_of_e) : 0.0f;
    row_delta[i] = query < pairs.q_length ? delta[n] : 0.0f;
  }

  [[maybe_unused]] WarpDocuments<Scores::rows_per_lane> documents;
  if constexpr (!plain) documents.template read<Scores>(s.documents.separate, warp_query, pairs.q_length, keys_of);
  Gradient gradient;
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

    [[maybe_unused]] LaneDropout dropout;
    if constexpr (!plain)
      dropout = lane_dropout<Scores>(
          s, batch, head, [&](int i, int) { return warp_query + Scores::row(i); },
          [&](int, int j) { return first_key + Scores::column(j); });
    Scores scores, ds;
    multiply_add_transposed<width, stride>(scores, q_tile + warp_row * stride, k_tile);
    multiply_add_transposed<width, stride>(ds, dout_tile + warp_row * stride, v_tile);
    const bool all = pairs.all(of_warp, of_tile);
    if constexpr (plain) {
      for_each(ds, [&](float dp, int i, int j) {
        const float p = power_of_two(fmaf(scores.value[i][j], scale, -log2_sum[i]));
        const bool seen = all || pairs.sees(warp_query + ds.row(i), first_key + ds.column(j));
        return seen ? p * (dp - row_delta[i]) : 0.0f;
      });
    } else {
      const HeadScore<float> of_head = head_score(s, head);
      const float distance = distance_of(s, warp_query, first_key);
      for_each(ds, [&](float dp, int i, int j) {
        float derivative;
        const float score = score_of(of_head, scores.value[i][j] * scale,
                                     distance + static_cast<float>(ds.column(j) - ds.row(i)), derivative);
        const int key = first_key + ds.column(j);
        const bool seen = (all || pairs.sees(warp_query + ds.row(i), key)) && documents.sees(i, key);
        const float dprobability = dp * dropout.factor<Scores>(i, j);
        return seen ? power_of_two(score - log2_sum[i]) * (dprobability - row_delta[i]) * derivative : 0.0f;
      });
    }
    multiply_add<stride>(gradient, ds, k_tile);
  }
  wait_for_copies();
  __syncthreads();
  for_each(gradient, [&](float value, int, int) { return value * static_cast<float>(s.scale); });
  store_rows<stride>(gradient, q_tile + warp_row * stride, dq, warp_query, 0, pairs.q_length);
}

// ---- dk and dv

/// Warps that share 16 keys: each has up to 128 features of dk and dv, as many as its registers can hold.
template <int width>
constexpr int feature_warps = width > 128 ? 2 : 1;

template <class T, int width>
constexpr int dkv_threads = Tiling<T, width>::row_warps* feature_warps<width> * 32;

/// k and v [rows], then two buffers of q and dout [streamed], then two of lse and delta [streamed] in f32.
template <class T, int width>
constexpr int dkv_shared_bytes = dq_shared_bytes<T, width> + 4 * Tiling<T, width>::streamed* int{sizeof(float)};

template <class T, int width, bool plain>
__global__ void __launch_bounds__(dkv_threads<T, width>, 1)
    flash_dkv_kernel(AttentionBackward<T> args, const float* delta, Pairs pairs, bool in_packs) {
  using Tiles = Tiling<T, width>;
  using Scores = WarpTile<T, Tiles::streamed>;  // transposed: a row is a key
  constexpr int features = width / feature_warps<width>;
  using Gradient = WarpTile<T, features>;
  constexpr int stride = Tiles::stride, threads = dkv_threads<T, width>;
  extern __shared__ uint4 shared_memory[];
  T* const k_tile = reinterpret_cast<T*>(shared_memory);
  T* const v_tile = k_tile + Tiles::rows * stride;
  T* const q_tiles = v_tile + Tiles::rows * stride;
  float* const lse_tiles = reinterpret_cast<float*>(q_tiles + 4 * Tiles::streamed * stride);

  const AttentionShape& s = args.shape;
  const int kv_head = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const auto k = head_rows(args.k, s.k_stride, s.kv_length, s.head_width, batch, kv_head, in_packs);
  const auto v = head_rows(args.v, s.v_stride, s.kv_length, s.head_width, batch, kv_head, in_packs);
  const auto dk = head_rows(args.dk, s.k_stride, s.kv_length, s.head_width, batch, kv_head, in_packs);
  const auto dv = head_rows(args.dv, s.v_stride, s.kv_length, s.head_width, batch, kv_head, in_packs);

  // The tiles of queries that see these keys, of the first head of the group, then of the second, ...: none if no query
  // head of this rank reads the key/value head.
  const int first_key = static_cast<int>(blockIdx.x) * Tiles::rows;
  const Range heads = heads_of_group(s, kv_head);
  Range queries = pairs.queries_of(Range{first_key, first_key + Tiles::rows});
  if constexpr (!plain) {
    const auto of_head = [&](int head) {
      return within_documents(s.documents.separate, queries, first_key, min(first_key + Tiles::rows, pairs.kv_length),
                              [&](int key) { return s.documents.queries_of(batch, head, key); });
    };
    Range all = heads.empty() ? Range{0, 0} : of_head(heads.begin);
    for (int head = heads.begin + 1; head < heads.end && s.documents.heads > 1; ++head) {
      const Range more = of_head(head);
      if (!more.empty()) all = all.empty() ? more : Range{min(all.begin, more.begin), max(all.end, more.end)};
    }
    queries = all;
  }
  const int tiles_per_head = max(0, queries.end - queries.begin + Tiles::streamed - 1) / Tiles::streamed;
  const int tiles = max(0, heads.end - heads.begin) * tiles_per_head;
  const auto first_query_of = [&](int tile) { return queries.begin + tile % tiles_per_head * Tiles::streamed; };
  const auto load_queries = [&](int tile, int buffer) {
    const int head = heads.begin + tile / tiles_per_head, first_query = first_query_of(tile);
    const auto q = head_rows(args.q, s.q_stride, s.q_length, s.head_width, batch, head, in_packs);
    const auto dout = head_rows(args.dout, s.out_stride, s.q_length, s.head_width, batch, head, in_packs);
    T* const q_tile = q_tiles + 2 * buffer * Tiles::streamed * stride;
    float* const lse_tile = lse_tiles + 2 * buffer * Tiles::streamed;
    const std::int64_t row = (batch * s.heads + head) * s.q_length;
    load_rows<Tiles::streamed, width, threads>(q_tile, q, first_query, queries.end);
    load_rows<Tiles::streamed, width, threads>(q_tile + Tiles::streamed * stride, dout, first_query, queries.end);
    load_row_values<Tiles::streamed, threads>(lse_tile, args.lse + row, first_query, queries.end);
    load_row_values<Tiles::streamed, threads>(lse_tile + Tiles::streamed, delta + row, first_query, queries.end);
  };
  load_rows<Tiles::rows, width, threads>(k_tile, k, first_key, pairs.kv_length);
  load_rows<Tiles::rows, width, threads>(v_tile, v, first_key, pairs.kv_length);
  if (tiles > 0) load_queries(0, 0);

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % Tiles::row_warps * warp_rows, warp_key = first_key + warp_row;
  const int first_feature = warp / Tiles::row_warps * features;
  const float scale = static_cast<float>(s.scale * log2_of_e);
  [[maybe_unused]] WarpDocuments<Scores::rows_per_lane> documents;
  Gradient of_k, of_v;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies();
    __syncthreads();  // this tile is here, and everyone is done with the tile before
    const int buffer = tile % 2;
    if (tile + 1 < tiles) load_queries(tile + 1, buffer ^ 1);
    if constexpr (!plain)
      if (tile % tiles_per_head == 0)
        documents.template read<Scores>(s.documents.separate, warp_key, pairs.kv_length, [&](int key) {
          return s.documents.queries_of(batch, heads.begin + tile / tiles_per_head, key);
        });
    const int first_query = first_query_of(tile);
    const Range of_tile = {first_query, first_query + Tiles::streamed}, of_warp = {warp_key, warp_key + warp_rows};
    if (!pairs.any(of_tile, of_warp)) continue;
    if constexpr (!plain)
      if (!documents.any(of_tile)) continue;
    const T* const q_tile = q_tiles + 2 * buffer * Tiles::streamed * stride;
    const T* const dout_tile = q_tile + Tiles::streamed * stride;
    const float* const lse_tile = lse_tiles + 2 * buffer * Tiles::streamed;
    const float* const delta_tile = lse_tile + Tiles::streamed;

    [[maybe_unused]] LaneDropout dropout;
    if constexpr (!plain)
      dropout = lane_dropout<Scores>(
          s, batch, heads.begin + tile / tiles_per_head, [&](int, int j) { return first_query + Scores::column(j); },
          [&](int i, int) { return warp_key + Scores::row(i); });
    Scores p, ds;
    multiply_add_transposed<width, stride>(p, k_tile + warp_row * stride, q_tile);
    multiply_add_transposed<width, stride>(ds, v_tile + warp_row * stride, dout_tile);
    const bool all = pairs.all(of_tile, of_warp);
    if constexpr (plain) {
      for_each(p, [&](float product, int i, int j) {
        const float log2_sum = lse_tile[p.column(j)] * static_cast<float>(log2_of_e);
        const bool seen = all || pairs.sees(first_query + p.column(j), warp_key + p.row(i));
        return seen ? power_of_two(fmaf(product, scale, -log2_sum)) : 0.0f;
      });
      multiply_add<stride>(of_v, p, dout_tile + first_feature);
      for_each(ds, [&](float dp, int i, int j) { return p.value[i][j] * (dp - delta_tile[ds.column(j)]); });
    } else {
      const HeadScore<float> of_head = head_score(s, heads.begin + tile / tiles_per_head);
      const float distance = distance_of(s, first_query, warp_key);
      for_each(p, [&](float product, int i, int j) {
        float derivative;
        const float score =
            score_of(of_head, product * scale, distance + static_cast<float>(p.row(i) - p.column(j)), derivative);
        const float log2_sum = lse_tile[p.column(j)] * static_cast<float>(log2_of_e);
        const int query = first_query + p.column(j);
        const bool seen = (all || pairs.sees(query, warp_key + p.row(i))) && documents.sees(i, query);
        const float probability = seen ? power_of_two(score - log2_sum) : 0.0f;
        const float factor = dropout.factor<Scores>(i, j);
        ds.value[i][j] = probability * (ds.value[i][j] * factor - delta_tile[p.column(j)]) * derivative;
        return probability * factor;
      });
      multiply_add<stride>(of_v, p, dout_tile + first_feature);
    }
    multiply_add<stride>(of_k, ds, q_tile + first_feature);
  }
  wait_for_copies();
  __syncthreads();
  for_each(of_k, [&](float value, int, int) { return value * static_cast<float>(s.scale); });
  const int corner = warp_row * stride + first_feature;
  store_rows<stride>(of_k, k_tile + corner, dk, warp_key, first_feature, pairs.kv_length);
  store_rows<stride>(of_v, v_tile + corner, dv, warp_key, first_feature, pairs.kv_length);
}

// ---- On the host

template <class T>
std::int64_t flash_backward_workspace_bytes(const AttentionShape& s) {
  return s.batch * s.heads * s.q_length * std::int64_t{sizeof(float)};
}

template <class T>
void flash_backward(Cuda cuda, const AttentionBackward<T>& args) {
  const AttentionShape& s = args.shape;
  check_flash_shape(s);
  auto* const delta = static_cast<float*>(args.workspace);
  const Pairs pairs = visible_pairs<int>(s);
  const bool in_packs = rows_in_packs<T>(s, {args.q, args.k, args.v, args.dout, args.dq, args.dk, args.dv});
  const std::int64_t queries = s.batch * s.heads * s.q_length;
  flash_delta_kernel<T><<<blocks_for_elements<1>(cuda, 32 * queries), threads_per_block, 0, cuda.stream>>>(args, delta);
  check_launch("flash_delta");
  with_kernels_for(s, [&]<int width, bool plain>() {
    constexpr int rows = Tiling<T, width>::rows;
    launch("flash_dq", flash_dq_kernel<T, width, plain>, grid_of(s.q_length, rows, s.heads, s.batch),
           dq_threads<T, width>, dq_shared_bytes<T, width>, cuda.stream, args, delta, pairs, in_packs);
    launch("flash_dkv", flash_dkv_kernel<T, width, plain>, grid_of(s.kv_length, rows, s.kv_heads, s.batch),
           dkv_threads<T, width>, dkv_shared_bytes<T, width>, cuda.stream, args, delta, pairs, in_packs);
  });
}

template std::int64_t flash_backward_workspace_bytes<float>(const AttentionShape&);
template std::int64_t flash_backward_workspace_bytes<bf16>(const AttentionShape&);
template void flash_backward(Cuda, const AttentionBackward<float>&);
template void flash_backward(Cuda, const AttentionBackward<bf16>&);

}  // namespace choir::kernels::cuda
