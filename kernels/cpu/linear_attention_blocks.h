// The blocks of linear attention on the CPU: a chunk of tokens and a state as f32 (f64 for f64), their products on
// register tiles, the decays between the tokens of a chunk. Included once per instruction set, like simd.h.

#if defined(CHOIR_KERNELS_CPU_LINEAR_ATTENTION_BLOCKS_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_LINEAR_ATTENTION_BLOCKS_H
#undef CHOIR_KERNELS_CPU_LINEAR_ATTENTION_BLOCKS_H
#else
#define CHOIR_KERNELS_CPU_LINEAR_ATTENTION_BLOCKS_H
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/linear_attention_plan.h"
#include "kernels/cpu/register_tile.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

using cpu::chunk_stride, cpu::ChunkMemory, cpu::StateLayout;

// ---- Blocks

/// to [rows, stride] = factor(i) * from, zeros up to `stride` columns and up to cpu::tiled(rows) rows.
template <class A, class T, class Factor>
void pack(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, const Factor& factor, A* to,
          std::int64_t stride) {
  const Tag<T> d;
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto scale = hn::Set(d, factor(i));
    std::int64_t written = 0;
    for_each_vector(d, width, [&](std::int64_t e, auto end) HWY_ATTR {
      hn::Store(hn::Mul(load(d, from + i * from_stride + e, end), scale), d, to + i * stride + e);
      written = e + lanes(d);
    });
    std::fill(to + i * stride + written, to + (i + 1) * stride, A(0));
  }
  std::fill(to + rows * stride, to + cpu::tiled(rows) * stride, A(0));
}

/// to = factor * from [rows, width], or to + that, rounded to T.
template <class A, class T>
void unpack(const A* from, std::int64_t stride, std::int64_t rows, std::int64_t width, A factor, bool adds, T* to,
            std::int64_t to_stride) {
  const Tag<T> d;
  const auto scale = hn::Set(d, factor);
  for (std::int64_t i = 0; i < rows; ++i) {
    T* row = to + i * to_stride;
    for_each_vector(d, width, [&](std::int64_t e, auto end) HWY_ATTR {
      const auto value = hn::Mul(hn::Load(d, from + i * stride + e), scale);
      store(d, adds ? hn::Add(load(d, row + e, end), value) : value, row + e, end);
    });
  }
}

/// to [width, to_stride] = the transpose of from [rows, stride], both in whole multiples of 4.
template <class A>
void transpose(const A* from, std::int64_t stride, std::int64_t rows, std::int64_t width, A* to,
               std::int64_t to_stride) {
#if HWY_TARGET != HWY_SCALAR  // which has no vectors of 4
  if constexpr (std::is_same_v<A, float>) {
    const hn::FixedTag<float, 4> d;
    for (std::int64_t i = 0; i < rows; i += 4) {
      for (std::int64_t e = 0; e < width; e += 4) {
        const float* corner = from + i * stride + e;
        const auto row0 = hn::Load(d, corner), row1 = hn::Load(d, corner + stride);
        const auto row2 = hn::Load(d, corner + 2 * stride), row3 = hn::Load(d, corner + 3 * stride);
        const auto low02 = hn::InterleaveLower(d, row0, row2), low13 = hn::InterleaveLower(d, row1, row3);
        const auto high02 = hn::InterleaveUpper(d, row0, row2), high13 = hn::InterleaveUpper(d, row1, row3);
        float* column = to + e * to_stride + i;
        hn::Store(hn::InterleaveLower(d, low02, low13), d, column);
        hn::Store(hn::InterleaveUpper(d, low02, low13), d, column + to_stride);
        hn::Store(hn::InterleaveLower(d, high02, high13), d, column + 2 * to_stride);
        hn::Store(hn::InterleaveUpper(d, high02, high13), d, column + 3 * to_stride);
      }
    }
    return;
  }
#endif
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t e = 0; e < width; ++e) to[e * to_stride + i] = from[i * stride + e];
}

struct Depths {
  std::int64_t begin, end;
};

/// c [rows, width] (update) a [rows, depth] b [depth, width]; rows i ... i + tile_rows take the depths of depths(i).
template <Update update, class A, class DepthsOf>
void product(std::int64_t rows, std::int64_t width, TileOperand<A> a, const A* b, std::int64_t b_stride, A* c,
             std::int64_t c_stride, const DepthsOf& depths, const A* rescale = nullptr) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  for (std::int64_t e = 0; e < width; e += tile_vectors * step) {
    for (std::int64_t i = 0; i < rows; i += tile_rows) {
      const auto [begin, end] = depths(i);
      const TileOperand<A> from{a.data + i * a.row_step + begin * a.depth_step, a.row_step, a.depth_step};
      const A *right = b + begin * b_stride + e, *factors = rescale ? rescale + i : nullptr;
      A* to = c + i * c_stride + e;
      if (e + step < width) {
        tile_product<update, 2>(d, from, right, b_stride, end - begin, to, c_stride, factors);
      } else {
        tile_product<update, 1>(d, from, right, b_stride, end - begin, to, c_stride, factors);
      }
    }
  }
}

/// c [count, count] = a [count, width] b [width, count], the tiles with some column that is not behind its row.
template <class A>
void scores(std::int64_t count, std::int64_t width, const A* a, std::int64_t a_stride, const A* b, A* c) {
  const hn::ScalableTag<A> d;
  const std::int64_t step = lanes(d);
  for (std::int64_t j = 0; j < count; j += step) {
    for (std::int64_t i = std::max<std::int64_t>(0, j / tile_rows * tile_rows); i < count; i += tile_rows) {
      tile_product<Update::set, 1>(d, {a + i * a_stride, a_stride, 1}, b + j, chunk_stride, width,
                                   c + i * chunk_stride + j, chunk_stride);
    }
  }
}

// ---- A chunk

/// Tokens [begin, begin + count) of head `head` of sequence `batch`; `state` is the number of its state.
struct Chunk {
  std::int64_t batch, head, state, begin, count;

  Chunk(const LinearAttentionShape& s, std::int64_t of_state, std::int64_t index)
      : batch(of_state / s.heads),
        head(of_state % s.heads),
        state(of_state),
        begin(index * linear_attention_chunk),
        count(std::min(linear_attention_chunk, s.length - begin)) {}

  template <class T>
  T* at(T* tensor, std::int64_t stride, const LinearAttentionShape& s) const {
    return tensor + s.row(batch, begin) * stride + head * s.head_width;
  }
  template <class A>
  A* decays(A* log_decay, const LinearAttentionShape& s) const {
    return log_decay + s.row(batch, begin) * s.decay_stride() + head;
  }
};

/// Fills the rows of numbers of `memory`; returns exp(c_last), by which the chunk decays a state.
template <class A>
A read_decays(const LinearAttentionShape& s, const Chunk& chunk, const A* log_decay, const ChunkMemory<A>& memory) {
  const hn::ScalableTag<A> d;
  const A* g = chunk.decays(log_decay, s);
  A sum = 0;
  std::int64_t first = -1;
  for (std::int64_t i = 0; i < chunk.count; ++i) {
    const auto take_up = [&](std::int64_t first_of_next) {
      const A decay = g[i * s.decay_stride()];
      const bool border = decay == -std::numeric_limits<A>::infinity();
      if (border) first = first_of_next;
      sum = border ? A(0) : sum + decay;
    };
    if (!s.reverse) take_up(i);
    memory.sums[i] = sum;
    memory.first[i] = first;
    if (s.reverse) take_up(i + 1);
  }
  memory.sums[chunk.count] = sum;  // a row of padding
  std::fill(memory.sums + chunk.count + 1, memory.sums + cpu::chunk_rows, A(0));
  const auto last = hn::Set(d, sum);
  for (std::int64_t i = 0; i < cpu::chunk_rows; i += lanes(d)) {
    const auto c = hn::Load(d, memory.sums + i);
    hn::Store(exp(d, c), d, memory.from_state + i);
    hn::Store(exp(d, hn::Sub(last, c)), d, memory.to_state + i);
  }
  for (std::int64_t i = 0; i < chunk.count; ++i) {
    if (memory.first[i] >= 0) memory.from_state[i] = 0;
    if (i < first) memory.to_state[i] = 0;
  }
  return first >= 0 ? A(0) : memory.from_state[chunk.count];
}

/// scores = scores * D, and those of later tokens, other documents and in reverse the token itself 0, of one or two
/// blocks of scores.
template <class A>
void decay_scores(const LinearAttentionShape& s, std::int64_t count, const ChunkMemory<A>& memory, A* first_block,
                  A* second_block) {
  const hn::ScalableTag<A> d;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto c = hn::Set(d, memory.sums[i]);
    const std::int64_t begin = std::max<std::int64_t>(0, memory.first[i]);
    const std::int64_t end = std::min(cpu::chunk_rows, i / tile_rows * tile_rows + tile_rows);
    for (std::int64_t j = begin / lanes(d) * lanes(d); j <= i; j += lanes(d)) {
      const auto factor = exp(d, hn::Sub(c, hn::Load(d, memory.sums + j)));
      for (A* block : {first_block, second_block}) {
        if (!block) continue;
        A* at = block + i * chunk_stride + j;
        hn::Store(hn::Mul(hn::Load(d, at), factor), d, at);
      }
    }
    for (A* block : {first_block, second_block}) {
      if (!block) continue;
      A* row = block + i * chunk_stride;
      std::fill(row, row + begin, A(0));
      std::fill(row + i + (s.reverse ? 0 : 1), row + std::max(i + 1, end), A(0));
    }
  }
}

// ---- States

template <class A>
void read_state(const StateLayout& layout, const A* from, A* to) {
  std::fill(to, to + layout.elements, A(0));
  for (std::int64_t e = 0; from && e < layout.width; ++e)
    std::copy_n(from + e * layout.width, layout.width, to + e * layout.stride);
}

template <class A>
void write_state(const StateLayout& layout, const A* from, A* to) {
  for (std::int64_t e = 0; e < layout.width; ++e)
    std::copy_n(from + e * layout.stride, layout.width, to + e * layout.width);
}

template <class A>
void transpose_state(const StateLayout& layout, const A* from, A* to) {
  const std::int64_t width = cpu::tiled(layout.width);
  transpose(from, layout.stride, width, width, to, layout.stride);
}

/// next = decay * state + a^T b, of blocks a and b of `count` rows.
template <class A>
void step_state(const StateLayout& layout, A decay, const A* state, const A* a, const A* b, std::int64_t count,
                A* next) {
  const hn::ScalableTag<A> d;
  const auto factor = hn::Set(d, decay);
  for (std::int64_t i = 0; i < layout.elements; i += lanes(d))
    hn::Store(hn::Mul(factor, hn::Load(d, state + i)), d, next + i);
  product<Update::add>(layout.width, layout.width, TileOperand<A>{a, 1, layout.stride}, b, layout.stride, next,
                       layout.stride, [&](std::int64_t) {
                         return Depths{0, count};
                       });
}

template <class A>
A* state_before(const StateLayout& layout, const LinearAttentionShape& s, A* states, std::int64_t state,
                std::int64_t chunk) {
  return states + (state * (s.chunks() + 1) + chunk) * layout.elements;
}

// ---- Gradients

/// <a, b> of blocks [rows, stride] of `width` columns.
template <class A>
A inner_product(const A* a, const A* b, std::int64_t rows, std::int64_t width, std::int64_t stride) {
  const hn::ScalableTag<A> d;
  A all = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    all += sum_over(d, width, [&](std::int64_t e, auto end, auto sum) HWY_ATTR {
      return hn::MulAdd(load(d, a + i * stride + e, end), load(d, b + i * stride + e, end), sum);
    });
  }
  return all;
}

/// dg of a chunk from dc; `of_last` is <S', dS'>.
template <class A>
void decay_gradients(const LinearAttentionShape& s, const Chunk& chunk, const ChunkMemory<A>& memory, A of_last,
                     const A* log_decay, A* dlog_decay) {
  const A* g = chunk.decays(log_decay, s);
  A* dg = chunk.decays(dlog_decay, s);
  A sum = of_last;
  for (std::int64_t i = chunk.count - 1; i >= 0; --i) {
    if (!s.reverse) sum += memory.dsum[i];
    if (g[i * s.decay_stride()] == -std::numeric_limits<A>::infinity()) sum = 0;
    A& to = dg[i * s.decay_stride()];
    to = s.reverse ? to + sum : sum;
    if (s.reverse) sum += memory.dsum[i];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
