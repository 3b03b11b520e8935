// Attention on packed panels, for any unit (tile.h): the same formulas and masks as attention.cpp. Scores, sums and
// statistics are f32; probabilities and their gradients are operands of the next product, so rounded if those are bf16.
//
//   forward    of 32 queries, over spans of keys     s = q k^T,  p = 2^(s c - max),  out = (out 2^(old max - max)) + p v
//   backward   of 32 keys, over all their queries    s^T = k q^T,  dp^T = v dout^T,  p^T = 2^(s^T c - lse),
//                                                    ds^T = p^T (dp^T - delta),  dv += p^T dout,  dk += ds^T q
//              of 32 queries, over spans of keys     dq += ds k
//
// c = scale log2(e); s c is a score as kernels/score.h says, if it has options, and ds is times its derivative.
// Backward computes scores transposed, so that p^T and ds^T are left operands as they are stored and lse and delta are
// vectors; ds is their transpose, packed while it is in the first cache. In vectors, a product leaves out what the mask
// empties, eight rows at a time.
#if defined(CHOIR_KERNELS_CPU_TILE_ATTENTION_KERNEL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_ATTENTION_KERNEL_H
#undef CHOIR_KERNELS_CPU_TILE_ATTENTION_KERNEL_H
#else
#define CHOIR_KERNELS_CPU_TILE_ATTENTION_KERNEL_H
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/tile_attention.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/tile_pack.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

using cpu::AttentionGroup, cpu::AttentionPanels, cpu::backward_span, cpu::panels_of_span;
using PanelRange = IndexRange<std::int64_t>;
using i32x16 = std::int32_t __attribute__((vector_size(64)));

HWY_INLINE f32x16 splat(float value) { return f32x16{} + value; }

/// 2^x for x <= 127; 0 below -126; NaN stays NaN. The polynomial of power_of_two() in attention.cpp.
HWY_INLINE f32x16 exp2(f32x16 x) {
  const f32x16 shifter = splat(12583039.0f);  // 1.5 * 2^23 + 127: leaves n + 127 in the lowest bits
  const f32x16 shifted = x + shifter, r = x - (shifted - shifter), r2 = r * r;
  const auto power = reinterpret_cast<f32x16>(reinterpret_cast<i32x16>(shifted) << 23);
  const f32x16 p56 = 1.5461445e-4f * r + 1.3400428e-3f, p34 = 9.6180569e-3f * r + 5.5503272e-2f;
  const f32x16 p12 = 2.4022651e-1f * r + 6.9314718e-1f, p = ((p56 * r2 + p34) * r2 + p12) * r + 1.0f;
  return x < splat(-126.0f) ? f32x16{} : p * power;
}

/// `value` in the lanes that are indices of [begin, end), `other` elsewhere. Lane 0 is index 0.
HWY_INLINE f32x16 within(std::int64_t begin, std::int64_t end, f32x16 value, float other) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto limit = [](std::int64_t index) HWY_ATTR {
    return i32x16{} + static_cast<std::int32_t>(std::clamp<std::int64_t>(index, 0, 16));
  };
  return (lane >= limit(begin)) & (lane < limit(end)) ? value : splat(other);
}

/// The panels that hold these indices.
HWY_INLINE PanelRange panels_of(cpu::Range indices) {
  if (indices.empty()) return {0, 0};
  return {indices.begin / panel, cpu::num_panels(indices.end)};
}

/// Indices from `first` on, counted from there.
HWY_INLINE ElementRange from_first(ElementRange indices, std::int64_t first) {
  return {indices.begin - first, indices.end - first};
}

/// For each eight rows of a panel, what they see of the other side of the scores.
struct SeenByRows {
  ElementRange seen[panel / rows_together];

  /// Of `rows` rows; range_of(first, end) of them.
  template <class RangeOf>
  SeenByRows(std::int64_t rows, const RangeOf& range_of) {
    for (std::int64_t first = 0; first < panel; first += rows_together)
      seen[first / rows_together] =
          first < rows ? range_of(first, std::min(first + rows_together, rows)) : ElementRange{0, 0};
  }
  ElementRange of(std::int64_t row, std::int64_t first) const { return from_first(seen[row / rows_together], first); }
};

/// to [rows, width] = factor[row] * sums, rounded; `sums` has a block for each panel of columns, or is null: zeros.
template <class Unit, class Factor, class T = typename Unit::Element>
HWY_INLINE void store_rows(const float* sums, std::int64_t rows, std::int64_t width, const Factor& factor, T* to,
                           std::int64_t stride) {
  for (std::int64_t e = 0; e < width; e += panel) {
    for (std::int64_t r = 0; r < rows; ++r) {
      f32x16 low{}, high{};
      if (sums) {
        const float* row = sums + e * panel + r * panel;
        low = factor(r) * load_vector<f32x16>(row);
        high = factor(r) * load_vector<f32x16>(row + 16);
      }
      if (width - e >= panel) {
        narrow<Unit>(low, high, to + r * stride + e);
      } else {
        T values[panel];
        narrow<Unit>(low, high, values);
        std::memcpy(static_cast<void*>(to + r * stride + e), values, static_cast<std::size_t>(width - e) * sizeof(T));
      }
    }
  }
}

/// Asks for rows of a matrix, to be in the second cache when they are written.
template <class T>
HWY_INLINE void expect_stores(const T* first, std::int64_t stride, std::int64_t rows, std::int64_t width) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t e = 0; e < width; e += 64 / static_cast<std::int64_t>(sizeof(T)))
      __builtin_prefetch(first + r * stride + e, 1, 2);
  }
}

/// HeadScore of 16 products; `distance` of each. Writes the derivatives.
HWY_INLINE f32x16 score_of(const HeadScore<float>& head, f32x16 product, f32x16 distance, f32x16& derivative) {
  derivative = splat(1);
  if (head.cap > 0) {
    const f32x16 share = map_lanes(product * head.inverse_cap, [](auto d, auto x) HWY_ATTR {
      return hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));
    });
    product = share * head.cap;
    derivative = 1 - share * share;
  }
  return product - head.slope * (distance < f32x16{} ? -distance : distance);
}

/// first, first + 1, ...
HWY_INLINE f32x16 ascending(std::int64_t first) {
  const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane + static_cast<float>(first);
}

HWY_INLINE HeadScore<float> head_score_of(const Score& score, std::int64_t head) {
  return {score, head, [](float x) { return std::exp2(x); }};
}

// ---- Forward

/// Scores of 32 queries against the keys of panels `span` -> probabilities up to a factor: updates row_max and row_sum,
/// and returns the factors of earlier sums in `rescale`.
template <class Unit>
HWY_INLINE void tile_softmax(const AttentionShape& s, const cpu::SequencePairs& pairs, const HeadScore<float>& head,
                             std::int64_t first_query, std::int64_t rows, PanelRange span,
                             const cpu::TileForwardMemory<typename Unit::Element>& memory, float* rescale) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto factor = static_cast<float>(s.scale * cpu::log2_of_e);
  float largest[panel], base[panel];  // of the rows
  std::fill_n(largest, panel, -infinity);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t query = first_query + r;
    const cpu::Range seen = pairs.keys_of(query);
    f32x16 of_row = splat(memory.row_max[r]);
    for (std::int64_t j = span.begin; j < span.end; ++j) {
      float* row = memory.scores + (j - span.begin) * cpu::step_elements + r * panel;
      f32x16 low = load_vector<f32x16>(row) * factor, high = load_vector<f32x16>(row + 16) * factor;
      if (!s.score.is_product()) {
        const std::int64_t distance = j * panel - query - s.score.diagonal;
        f32x16 unused;
        low = score_of(head, low, ascending(distance), unused);
        high = score_of(head, high, ascending(distance + 16), unused);
      }
      const std::int64_t begin = seen.begin - j * panel, end = seen.end - j * panel;
      if (begin > 0 || end < panel) {
        low = within(begin, end, low, -infinity);
        high = within(begin - 16, end - 16, high, -infinity);
      }
      store_vector(row, low);
      store_vector(row + 16, high);
      of_row = Larger::of(of_row, Larger::of(low, high));
    }
    largest[r] = combine<Larger>(of_row);
  }
  for (std::int64_t r = 0; r < panel; r += 16) {
    const f32x16 now = load_vector<f32x16>(largest + r), from = now == splat(-infinity) ? f32x16{} : now;
    store_vector(base + r, from);
    store_vector(rescale + r, exp2(load_vector<f32x16>(memory.row_max + r) - from));
    store_vector(memory.row_max + r, now);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    f32x16 sum{};
    for (std::int64_t j = span.begin; j < span.end; ++j) {
      const std::int64_t at = (j - span.begin) * cpu::step_elements + r * panel;
      const f32x16 low = exp2(load_vector<f32x16>(memory.scores + at) - base[r]);
      const f32x16 high = exp2(load_vector<f32x16>(memory.scores + at + 16) - base[r]);
      sum += low + high;
      narrow<Unit>(low, high, memory.probabilities + at);
    }
    memory.row_sum[r] = memory.row_sum[r] * rescale[r] + combine<Sum>(sum);
  }
}

/// out and lse of 32 queries of one head.
template <class Unit>
HWY_INLINE void tile_forward_queries(const AttentionForward<typename Unit::Element>& args, const AttentionGroup& group,
                                     std::int64_t head, std::int64_t first_query,
                                     const cpu::TileForwardMemory<typename Unit::Element>& memory) {
  using T = typename Unit::Element;
  const AttentionShape& s = args.shape;
  const AttentionPanels panels(s);
  const cpu::SequencePairs pairs(s, group.batch, head);
  const HeadScore<float> score = head_score_of(s.score, head);
  const std::int64_t rows = std::min(panel, s.q_length - first_query);
  const std::int64_t token = group.batch * s.q_length + first_query;
  pack<PackRows>(args.q + token * s.q_stride + head * s.head_width, s.q_stride, rows, s.head_width, memory.query);
  T* out = args.out + token * s.out_stride + head * s.head_width;
  expect_stores(out, s.out_stride, rows, s.head_width);
  std::fill_n(memory.row_max, panel, -std::numeric_limits<float>::infinity());
  std::fill_n(memory.row_sum, panel, 0.0f);

  const SeenByRows keys_seen(rows, [&](std::int64_t first, std::int64_t end) {
    return pairs.keys_of(cpu::Range{first_query + first, first_query + end});
  });
  const PanelRange keys = panels_of(pairs.keys_of(cpu::Range{first_query, first_query + rows}));
  for (std::int64_t begin = keys.begin; begin < keys.end; begin += panels_of_span) {
    const PanelRange span{begin, std::min(begin + panels_of_span, keys.end)};
    for (std::int64_t j = span.begin; j < span.end; ++j)
      block_product<Unit>(memory.query, memory.keys + j * panels.width * cpu::step_elements, panels.width, nullptr,
                          memory.scores + (j - span.begin) * cpu::step_elements, [&](std::int64_t row) {
                            return Needed{{0, s.head_width}, keys_seen.of(row, j * panel)};
                          });
    float rescale[panel];
    tile_softmax<Unit>(s, pairs, score, first_query, rows, span, memory, rescale);
    for (std::int64_t e = 0; e < panels.width; ++e) {
      float* sums = memory.out + e * cpu::step_elements;
      const bool first = begin == keys.begin;
      for (std::int64_t r = 0; r < panel && !first; ++r) {
        float* row = sums + r * panel;
        store_vector(row, load_vector<f32x16>(row) * rescale[r]);
        store_vector(row + 16, load_vector<f32x16>(row + 16) * rescale[r]);
      }
      block_product<Unit>(memory.probabilities, memory.values + (e * panels.keys + span.begin) * cpu::step_elements,
                          span.end - span.begin, first ? nullptr : sums, sums, [&](std::int64_t row) {
                            return Needed{keys_seen.of(row, span.begin * panel), {0, s.head_width - e * panel}};
                          });
    }
  }
  store_rows<Unit>(
      keys.empty() ? nullptr : memory.out, rows, s.head_width,
      [&](std::int64_t r) HWY_ATTR { return memory.row_sum[r] == 0 ? 0.0f : 1 / memory.row_sum[r]; }, out,
      s.out_stride);
  float* lse = args.lse + (group.batch * s.heads + head) * s.q_length + first_query;
  for (std::int64_t r = 0; r < rows; ++r)
    lse[r] = memory.row_max[r] * static_cast<float>(cpu::log_of_2) + std::log(memory.row_sum[r]);
}

template <class Unit>
HWY_INLINE void tile_forward_part(const AttentionForward<typename Unit::Element>& args, cpu::Part groups,
                                  void* workspace) {
  using T = typename Unit::Element;
  const AttentionShape& s = args.shape;
  const cpu::TileForwardMemory<T> memory(s, workspace);
  Unit::configure();
  for (std::int64_t g = groups.begin; g < groups.end; ++g) {
    const AttentionGroup group(s, g);
    const T* k = args.k + group.batch * s.kv_length * s.k_stride + group.kv_head * s.head_width;
    const T* v = args.v + group.batch * s.kv_length * s.v_stride + group.kv_head * s.head_width;
    pack<PackColumnsTransposed>(k, s.k_stride, s.kv_length, s.head_width, memory.keys);
    pack<PackColumns>(v, s.v_stride, s.head_width, s.kv_length, memory.values);
    for (std::int64_t head = group.first_head; head < group.end_head; ++head) {
      for (std::int64_t i = 0; i < s.q_length; i += panel) tile_forward_queries<Unit>(args, group, head, i, memory);
    }
  }
  Unit::release();
}

// ---- Backward

/// The scores s^T and dp^T of key panel j and query panel i -> p^T and ds^T as left operands, and ds in its place.
template <class Unit>
HWY_INLINE void tile_softmax_gradient(const AttentionShape& s, const cpu::SequencePairs& pairs,
                                      const HeadScore<float>& head, std::int64_t j, std::int64_t i,
                                      const cpu::TileBackwardMemory<typename Unit::Element>& memory) {
  using T = typename Unit::Element;
  const auto factor = static_cast<float>(s.scale * cpu::log2_of_e);
  const bool all = pairs.all(cpu::Range{i * panel, (i + 1) * panel}, cpu::Range{j * panel, (j + 1) * panel});
  auto* p = memory.probabilities_transposed + i * cpu::step_elements;
  auto* ds = memory.dscores_transposed + i * cpu::step_elements;
  const float *lse = memory.lse + i * panel, *delta = memory.delta + i * panel;
  const f32x16 lse_low = load_vector<f32x16>(lse), lse_high = load_vector<f32x16>(lse + 16);
  const f32x16 delta_low = load_vector<f32x16>(delta), delta_high = load_vector<f32x16>(delta + 16);
  for (std::int64_t r = 0; r < panel; ++r) {
    const std::int64_t key = j * panel + r;
    const float *s_row = memory.scores + r * panel, *dp_row = memory.dprobabilities + r * panel;
    f32x16 low = load_vector<f32x16>(s_row) * factor, high = load_vector<f32x16>(s_row + 16) * factor;
    f32x16 slope_low = splat(1), slope_high = splat(1);
    if (!s.score.is_product()) {
      const std::int64_t distance = i * panel + s.score.diagonal - key;
      low = score_of(head, low, ascending(distance), slope_low);
      high = score_of(head, high, ascending(distance + 16), slope_high);
    }
    low = exp2(low - lse_low);
    high = exp2(high - lse_high);
    f32x16 ds_low = low * slope_low * (load_vector<f32x16>(dp_row) - delta_low);
    f32x16 ds_high = high * slope_high * (load_vector<f32x16>(dp_row + 16) - delta_high);
    if (!all) {
      const cpu::Range seen = from_first(key < s.kv_length ? pairs.queries_of(key) : cpu::Range{0, 0}, i * panel);
      for (f32x16* of_lanes : {&low, &ds_low}) *of_lanes = within(seen.begin, seen.end, *of_lanes, 0);
      for (f32x16* of_lanes : {&high, &ds_high}) *of_lanes = within(seen.begin - 16, seen.end - 16, *of_lanes, 0);
    }
    narrow<Unit>(low, high, p + r * panel);
    narrow<Unit>(ds_low, ds_high, ds + r * panel);
  }
  PackRowsTransposed::step(ds, panel,
                           memory.dscores + (i * backward_span<T> + j % backward_span<T>)*cpu::step_elements);
}

/// Whether some of the heads [group.first_head, end_head) sees some of these keys.
HWY_INLINE bool some_head_sees(const AttentionShape& s, const AttentionGroup& group, std::int64_t end_head,
                               cpu::Range keys) {
  for (std::int64_t head = group.first_head; head < end_head; ++head)
    if (!cpu::SequencePairs(s, group.batch, head).queries_of(keys).empty()) return true;
  return false;
}

/// dk and dv of key panel j from one head, and its ds. Of the first head of the group that sees the keys, sums begin at
/// 0. Returns the panels of queries whose ds it has written.
template <class Unit>
HWY_INLINE PanelRange tile_backward_keys(const AttentionBackward<typename Unit::Element>& args,
                                         const AttentionGroup& group, std::int64_t head, std::int64_t j,
                                         const cpu::TileBackwardMemory<typename Unit::Element>& memory) {
  const AttentionShape& s = args.shape;
  const AttentionPanels panels(s);
  const cpu::SequencePairs pairs(s, group.batch, head);
  const HeadScore<float> score = head_score_of(s.score, head);
  const std::int64_t lines = std::min(panel, s.kv_length - j * panel), token = group.batch * s.kv_length + j * panel;
  const cpu::Range keys{j * panel, j * panel + lines};
  const PanelRange queries = panels_of(pairs.queries_of(keys));
  if (queries.empty()) return queries;
  const std::int64_t feature = group.kv_head * s.head_width, of_panel = panels.width * cpu::step_elements;
  const SeenByRows queries_seen(lines, [&](std::int64_t first, std::int64_t end) {
    return pairs.queries_of(cpu::Range{keys.begin + first, keys.begin + end});
  });
  pack<PackRows>(args.k + token * s.k_stride + feature, s.k_stride, lines, s.head_width, memory.key_rows);
  pack<PackRows>(args.v + token * s.v_stride + feature, s.v_stride, lines, s.head_width, memory.value_rows);
  for (std::int64_t i = queries.begin; i < queries.end; ++i) {
    const auto needed = [&](std::int64_t row) { return Needed{{0, s.head_width}, queries_seen.of(row, i * panel)}; };
    block_product<Unit>(memory.key_rows, memory.queries + i * of_panel, panels.width, nullptr, memory.scores, needed);
    block_product<Unit>(memory.value_rows, memory.douts + i * of_panel, panels.width, nullptr, memory.dprobabilities,
                        needed);
    tile_softmax_gradient<Unit>(s, pairs, score, j, i, memory);
  }
  expect_stores(args.dk + token * s.k_stride + feature, s.k_stride, lines, s.head_width);
  expect_stores(args.dv + token * s.v_stride + feature, s.v_stride, lines, s.head_width);
  const bool starts = !some_head_sees(s, group, head, keys);
  const auto add = [&](const auto* left, const auto* right, float* sums) HWY_ATTR {
    for (std::int64_t e = 0; e < panels.width; ++e) {
      float* block = sums + j * of_panel + e * cpu::step_elements;
      block_product<Unit>(left + queries.begin * cpu::step_elements,
                          right + (e * panels.queries + queries.begin) * cpu::step_elements,
                          queries.end - queries.begin, starts ? nullptr : block, block, [&](std::int64_t row) {
                            return Needed{queries_seen.of(row, queries.begin * panel), {0, s.head_width - e * panel}};
                          });
    }
  };
  add(memory.probabilities_transposed, memory.douts_of_dv, memory.dvalues);
  add(memory.dscores_transposed, memory.queries_of_dk, memory.dkeys);
  return queries;
}

/// What backward needs of the queries of one head, packed; lse and delta = sum over the row of out dout.
template <class T>
HWY_INLINE void tile_pack_head(const AttentionBackward<T>& args, const AttentionGroup& group, std::int64_t head,
                               const cpu::TileBackwardMemory<T>& memory) {
  const AttentionShape& s = args.shape;
  const std::int64_t token = group.batch * s.q_length, feature = head * s.head_width;
  const T* q = args.q + token * s.q_stride + feature;
  const T* out = args.out + token * s.out_stride + feature;
  const T* dout = args.dout + token * s.out_stride + feature;
  pack<PackColumnsTransposed>(q, s.q_stride, s.q_length, s.head_width, memory.queries);
  pack<PackColumnsTransposed>(dout, s.out_stride, s.q_length, s.head_width, memory.douts);
  pack<PackColumns>(q, s.q_stride, s.head_width, s.q_length, memory.queries_of_dk);
  pack<PackColumns>(dout, s.out_stride, s.head_width, s.q_length, memory.douts_of_dv);
  const float* lse = args.lse + (group.batch * s.heads + head) * s.q_length;
  for (std::int64_t i = 0; i < cpu::num_panels(s.q_length) * panel; ++i) {
    memory.lse[i] = i < s.q_length ? lse[i] * static_cast<float>(cpu::log2_of_e) : 0;
    f32x16 sum{};
    float delta = 0;
    std::int64_t e = 0;
    for (; i < s.q_length && e + 16 <= s.head_width; e += 16)
      sum += widen(out + i * s.out_stride + e) * widen(dout + i * s.out_stride + e);
    for (; i < s.q_length && e < s.head_width; ++e) delta += out[i * s.out_stride + e] * dout[i * s.out_stride + e];
    memory.delta[i] = delta + combine<Sum>(sum);
  }
}

template <class Unit>
HWY_INLINE void tile_backward_part(const AttentionBackward<typename Unit::Element>& args, cpu::Part groups,
                                   void* workspace) {
  using T = typename Unit::Element;
  const AttentionShape& s = args.shape;
  const AttentionPanels panels(s);
  const cpu::TileBackwardMemory<T> memory(s, workspace);
  const std::int64_t of_panel = panels.width * cpu::step_elements;
  const auto scaled = [&](std::int64_t) HWY_ATTR { return static_cast<float>(s.scale); };
  const auto as_it_is = [](std::int64_t) HWY_ATTR { return 1.0f; };
  Unit::configure();
  for (std::int64_t g = groups.begin; g < groups.end; ++g) {
    const AttentionGroup group(s, g);
    const std::int64_t token = group.batch * s.kv_length, feature = group.kv_head * s.head_width;
    pack<PackColumns>(args.k + token * s.k_stride + feature, s.k_stride, s.head_width, s.kv_length, memory.keys);
    const auto store_keys = [&](std::int64_t j) HWY_ATTR {
      const std::int64_t lines = std::min(panel, s.kv_length - j * panel), row = token + j * panel;
      const bool seen = some_head_sees(s, group, group.end_head, {j * panel, j * panel + lines});
      store_rows<Unit>(seen ? memory.dkeys + j * of_panel : nullptr, lines, s.head_width, scaled,
                       args.dk + row * s.k_stride + feature, s.k_stride);
      store_rows<Unit>(seen ? memory.dvalues + j * of_panel : nullptr, lines, s.head_width, as_it_is,
                       args.dv + row * s.v_stride + feature, s.v_stride);
    };
    for (std::int64_t head = group.first_head; head < group.end_head; ++head) {
      const cpu::SequencePairs pairs(s, group.batch, head);
      tile_pack_head(args, group, head, memory);
      const auto store_queries = [&](std::int64_t i, const float* sums) HWY_ATTR {
        const std::int64_t row = group.batch * s.q_length + i * panel;
        store_rows<Unit>(sums, std::min(panel, s.q_length - i * panel), s.head_width, scaled,
                         args.dq + row * s.q_stride + head * s.head_width, s.q_stride);
      };
      for (std::int64_t i = 0; i < panels.queries; ++i)
        if (pairs.keys_of(cpu::Range{i * panel, (i + 1) * panel}).empty()) store_queries(i, nullptr);
      for (std::int64_t begin = 0; begin < panels.keys; begin += backward_span<T>) {
        const PanelRange span{begin, std::min(begin + backward_span<T>, panels.keys)};
        PanelRange written[backward_span<T>];
        for (std::int64_t j = span.begin; j < span.end; ++j) {
          written[j - span.begin] = tile_backward_keys<Unit>(args, group, head, j, memory);
          if (head + 1 == group.end_head) store_keys(j);
        }
        for (std::int64_t i = 0; i < panels.queries; ++i) {
          const PanelRange all_keys = panels_of(pairs.keys_of(cpu::Range{i * panel, (i + 1) * panel}));
          const PanelRange keys = intersect(all_keys, span);
          if (keys.empty()) continue;
          const SeenByRows keys_seen(s.q_length - i * panel, [&](std::int64_t first, std::int64_t end) {
            return pairs.keys_of(cpu::Range{i * panel + first, i * panel + end});
          });
          T* dscores = memory.dscores + i * backward_span<T> * cpu::step_elements;
          for (std::int64_t j = keys.begin; j < keys.end; ++j) {  // between the keys of two queries: seen by neither
            const PanelRange queries = written[j - span.begin];
            if (i < queries.begin || i >= queries.end)
              std::fill_n(dscores + (j - span.begin) * cpu::step_elements, cpu::step_elements, T{});
          }
          float* sums = memory.dqueries + i * of_panel;
          for (std::int64_t e = 0; e < panels.width; ++e) {
            float* dq = sums + e * cpu::step_elements;
            block_product<Unit>(dscores + (keys.begin - span.begin) * cpu::step_elements,
                                memory.keys + (e * panels.keys + keys.begin) * cpu::step_elements,
                                keys.end - keys.begin, all_keys.begin == keys.begin ? nullptr : dq, dq,
                                [&](std::int64_t row) {
                                  return Needed{keys_seen.of(row, keys.begin * panel), {0, s.head_width - e * panel}};
                                });
          }
          if (keys.end == all_keys.end) store_queries(i, sums);
        }
      }
    }
    for (std::int64_t j = 0; j < panels.keys && group.first_head >= group.end_head; ++j) store_keys(j);
  }
  Unit::release();
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
