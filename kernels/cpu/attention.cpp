// Attention in blocks, forward and backward, for one thread's part of the heads and queries (attention_plan.h).
//
// Operands of a block are packed to f32 (f64 for f64), contiguous and aligned; the products of blocks run on register
// tiles (register_tile.h), and tiles that the mask empties are skipped. q is packed times scale * log2(e), so that
// probabilities are powers of two: p = 2^(s - max), and scale leaves the inner loops.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/register_tile.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile_attention.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

using cpu::key_block, cpu::log2_of_e, cpu::log_of_2, cpu::query_block, cpu::Range, cpu::score_stride;

// ---- Powers of two

/// 2^x for x <= 127; 0 below -126; NaN stays NaN. 2^x = 2^n 2^r, n = round(x), with the polynomial that interpolates
/// 2^r at the Chebyshev nodes of [-1/2, 1/2]: relative error 1.9e-8, and at most 1.5 units of 2^-24 with its roundings.
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 4>* = nullptr>
HWY_INLINE hn::Vec<D> power_of_two(D d, hn::Vec<D> x) {
  const hn::Rebind<std::int32_t, D> di32;
  const auto shifter = hn::Set(d, 12583039.0f);  // 1.5 * 2^23 + 127: leaves n + 127 in the lowest bits
  const auto shifted = hn::Add(x, shifter);
  const auto r = hn::Sub(x, hn::Sub(shifted, shifter));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di32, shifted)));
  const auto r2 = hn::Mul(r, r);
  const auto p56 = hn::MulAdd(hn::Set(d, 1.5461445e-4f), r, hn::Set(d, 1.3400428e-3f));
  const auto p34 = hn::MulAdd(hn::Set(d, 9.6180569e-3f), r, hn::Set(d, 5.5503272e-2f));
  const auto p12 = hn::MulAdd(hn::Set(d, 2.4022651e-1f), r, hn::Set(d, 6.9314718e-1f));
  const auto p = hn::MulAdd(hn::MulAdd(hn::MulAdd(p56, r2, p34), r2, p12), r, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

/// The same in f64 (tests); Highway's own Exp returns 0 for NaN.
template <class D, hwy::EnableIf<sizeof(hn::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hn::Vec<D> power_of_two(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, hn::Mul(x, hn::Set(d, log_of_2))));
}

// ---- Packing

/// to [rows, stride] = factor * from, the last vector of a row padded with zeros; rows up to `padded` are zero.
template <class A, class T>
void pack_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, A factor, A* to,
               std::int64_t to_stride, std::int64_t padded) {
  const Tag<T> d;
  const auto scale = hn::Set(d, factor);
  for (std::int64_t i = 0; i < rows; ++i) {
    for_each_vector(d, width, [&](std::int64_t e, auto end) HWY_ATTR {
      hn::Store(hn::Mul(load(d, from + i * from_stride + e, end), scale), d, to + i * to_stride + e);
    });
  }
  std::fill(to + rows * to_stride, to + padded * to_stride, A(0));
}

/// to [width, score_stride] = the transpose of from [count, width]; columns from `count` to key_block are zero.
template <class A, class T>
void pack_transposed(const T* from, std::int64_t from_stride, std::int64_t count, std::int64_t width, A* to) {
  constexpr bool in_vectors = std::is_same_v<A, float> && HWY_TARGET != HWY_SCALAR;
  const std::int64_t whole_rows = in_vectors ? count / 4 * 4 : 0, whole_width = in_vectors ? width / 4 * 4 : 0;
#if HWY_TARGET != HWY_SCALAR  // which has no vectors of 4
  if constexpr (in_vectors) {
    const hn::FixedTag<float, 4> d;
    for (std::int64_t j = 0; j < whole_rows; j += 4) {
      for (std::int64_t e = 0; e < whole_width; e += 4) {
        const T* corner = from + j * from_stride + e;
        const auto row0 = load(d, corner), row1 = load(d, corner + from_stride);
        const auto row2 = load(d, corner + 2 * from_stride), row3 = load(d, corner + 3 * from_stride);
        const auto low02 = hn::InterleaveLower(d, row0, row2), low13 = hn::InterleaveLower(d, row1, row3);
        const auto high02 = hn::InterleaveUpper(d, row0, row2), high13 = hn::InterleaveUpper(d, row1, row3);
        A* column = to + e * score_stride + j;
        hn::Store(hn::InterleaveLower(d, low02, low13), d, column);
        hn::Store(hn::InterleaveUpper(d, low02, low13), d, column + score_stride);
        hn::Store(hn::InterleaveLower(d, high02, high13), d, column + 2 * score_stride);
        hn::Store(hn::InterleaveUpper(d, high02, high13), d, column + 3 * score_stride);
      }
    }
  }
#endif
  for (std::int64_t e = 0; e < width; ++e) {
    A* row = to + e * score_stride;
    for (std::int64_t j = e < whole_width ? whole_rows : 0; j < count; ++j) row[j] = A(from[j * from_stride + e]);
    std::fill(row + count, row + key_block, A(0));
  }
}

/// to [rows, width] = factor[i] * from, rounded to T.
template <class A, class T, class Factor>
void unpack_rows(const A* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, const Factor& factor,
                 T* to, std::int64_t to_stride) {
  const Tag<T> d;
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto scale = hn::Set(d, factor(i));
    for_each_vector(d, width, [&](std::int64_t e, auto end) HWY_ATTR {
      store(d, hn::Mul(hn::Load(d, from + i * from_stride + e), scale), to + i * to_stride + e, end);
    });
  }
}

// ---- A block of scores: the queries of a unit against the keys of one key block

/// The keys that the queries of a unit see. Their ranges ascend, begins and ends both, so that those of several queries
/// are between the first begin and the last end.
struct UnitKeys {
  const cpu::Pairs pairs;
  const bool separate;      // documents are
  Range rows[query_block];  // then: the keys of each query

  UnitKeys(const AttentionShape& s, const cpu::Unit& unit, std::int64_t count)
      : pairs(visible_pairs(s)), separate(s.documents.separate) {
    const cpu::SequencePairs sequence(s, unit.batch, unit.head);
    for (std::int64_t i = 0; separate && i < count; ++i) rows[i] = sequence.keys_of(unit.first_query + i);
  }
  /// Those that some of the queries [begin, end) of the unit see, without gaps.
  Range of(std::int64_t first_query, Range queries) const {
    if (!separate) return pairs.keys_of(Range{first_query + queries.begin, first_query + queries.end});
    return {rows[queries.begin].begin, rows[queries.end - 1].end};
  }
  /// The queries, of the first `count`, that see some of these keys, without gaps.
  Range queries_of(std::int64_t first_query, std::int64_t count, Range keys) const {
    if (!separate) {
      const Range queries = pairs.queries_of(keys);
      return intersect<std::int64_t>({0, count}, {queries.begin - first_query, queries.end - first_query});
    }
    const Range* const end = rows + count;
    return {std::partition_point(rows, end, [&](const Range& row) { return row.end <= keys.begin; }) - rows,
            std::partition_point(rows, end, [&](const Range& row) { return row.begin < keys.end; }) - rows};
  }
};

/// The part of a block that the mask allows; keys and queries are counted from its corner.
struct Block {
  const UnitKeys& unit;
  std::int64_t first_query, rows, first_key;

  Range keys_of(Range queries) const {
    const Range keys = unit.of(first_query, queries);
    return intersect<std::int64_t>({0, key_block}, {keys.begin - first_key, keys.end - first_key});
  }
  Range keys_of_tile(std::int64_t i) const { return keys_of({i, std::min(i + tile_rows, rows)}); }
  Range queries_of(Range keys) const {
    return unit.queries_of(first_query, rows, {first_key + keys.begin, first_key + keys.end});
  }
};

/// The key blocks that have some of these keys.
Range blocks_of(Range keys) {
  if (keys.empty()) return {0, 0};
  return {keys.begin / key_block, cpu::num_blocks(keys.end, key_block)};
}

/// c [rows, key_block] = a [rows, width] b [width, key_block], the tiles in which some query sees some key.
template <class A>
void score_product(const Block& block, std::int64_t width, const A* a, std::int64_t a_stride, const A* b, A* c) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d), panel = tile_vectors * step;
  Range seen[query_block / tile_rows];
  for (std::int64_t i = 0; i < block.rows; i += tile_rows) seen[i / tile_rows] = block.keys_of_tile(i);
  const Range keys = block.keys_of({0, block.rows});
  for (std::int64_t j = keys.begin / panel * panel; j < keys.end; j += panel) {
    for (std::int64_t i = 0; i < block.rows; i += tile_rows) {
      const Range columns = intersect(seen[i / tile_rows], {j, j + panel});
      if (columns.empty()) continue;
      const auto product = [&](auto vectors) HWY_ATTR {
        tile_product<Update::set, vectors>(d, {a + i * a_stride, a_stride, 1}, b + j, score_stride, width,
                                           c + i * score_stride + j, score_stride);
      };
      if (columns.end <= j + step) {
        product(std::integral_constant<int, 1>());
      } else {
        product(std::integral_constant<int, 2>());
      }
    }
  }
}

/// c [rows, width] (update) a [rows, depth] b [depth, width]; rows i ... i + tile_rows take the depths of depth_of(i).
template <Update update, class A, class DepthOf>
void value_product(Range rows, std::int64_t width, TileOperand<A> a, const A* b, A* c, std::int64_t stride,
                   const DepthOf& depth_of, const A* rescale = nullptr) {
  const hn::ScalableTag<A> d;
  const std::int64_t first_row = rows.begin / tile_rows * tile_rows;
  Range depths[key_block / tile_rows];
  for (std::int64_t i = first_row; i < rows.end; i += tile_rows) depths[i / tile_rows] = depth_of(i);
  const auto product = [&](std::int64_t e, auto vectors) HWY_ATTR {
    for (std::int64_t i = first_row; i < rows.end; i += tile_rows) {
      const Range depth = depths[i / tile_rows];
      if (depth.empty()) continue;
      tile_product<update, vectors>(d, {a.data + i * a.row_step + depth.begin * a.depth_step, a.row_step, a.depth_step},
                                    b + depth.begin * stride + e, stride, depth.end - depth.begin, c + i * stride + e,
                                    stride, rescale ? rescale + i : nullptr);
    }
  };
  const std::int64_t step = lanes(d);
  std::int64_t e = 0;
  for (; e + step < width; e += 2 * step) product(e, std::integral_constant<int, 2>());
  if (e < width) product(e, std::integral_constant<int, 1>());
}

/// The whole vectors of a row that cover the keys `seen`; writes -inf to their other lanes.
template <class A>
Range mask_row(A* row, Range seen, std::int64_t step) {
  const Range vectors{seen.begin / step * step, (seen.end + step - 1) / step * step};
  std::fill(row + vectors.begin, row + seen.begin, -std::numeric_limits<A>::infinity());
  std::fill(row + seen.end, row + vectors.end, -std::numeric_limits<A>::infinity());
  return vectors;
}

/// Zeros outside `vectors`: products of several rows at once read them there.
template <class A>
void clear_row(A* row, Range vectors) {
  std::fill(row, row + vectors.begin, A(0));
  std::fill(row + vectors.end, row + key_block, A(0));
}

/// The scores of `s` on this device, of one head.
template <class A>
HeadScore<A> head_score(const AttentionShape& s, std::int64_t head) {
  return {s.score, head, [](A x) { return std::exp2(x); }};
}

/// HeadScore of a vector of keys, of which the first is `distance` positions after the query. Writes the derivative.
template <class D, class A = hn::TFromD<D>, class V = hn::Vec<D>>
HWY_INLINE V score_of(D d, const HeadScore<A>& head, V product, A distance, V& derivative) {
  derivative = hn::Set(d, A(1));
  if (head.cap > 0) {
    const V x = hn::Mul(product, hn::Set(d, head.inverse_cap));
    const V share = hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));
    product = hn::Mul(share, hn::Set(d, head.cap));
    derivative = hn::NegMulAdd(share, share, derivative);
  }
  const V away = hn::Abs(hn::Add(hn::Iota(d, 0), hn::Set(d, distance)));
  return hn::NegMulAdd(away, hn::Set(d, head.slope), product);
}

/// The products of a block -> scores. Their derivatives go to `derivatives`, a block too, or nowhere if that is null.
template <class A>
void score_block(const Block& block, const HeadScore<A>& head, std::int64_t diagonal, A* scores, A* derivatives) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const Range seen = block.keys_of({i, i + 1});
    const std::int64_t distance = block.first_key - block.first_query - i - diagonal;  // of key 0
    for (std::int64_t j = seen.begin / step * step; j < seen.end; j += step) {
      A* score = scores + i * score_stride + j;
      auto derivative = hn::Zero(d);
      hn::Store(score_of(d, head, hn::Load(d, score), A(distance + j), derivative), d, score);
      if (derivatives) hn::Store(derivative, d, derivatives + i * score_stride + j);
    }
  }
}

/// The values of a block, of a unit of `s`, times 0 or 1 / (1 - p).
template <class A>
void drop_block(const Block& block, const AttentionShape& s, const cpu::Unit& unit, A* values) {
  const std::uint32_t threshold = drop_below(s.dropout.p);
  const A scale = static_cast<A>(1 / (1 - s.dropout.p));
  alignas(64) std::uint32_t words[key_block + 4 * (2 + philox_overrun)];
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const Range seen = block.keys_of({i, i + 1});
    if (seen.empty()) continue;
    const AttentionDropout::Word first =
        s.dropout.word_of(unit.batch, unit.head, block.first_query + i, block.first_key + seen.begin);
    philox_blocks(s.dropout.key, s.dropout.scalars->step, first.block, (first.number + seen.count() + 3) / 4, words);
    A* row = values + i * score_stride + seen.begin;
    for (std::int64_t j = 0; j < seen.count(); ++j)
      row[j] = words[first.number + j] >= threshold ? row[j] * scale : A(0);
  }
}

// ---- Forward

/// scores -> exp(scores - running maximum); updates row_max and row_sum; rescale[i] is the factor for the sums over
/// earlier blocks.
template <class A>
void online_softmax(const Block& block, const cpu::ForwardMemory<A>& memory) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  constexpr A infinity = std::numeric_limits<A>::infinity();
  for (std::int64_t i = 0; i < block.rows; ++i) {
    A* row = memory.scores + i * score_stride;
    const Range seen = block.keys_of({i, i + 1});
    memory.rescale[i] = memory.row_max[i];
    if (seen.empty()) continue;
    const Range vectors = mask_row(row, seen, step);
    auto maximum = hn::Set(d, memory.row_max[i]);
    for (std::int64_t j = vectors.begin; j < vectors.end; j += step) maximum = hn::Max(maximum, hn::Load(d, row + j));
    memory.row_max[i] = hn::GetLane(hn::MaxOfLanes(d, maximum));
  }
  for (std::int64_t i = 0; i < query_block; i += step) {  // what is beyond the rows is never read
    const auto maximum = hn::Load(d, memory.row_max + i);
    const auto none = hn::Eq(maximum, hn::Set(d, -infinity));
    const auto base = hn::IfThenZeroElse(none, maximum);
    hn::Store(power_of_two(d, hn::Sub(hn::Load(d, memory.rescale + i), base)), d, memory.rescale + i);
  }
  for (std::int64_t i = 0; i < block.rows; ++i) {
    A* row = memory.scores + i * score_stride;
    const Range seen = block.keys_of({i, i + 1});
    if (seen.empty()) {
      clear_row(row, {0, 0});
      continue;
    }
    const Range vectors{seen.begin / step * step, (seen.end + step - 1) / step * step};
    const auto maximum = hn::Set(d, memory.row_max[i] == -infinity ? A(0) : memory.row_max[i]);
    auto sum = hn::Zero(d);
    for (std::int64_t j = vectors.begin; j < vectors.end; j += step) {
      const auto p = power_of_two(d, hn::Sub(hn::Load(d, row + j), maximum));
      sum = hn::Add(sum, p);
      hn::Store(p, d, row + j);
    }
    clear_row(row, vectors);
    memory.row_sum[i] = memory.row_sum[i] * memory.rescale[i] + hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

template <class T>
void forward_unit(const AttentionForward<T>& args, const cpu::ForwardMemory<Accumulate<T>>& memory, cpu::Unit unit) {
  using A = Accumulate<T>;
  const AttentionShape& s = args.shape;
  const std::int64_t stride = cpu::padded_stride(s.head_width);
  const std::int64_t rows = std::min(query_block, s.q_length - unit.first_query);
  const std::int64_t token = unit.batch * s.q_length + unit.first_query;
  pack_rows(args.q + token * s.q_stride + unit.head * s.head_width, s.q_stride, rows, s.head_width,
            A(s.scale * log2_of_e), memory.query, stride, query_block);
  std::fill(memory.out, memory.out + query_block * stride, A(0));
  std::fill(memory.row_max, memory.row_max + query_block, -std::numeric_limits<A>::infinity());
  std::fill(memory.row_sum, memory.row_sum + query_block, A(0));

  const UnitKeys keys(s, unit, rows);
  const Range blocks = blocks_of(keys.of(unit.first_query, {0, rows}));
  for (std::int64_t k = blocks.begin; k < blocks.end; ++k) {
    const Block block{keys, unit.first_query, rows, k * key_block};
    score_product(block, s.head_width, memory.query, stride, memory.keys_transposed + k * s.head_width * score_stride,
                  memory.scores);
    if (!s.score.is_product())
      score_block<A>(block, head_score<A>(s, unit.head), s.score.diagonal, memory.scores, nullptr);
    online_softmax(block, memory);
    if (s.dropout.p > 0) drop_block(block, s, unit, memory.scores);
    value_product<Update::rescale_add>(
        {0, rows}, s.head_width, TileOperand<A>{memory.scores, score_stride, 1}, memory.values + k * key_block * stride,
        memory.out, stride,
        [&](std::int64_t i) {
          return block.keys_of({i, std::min(i + tile_rows, rows)});
        },
        memory.rescale);
  }

  unpack_rows(
      memory.out, stride, rows, s.head_width,
      [&](std::int64_t i) { return memory.row_sum[i] == 0 ? A(0) : A(1) / memory.row_sum[i]; },
      args.out + token * s.out_stride + unit.head * s.head_width, s.out_stride);
  A* lse = args.lse + (unit.batch * s.heads + unit.head) * s.q_length + unit.first_query;
  const Tag<T> d;
  for_each_vector(d, rows, [&](std::int64_t i, auto end) HWY_ATTR {
    const auto log_sum = hn::Log(d, hn::Load(d, memory.row_sum + i));
    store(d, hn::MulAdd(hn::Load(d, memory.row_max + i), hn::Set(d, A(log_of_2)), log_sum), lse + i, end);
  });
}

template <class T>
void forward_part(const AttentionForward<T>& args, cpu::Part part) {
  using A = Accumulate<T>;
  const AttentionShape& s = args.shape;
  const std::int64_t stride = cpu::padded_stride(s.head_width);
  const std::int64_t bytes = cpu::ForwardMemory<A>(s, nullptr).bytes;
  const cpu::ForwardMemory<A> memory(s, static_cast<std::byte*>(args.workspace) + part.index * bytes);
  Range packed{0, 0};  // the units whose keys and values are in memory
  for (std::int64_t u = part.begin; u < part.end; ++u) {
    const cpu::Unit unit = cpu::unit_at(s, u);
    if (u >= packed.end) {
      const std::int64_t kv_head = cpu::kv_head_of(s, unit.head);
      packed = cpu::units_of_group(s, unit.batch, kv_head);
      const T* k = args.k + unit.batch * s.kv_length * s.k_stride + kv_head * s.head_width;
      const T* v = args.v + unit.batch * s.kv_length * s.v_stride + kv_head * s.head_width;
      for (std::int64_t j = 0; j < s.kv_length; j += key_block) {
        pack_transposed(k + j * s.k_stride, s.k_stride, std::min(key_block, s.kv_length - j), s.head_width,
                        memory.keys_transposed + j / key_block * s.head_width * score_stride);
      }
      pack_rows(v, s.v_stride, s.kv_length, s.head_width, A(1), memory.values, stride, s.kv_length);
    }
    forward_unit(args, memory, unit);
  }
}

// ---- Backward

/// probabilities = exp(s - lse), dscores = p (dp - delta), in place of s and the products dp.
template <class A>
void softmax_gradient(const Block& block, const cpu::BackwardMemory<A>& memory) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const Range seen = block.keys_of({i, i + 1});
    A* p_row = memory.probabilities + i * score_stride;
    A* ds_row = memory.dscores + i * score_stride;
    if (seen.empty()) {
      clear_row(p_row, {0, 0});
      clear_row(ds_row, {0, 0});
      continue;
    }
    const Range vectors = mask_row(p_row, seen, step);
    const auto lse = hn::Set(d, memory.row_lse[i]), delta = hn::Set(d, memory.row_delta[i]);
    for (std::int64_t j = vectors.begin; j < vectors.end; j += step) {
      const auto p = power_of_two(d, hn::Sub(hn::Load(d, p_row + j), lse));
      hn::Store(p, d, p_row + j);
      hn::Store(hn::Mul(p, hn::Sub(hn::Load(d, ds_row + j), delta)), d, ds_row + j);
    }
    clear_row(p_row, vectors);
    clear_row(ds_row, vectors);
  }
}

/// dscores of s -> those of the products: times the derivatives.
template <class A>
void multiply_block(const Block& block, const A* derivatives, A* dscores) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const Range seen = block.keys_of({i, i + 1});
    for (std::int64_t j = i * score_stride + seen.begin / step * step; j < i * score_stride + seen.end; j += step)
      hn::Store(hn::Mul(hn::Load(d, dscores + j), hn::Load(d, derivatives + j)), d, dscores + j);
  }
}

template <class T>
void backward_unit(const AttentionBackward<T>& args, const cpu::BackwardMemory<Accumulate<T>>& memory, cpu::Unit unit,
                   Accumulate<T>* dkeys, Accumulate<T>* dvalues) {
  using A = Accumulate<T>;
  const Tag<T> d;
  const AttentionShape& s = args.shape;
  const std::int64_t stride = cpu::padded_stride(s.head_width);
  const std::int64_t rows = std::min(query_block, s.q_length - unit.first_query);
  const std::int64_t token = unit.batch * s.q_length + unit.first_query;
  const T* out = args.out + token * s.out_stride + unit.head * s.head_width;
  const T* dout = args.dout + token * s.out_stride + unit.head * s.head_width;
  pack_rows(args.q + token * s.q_stride + unit.head * s.head_width, s.q_stride, rows, s.head_width,
            A(s.scale * log2_of_e), memory.query, stride, query_block);
  pack_rows(dout, s.out_stride, rows, s.head_width, A(1), memory.dout, stride, query_block);
  std::fill(memory.dquery, memory.dquery + query_block * stride, A(0));
  const A* lse = args.lse + (unit.batch * s.heads + unit.head) * s.q_length + unit.first_query;
  for (std::int64_t i = 0; i < rows; ++i) {
    memory.row_lse[i] = lse[i] * A(log2_of_e);
    memory.row_delta[i] = sum_over(d, s.head_width, [&](std::int64_t e, auto end, auto sum) HWY_ATTR {
      return hn::MulAdd(load(d, out + i * s.out_stride + e, end), load(d, dout + i * s.out_stride + e, end), sum);
    });
  }

  const UnitKeys keys(s, unit, rows);
  const Range blocks = blocks_of(keys.of(unit.first_query, {0, rows}));
  for (std::int64_t k = blocks.begin; k < blocks.end; ++k) {
    const Block block{keys, unit.first_query, rows, k * key_block};
    const std::int64_t transposed = k * s.head_width * score_stride, row = k * key_block * stride;
    score_product(block, s.head_width, memory.query, stride, memory.keys_transposed + transposed, memory.probabilities);
    score_product(block, s.head_width, memory.dout, stride, memory.values_transposed + transposed, memory.dscores);
    if (!s.score.is_product())
      score_block(block, head_score<A>(s, unit.head), s.score.diagonal, memory.probabilities, memory.derivatives);
    if (s.dropout.p > 0) drop_block(block, s, unit, memory.dscores);
    softmax_gradient(block, memory);
    if (s.dropout.p > 0) drop_block(block, s, unit, memory.probabilities);
    if (memory.derivatives) multiply_block(block, memory.derivatives, memory.dscores);
    const auto queries = [&](std::int64_t j) { return block.queries_of({j, j + tile_rows}); };
    const Range block_keys = block.keys_of({0, rows});
    value_product<Update::add>(block_keys, s.head_width, TileOperand<A>{memory.probabilities, 1, score_stride},
                               memory.dout, dvalues + row, stride, queries);
    value_product<Update::add>(block_keys, s.head_width, TileOperand<A>{memory.dscores, 1, score_stride}, memory.query,
                               dkeys + row, stride, queries);
    value_product<Update::add>({0, rows}, s.head_width, TileOperand<A>{memory.dscores, score_stride, 1},
                               memory.keys + row, memory.dquery, stride, [&](std::int64_t i) {
                                 return block.keys_of({i, std::min(i + tile_rows, rows)});
                               });
  }
  unpack_rows(
      memory.dquery, stride, rows, s.head_width, [&](std::int64_t) { return A(s.scale); },
      args.dq + token * s.q_stride + unit.head * s.head_width, s.q_stride);
}

template <class T>
void backward_part(const AttentionBackward<T>& args, cpu::Part part) {
  using A = Accumulate<T>;
  const AttentionShape& s = args.shape;
  const std::int64_t stride = cpu::padded_stride(s.head_width);
  const std::int64_t bytes = cpu::BackwardMemory<A>(s, nullptr).bytes;
  const cpu::BackwardMemory<A> memory(s, static_cast<std::byte*>(args.workspace) + part.index * bytes);
  int slot = 0;
  for (std::int64_t u = part.begin; u < part.end; slot = 1) {
    const cpu::Unit first = cpu::unit_at(s, u);
    const std::int64_t kv_head = cpu::kv_head_of(s, first.head);
    const std::int64_t k_offset = first.batch * s.kv_length * s.k_stride + kv_head * s.head_width;
    const std::int64_t v_offset = first.batch * s.kv_length * s.v_stride + kv_head * s.head_width;
    pack_rows(args.k + k_offset, s.k_stride, s.kv_length, s.head_width, A(1), memory.keys, stride, s.kv_length);
    for (std::int64_t j = 0; j < s.kv_length; j += key_block) {
      const std::int64_t count = std::min(key_block, s.kv_length - j);
      const std::int64_t transposed = j / key_block * s.head_width * score_stride;
      pack_transposed(memory.keys + j * stride, stride, count, s.head_width, memory.keys_transposed + transposed);
      pack_transposed(args.v + v_offset + j * s.v_stride, s.v_stride, count, s.head_width,
                      memory.values_transposed + transposed);
    }
    A *dkeys = memory.dkeys[slot], *dvalues = memory.dvalues[slot];
    const std::int64_t elements = cpu::num_blocks(s.kv_length, key_block) * key_block * stride;
    std::fill(dkeys, dkeys + elements, A(0));
    std::fill(dvalues, dvalues + elements, A(0));

    const Range group = cpu::units_of_group(s, first.batch, kv_head);
    for (; u < std::min(group.end, part.end); ++u) backward_unit(args, memory, cpu::unit_at(s, u), dkeys, dvalues);

    if (group.begin < part.begin || group.end > part.end) continue;  // shared with other parts: add_shared_groups()
    unpack_rows(
        dkeys, stride, s.kv_length, s.head_width, [](std::int64_t) { return A(log_of_2); }, args.dk + k_offset,
        s.k_stride);
    unpack_rows(
        dvalues, stride, s.kv_length, s.head_width, [](std::int64_t) { return A(1); }, args.dv + v_offset, s.v_stride);
  }
}

cpu::KernelSet<AttentionForward<float>, AttentionForward<bf16>, AttentionForward<double>, AttentionBackward<float>,
               AttentionBackward<bf16>, AttentionBackward<double>>
attention_kernels() {
  return {forward_part<float>,  forward_part<bf16>,  forward_part<double>,
          backward_part<float>, backward_part<bf16>, backward_part<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
namespace {

HWY_EXPORT(attention_kernels);

void check(const AttentionShape& s) {
  if (s.heads == 0 || cpu::kv_head_of(s, s.heads - 1) < s.kv_heads) return;
  throw std::runtime_error("attention: query head " + std::to_string(s.heads - 1) + " reads key/value head " +
                           std::to_string(cpu::kv_head_of(s, s.heads - 1)) + ", but there are " +
                           std::to_string(s.kv_heads) + " (group_size " + std::to_string(s.group_size) +
                           ", group_offset " + std::to_string(s.group_offset) + ")");
}

template <class Args>
void run_parts(Cpu device, const Args& args) {
  const auto run = std::get<void (*)(const Args&, cpu::Part)>(HWY_DYNAMIC_DISPATCH(attention_kernels)());
#pragma omp parallel for num_threads(device.threads) schedule(static, 1)
  for (int i = 0; i < device.threads; ++i) run(args, cpu::part_of_units(args.shape, device.threads, i));
}

/// dk, dv of the groups that several parts share: adds the sums of the parts, in the order of the parts.
template <class T>
void add_shared_groups(Cpu device, const AttentionBackward<T>& args) {
  using A = Accumulate<T>;
  const AttentionShape& s = args.shape;
  const std::int64_t stride = cpu::padded_stride(s.head_width);
  const std::int64_t bytes = cpu::BackwardMemory<A>(s, nullptr).bytes;
  const auto part_at = [&](int i) { return cpu::part_of_units(s, device.threads, i); };
  const auto memory_of = [&](int i) {
    return cpu::BackwardMemory<A>(s, static_cast<std::byte*>(args.workspace) + i * bytes);
  };
  for (int i = 0; i < device.threads; ++i) {
    const cpu::Part first = part_at(i);
    if (first.begin == first.end) continue;
    const cpu::Unit unit = cpu::unit_at(s, first.end - 1);
    const std::int64_t kv_head = cpu::kv_head_of(s, unit.head);
    const cpu::Range group = cpu::units_of_group(s, unit.batch, kv_head);
    const int slot = first.begin < group.begin ? 1 : 0;
    if (group.begin < first.begin || group.end <= first.end) continue;  // another part comes first, or no other comes
    A *dkeys = memory_of(i).dkeys[slot], *dvalues = memory_of(i).dvalues[slot];
    T* dk = args.dk + unit.batch * s.kv_length * s.k_stride + kv_head * s.head_width;
    T* dv = args.dv + unit.batch * s.kv_length * s.v_stride + kv_head * s.head_width;
    for (int next = i + 1; next < device.threads && part_at(next).begin < group.end; ++next) {
      if (part_at(next).begin == part_at(next).end) continue;
      const A *more_dkeys = memory_of(next).dkeys[0], *more_dvalues = memory_of(next).dvalues[0];
#pragma omp parallel for num_threads(device.threads) schedule(static)
      for (std::int64_t j = 0; j < s.kv_length * stride; ++j) {
        dkeys[j] += more_dkeys[j];
        dvalues[j] += more_dvalues[j];
      }
    }
#pragma omp parallel for num_threads(device.threads) schedule(static)
    for (std::int64_t j = 0; j < s.kv_length; ++j) {
      for (std::int64_t e = 0; e < s.head_width; ++e) {
        dk[j * s.k_stride + e] = T(dkeys[j * stride + e] * A(cpu::log_of_2));
        dv[j * s.v_stride + e] = T(dvalues[j * stride + e]);
      }
    }
  }
}

/// True if attention runs on packed panels (tile_attention.h). Those kernels have no dropout, and divide the work by
/// key/value heads only, so that with many threads and few such heads the kernels here, which divide it by queries too,
/// are preferred.
template <class T>
bool is_on_panels(Cpu device, const AttentionShape& s) {
  const bool has_unit = (std::is_same_v<T, bf16> && device.unit != CpuUnit::library) ||
                        (std::is_same_v<T, float> && device.unit == CpuUnit::vectors);
  return has_unit && s.dropout.p == 0 && 2 * s.batch * s.kv_heads >= device.threads;
}

/// dk = dv = 0 for the key/value heads that no query reads.
template <class T>
void clear_unread_heads(const AttentionBackward<T>& args) {
  const AttentionShape& s = args.shape;
  for (std::int64_t batch = 0; batch < s.batch; ++batch) {
    for (std::int64_t head = 0; head < s.kv_heads; ++head) {
      const cpu::Range group = cpu::units_of_group(s, batch, head);
      if (!group.empty()) continue;
      for (std::int64_t j = batch * s.kv_length; j < (batch + 1) * s.kv_length; ++j) {
        std::fill_n(args.dk + j * s.k_stride + head * s.head_width, s.head_width, T(0));
        std::fill_n(args.dv + j * s.v_stride + head * s.head_width, s.head_width, T(0));
      }
    }
  }
}

}  // namespace

template <class T>
std::int64_t attention_forward_workspace_bytes(Cpu device, const AttentionShape& shape) {
  if (is_on_panels<T>(device, shape)) return cpu::tile_attention_forward_workspace_bytes<T>(device, shape);
  return device.threads * cpu::ForwardMemory<Accumulate<T>>(shape, nullptr).bytes;
}

template <class T>
std::int64_t attention_backward_workspace_bytes(Cpu device, const AttentionShape& shape) {
  if (is_on_panels<T>(device, shape)) return cpu::tile_attention_backward_workspace_bytes<T>(device, shape);
  return device.threads * cpu::BackwardMemory<Accumulate<T>>(shape, nullptr).bytes;
}

template <class T>
void attention_forward(Cpu device, const AttentionForward<T>& args) {
  check(args.shape);
  if constexpr (!std::is_same_v<T, double>) {
    if (is_on_panels<T>(device, args.shape)) return cpu::tile_attention_forward(device, args);
  }
  run_parts(device, args);
}

template <class T>
void attention_backward(Cpu device, const AttentionBackward<T>& args) {
  check(args.shape);
  if constexpr (!std::is_same_v<T, double>) {
    if (is_on_panels<T>(device, args.shape)) return cpu::tile_attention_backward(device, args);
  }
  run_parts(device, args);
  add_shared_groups(device, args);
  clear_unread_heads(args);
}

double attention_flops(const AttentionShape& s) {
  const auto pairs = static_cast<double>(visible_pairs(s).count());
  return 4.0 * static_cast<double>(s.batch * s.heads * s.head_width) * pairs;
}

template std::int64_t attention_forward_workspace_bytes<float>(Cpu, const AttentionShape&);
template std::int64_t attention_forward_workspace_bytes<bf16>(Cpu, const AttentionShape&);
template std::int64_t attention_forward_workspace_bytes<double>(Cpu, const AttentionShape&);
template std::int64_t attention_backward_workspace_bytes<float>(Cpu, const AttentionShape&);
template std::int64_t attention_backward_workspace_bytes<bf16>(Cpu, const AttentionShape&);
template std::int64_t attention_backward_workspace_bytes<double>(Cpu, const AttentionShape&);
template void attention_forward(Cpu, const AttentionForward<float>&);
template void attention_forward(Cpu, const AttentionForward<bf16>&);
template void attention_forward(Cpu, const AttentionForward<double>&);
template void attention_backward(Cpu, const AttentionBackward<float>&);
template void attention_backward(Cpu, const AttentionBackward<bf16>&);
template void attention_backward(Cpu, const AttentionBackward<double>&);

}  // namespace choir::kernels
#endif  // HWY_ONCE
