// Linear attention by the delta rule in chunks: first the values and the states between the chunks, from chunk to
// chunk, by heads; then all chunks, each on its own. Blocks and products are those of linear attention
// (linear_attention_blocks.h); triangular systems are solved tile by tile. q is packed times scale.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/delta_attention.cpp"
#include "kernels/delta_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "kernels/cpu/delta_attention_plan.h"
#include "kernels/cpu/linear_attention_blocks.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

using cpu::DeltaChunkMemory, cpu::LinearAttentionStep;

template <class Args, LinearAttentionStep step>
using Step = cpu::StepOf<Args, cpu::DeltaAttentionMemory<std::remove_cvref_t<decltype(*Args::log_rate)>>, step>;

// ---- Rows at unit length

/// to = scale * from at unit length, as pack(); `factors` is what brings each row there.
template <class A, class T>
void pack_unit(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, A scale, A* to,
               std::int64_t stride, A* factors) {
  pack(
      from, from_stride, rows, width, [](std::int64_t) { return A(1); }, to, stride);
  for (std::int64_t i = 0; i < rows; ++i) {
    const A* row = to + i * stride;
    factors[i] = 1 / std::sqrt(inner_product(row, row, 1, width, stride) + A(delta_norm_epsilon));
  }
  pack(
      to, stride, rows, width, [&](std::int64_t i) { return scale * factors[i]; }, to, stride);
}

/// The gradient of the rows of pack_unit(), rounded to T, of the gradient `d` of the rows at unit length divided by
/// scale. Writes to d, and to or adds to `to`.
template <class A, class T>
void unpack_unit(A* d, const A* unit, std::int64_t stride, std::int64_t rows, std::int64_t width, A scale,
                 const A* factors, bool adds, T* to, std::int64_t to_stride) {
  const hn::ScalableTag<A> tag;
  for (std::int64_t i = 0; i < rows; ++i) {
    const A along = inner_product(unit + i * stride, d + i * stride, 1, width, stride);
    const auto of_d = hn::Set(tag, scale * factors[i]), of_unit = hn::Set(tag, -factors[i] * along / scale);
    for (std::int64_t e = 0; e < width; e += lanes(tag)) {
      A* at = d + i * stride + e;
      hn::Store(hn::MulAdd(of_d, hn::Load(tag, at), hn::Mul(of_unit, hn::Load(tag, unit + i * stride + e))), tag, at);
    }
  }
  unpack(d, stride, rows, width, A(1), adds, to, to_stride);
}

// ---- The triangular systems of a chunk

/// -L of a block of (k_i . k_j) D_ij.
template <class A>
void to_system(std::int64_t count, const A* rate, A* block) {
  for (std::int64_t i = 0; i < count; ++i) {
    A* row = block + i * chunk_stride;
    for (std::int64_t j = 0; j < i; ++j) row[j] *= -rate[i];
    row[i] = 0;
  }
}

/// to += factor * from, rows of `width`.
template <class A>
void add_row(A factor, const A* from, std::int64_t width, A* to) {
  const hn::ScalableTag<A> d;
  const auto f = hn::Set(d, factor);
  for (std::int64_t e = 0; e < width; e += lanes(d))
    hn::Store(hn::MulAdd(f, hn::Load(d, from + e), hn::Load(d, to + e)), d, to + e);
}

/// x [count, width] becomes the solution of (I + L) u = x, of `system` = -L.
template <class A>
void solve(std::int64_t count, std::int64_t width, const A* system, A* x, std::int64_t stride) {
  for (std::int64_t begin = 0; begin < count; begin += tile_rows) {
    const std::int64_t end = std::min<std::int64_t>(begin + tile_rows, count);
    product<Update::add>(tile_rows, width, TileOperand<A>{system + begin * chunk_stride, chunk_stride, 1}, x, stride,
                         x + begin * stride, stride, [&](std::int64_t) {
                           return Depths{0, begin};
                         });
    for (std::int64_t i = begin + 1; i < end; ++i)
      for (std::int64_t j = begin; j < i; ++j)
        add_row(system[i * chunk_stride + j], x + j * stride, width, x + i * stride);
  }
}

/// The same of (I + L^T) w = x.
template <class A>
void solve_transposed(std::int64_t count, std::int64_t width, const A* system, A* x, std::int64_t stride) {
  for (std::int64_t begin = (count - 1) / tile_rows * tile_rows; begin >= 0; begin -= tile_rows) {
    const std::int64_t end = std::min<std::int64_t>(begin + tile_rows, count);
    product<Update::add>(tile_rows, width, TileOperand<A>{system + begin, 1, chunk_stride}, x, stride,
                         x + begin * stride, stride, [&](std::int64_t) {
                           return Depths{end, count};
                         });
    for (std::int64_t i = end - 2; i >= begin; --i)
      for (std::int64_t m = i + 1; m < end; ++m)
        add_row(system[m * chunk_stride + i], x + m * stride, width, x + i * stride);
  }
}

// ---- Steps

template <class A>
A* block_of(const LinearAttentionShape& s, A* blocks, std::int64_t state, std::int64_t chunk) {
  return blocks + (state * s.chunks() + chunk) * cpu::chunk_rows * StateLayout(s).stride;
}

/// Fills the rows of numbers of `memory`; returns exp(c_last).
template <class A>
A read_gates(const LinearAttentionShape& s, const Chunk& chunk, const A* log_decay, const A* log_rate,
             const DeltaChunkMemory<A>& memory) {
  const A* of_chunk = chunk.decays(log_rate, s);
  for (std::int64_t i = 0; i < chunk.count; ++i) memory.rate[i] = std::exp(of_chunk[i * s.decay_stride()]);
  return read_decays(s, chunk, log_decay, memory);
}

/// The values of all chunks, and the states before all chunks and after the last one.
template <class Args, class A>
void compute_values(const Args& args, const A* log_rate, const cpu::DeltaAttentionMemory<A>& all, cpu::Part part) {
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const DeltaChunkMemory<A> memory = all.of_thread(s, part.index);
  const std::int64_t width = s.head_width, stride = layout.stride;
  for (std::int64_t i = part.begin; i < part.end; ++i) {
    A* state = state_before(layout, s, all.states, i, 0);
    read_state(layout, args.state ? args.state + i * width * width : nullptr, state);
    for (std::int64_t n = 0; n < s.chunks(); ++n, state += layout.elements) {
      const Chunk chunk(s, i, n);
      const std::int64_t count = chunk.count;
      A* values = block_of(s, all.values, i, n);
      const A decay = read_gates(s, chunk, args.log_decay, log_rate, memory);
      pack_unit(chunk.at(args.k, s.k_stride, s), s.k_stride, count, width, A(1), memory.key, stride, memory.key_factor);
      transpose(memory.key, stride, cpu::tiled(count), cpu::tiled(width), memory.key_transposed, chunk_stride);
      scores(count, width, memory.key, stride, memory.key_transposed, memory.scores);
      decay_scores<A>(s, count, memory, memory.scores, nullptr);
      to_system(count, memory.rate, memory.scores);

      if (args.v) {
        pack(
            chunk.at(args.v, s.v_stride, s), s.v_stride, count, width, [&](std::int64_t j) { return memory.rate[j]; },
            values, stride);
      } else {
        std::fill(values, values + cpu::tiled(count) * stride, A(0));
      }
      pack(
          memory.key, stride, count, width, [&](std::int64_t j) { return -memory.rate[j] * memory.from_state[j]; },
          memory.query, stride);
      product<Update::add>(count, width, TileOperand<A>{memory.query, stride, 1}, state, stride, values, stride,
                           [&](std::int64_t) {
                             return Depths{0, width};
                           });
      solve(count, width, memory.scores, values, stride);
      pack(
          values, stride, count, width, [&](std::int64_t j) { return memory.to_state[j]; }, memory.value, stride);
      step_state(layout, decay, state, memory.key, memory.value, count, state + layout.elements);
    }
  }
}

template <class T, class A = Accumulate<T>>
void forward_states(const Step<DeltaAttentionForward<T>, LinearAttentionStep::states>& step, cpu::Part part) {
  const LinearAttentionForward<T>& args = step.args.linear;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  compute_values(args, step.args.log_rate, step.memory, part);
  for (std::int64_t i = part.begin; args.last_state && i < part.end; ++i)
    write_state(layout, state_before(layout, s, step.memory.states, i, s.chunks()),
                args.last_state + i * layout.width * layout.width);
}

template <class T, class A = Accumulate<T>>
void forward_chunks(const Step<DeltaAttentionForward<T>, LinearAttentionStep::chunks>& step, cpu::Part part) {
  const LinearAttentionForward<T>& args = step.args.linear;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const DeltaChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t width = s.head_width, stride = layout.stride;
  for (std::int64_t item = part.begin; item < part.end; ++item) {
    const Chunk chunk(s, item / s.chunks(), item % s.chunks());
    const std::int64_t count = chunk.count;
    read_decays(s, chunk, args.log_decay, memory);
    pack_unit(chunk.at(args.q, s.q_stride, s), s.q_stride, count, width, A(s.scale), memory.query, stride,
              memory.query_factor);
    pack_unit(chunk.at(args.k, s.k_stride, s), s.k_stride, count, width, A(1), memory.key, stride, memory.key_factor);
    transpose(memory.key, stride, cpu::tiled(count), cpu::tiled(width), memory.key_transposed, chunk_stride);
    scores(count, width, memory.query, stride, memory.key_transposed, memory.scores);
    decay_scores<A>(s, count, memory, memory.scores, nullptr);
    product<Update::set>(count, width, TileOperand<A>{memory.query, stride, 1},
                         state_before(layout, s, step.memory.states, chunk.state, item % s.chunks()), stride,
                         memory.result, stride, [&](std::int64_t) {
                           return Depths{0, width};
                         });
    product<Update::rescale_add>(
        count, width, TileOperand<A>{memory.scores, chunk_stride, 1},
        block_of(s, step.memory.values, chunk.state, item % s.chunks()), stride, memory.result, stride,
        [&](std::int64_t i) {
          return Depths{0, std::min(i + tile_rows, count)};
        },
        memory.from_state);
    unpack(memory.result, stride, count, width, A(1), s.reverse, chunk.at(args.out, s.out_stride, s), s.out_stride);
  }
}

template <class T>
void backward_states(const Step<DeltaAttentionBackward<T>, LinearAttentionStep::states>& step, cpu::Part part) {
  compute_values(step.args.linear, step.args.log_rate, step.memory, part);
}

template <class T, class A = Accumulate<T>>
void backward_dstates(const Step<DeltaAttentionBackward<T>, LinearAttentionStep::dstates>& step, cpu::Part part) {
  const LinearAttentionBackward<T>& args = step.args.linear;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const DeltaChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t width = s.head_width, stride = layout.stride, elements = width * width;
  for (std::int64_t state = part.begin; state < part.end; ++state) {
    read_state(layout, args.dlast ? args.dlast + state * elements : nullptr,
               state_before(layout, s, step.memory.dstates, state, s.chunks()));
    for (std::int64_t n = s.chunks() - 1; n >= 0; --n) {
      const Chunk chunk(s, state, n);
      const std::int64_t count = chunk.count;
      const A decay = read_gates(s, chunk, args.log_decay, step.args.log_rate, memory);
      pack_unit(chunk.at(args.q, s.q_stride, s), s.q_stride, count, width, A(s.scale), memory.query, stride,
                memory.query_factor);
      pack_unit(chunk.at(args.k, s.k_stride, s), s.k_stride, count, width, A(1), memory.key, stride, memory.key_factor);
      pack(
          chunk.at(args.dout, s.out_stride, s), s.out_stride, count, width, [](std::int64_t) { return A(1); },
          memory.dout, stride);
      transpose(memory.key, stride, cpu::tiled(count), cpu::tiled(width), memory.key_transposed, chunk_stride);
      scores(count, width, memory.query, stride, memory.key_transposed, memory.scores);
      scores(count, width, memory.key, stride, memory.key_transposed, memory.dscores);
      decay_scores(s, count, memory, memory.scores, memory.dscores);
      to_system(count, memory.rate, memory.dscores);

      A *dvalues = block_of(s, step.memory.dreads, state, n), *dreads = dvalues;
      A *dstate = state_before(layout, s, step.memory.dstates, state, n), *dnext = dstate + layout.elements;
      product<Update::set>(count, width, TileOperand<A>{memory.key, stride, 1}, dnext, stride, dvalues, stride,
                           [&](std::int64_t) {
                             return Depths{0, width};
                           });
      product<Update::rescale_add>(
          count, width, TileOperand<A>{memory.scores, 1, chunk_stride}, memory.dout, stride, dvalues, stride,
          [&](std::int64_t j) {
            return Depths{j, count};
          },
          memory.to_state);
      solve_transposed(count, width, memory.dscores, dvalues, stride);
      if (args.dv) {
        const A* values = block_of(s, step.memory.values, state, n);
        A* dlog_rate = chunk.decays(step.args.dlog_rate, s);
        for (std::int64_t i = 0; i < count; ++i) {
          const A of_token = inner_product(dvalues + i * stride, values + i * stride, 1, width, stride);
          A& to = dlog_rate[i * s.decay_stride()];
          to = s.reverse ? to + of_token : of_token;
        }
      }
      pack(
          dvalues, stride, count, width, [&](std::int64_t i) { return -memory.rate[i]; }, dreads, stride);
      if (args.dv) unpack(dreads, stride, count, width, A(-1), s.reverse, chunk.at(args.dv, s.v_stride, s), s.v_stride);

      const auto from_state = [&](std::int64_t i) { return memory.from_state[i]; };
      pack(memory.dout, stride, count, width, from_state, memory.dout, stride);
      pack(dreads, stride, count, width, from_state, memory.value, stride);
      step_state(layout, decay, dnext, memory.query, memory.dout, count, dstate);
      step_state(layout, A(1), dstate, memory.key, memory.value, count, dstate);
    }
    if (args.dstate)
      write_state(layout, state_before(layout, s, step.memory.dstates, state, 0), args.dstate + state * elements);
  }
}

template <class T, class A = Accumulate<T>>
void backward_chunks(const Step<DeltaAttentionBackward<T>, LinearAttentionStep::chunks>& step, cpu::Part part) {
  const LinearAttentionBackward<T>& args = step.args.linear;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const DeltaChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t width = s.head_width, stride = layout.stride;
  const auto of_width = [&](std::int64_t) { return Depths{0, width}; };
  for (std::int64_t item = part.begin; item < part.end; ++item) {
    const Chunk chunk(s, item / s.chunks(), item % s.chunks());
    const std::int64_t count = chunk.count, rows = cpu::tiled(count), columns = cpu::tiled(width);
    const auto not_later = [&](std::int64_t i) { return Depths{0, std::min(i + tile_rows, count)}; };
    const auto not_earlier = [&](std::int64_t j) { return Depths{j, count}; };
    const A* values = block_of(s, step.memory.values, chunk.state, item % s.chunks());
    const A* dreads = block_of(s, step.memory.dreads, chunk.state, item % s.chunks());
    read_decays(s, chunk, args.log_decay, memory);
    pack_unit(chunk.at(args.q, s.q_stride, s), s.q_stride, count, width, A(s.scale), memory.query, stride,
              memory.query_factor);
    pack_unit(chunk.at(args.k, s.k_stride, s), s.k_stride, count, width, A(1), memory.key, stride, memory.key_factor);
    pack(
        chunk.at(args.dout, s.out_stride, s), s.out_stride, count, width, [](std::int64_t) { return A(1); },
        memory.dout, stride);
    transpose(values, stride, rows, columns, memory.value_transposed, chunk_stride);
    A *of_out = memory.dscores, *of_reads = memory.scores;  // [i][j]: (do_i . u_j) D_ij, (z_i . u_j) D_ij
    scores(count, width, memory.dout, stride, memory.value_transposed, of_out);
    scores(count, width, dreads, stride, memory.value_transposed, of_reads);
    decay_scores(s, count, memory, of_out, of_reads);
    for (std::int64_t i = 0; i < count; ++i) of_reads[i * chunk_stride + i] = 0;

    const A* state = state_before(layout, s, step.memory.states, chunk.state, item % s.chunks());
    const A* dnext = state_before(layout, s, step.memory.dstates, chunk.state, item % s.chunks() + 1);
    transpose_state(layout, state, memory.state_transposed);
    transpose_state(layout, dnext, memory.dstate_transposed);
    const auto add_to_sums = [&](A sign, const A* a, const A* b) {
      for (std::int64_t i = 0; i < count; ++i)
        memory.dsum[i] += sign * inner_product(a + i * stride, b + i * stride, 1, width, stride);
    };
    // memory.result, of the gradients of what tokens read: of the state before the chunk, and of the chunk.
    const auto of_reader = [&](const A* d, const A* d_scores) {
      product<Update::set>(count, width, TileOperand<A>{d, stride, 1}, memory.state_transposed, stride, memory.result,
                           stride, of_width);
      product<Update::rescale_add>(count, width, TileOperand<A>{d_scores, chunk_stride, 1}, memory.key, stride,
                                   memory.result, stride, not_later, memory.from_state);
    };
    std::fill(memory.dsum, memory.dsum + count, A(0));
    of_reader(memory.dout, of_out);
    add_to_sums(1, memory.query, memory.result);
    unpack_unit(memory.result, memory.query, stride, count, width, A(s.scale), memory.query_factor, s.reverse,
                chunk.at(args.dq, s.q_stride, s), s.q_stride);

    product<Update::set>(count, width, TileOperand<A>{values, stride, 1}, memory.dstate_transposed, stride, memory.dkey,
                         stride, of_width);
    product<Update::rescale_add>(count, width, TileOperand<A>{of_out, 1, chunk_stride}, memory.query, stride,
                                 memory.dkey, stride, not_earlier, memory.to_state);
    product<Update::add>(count, width, TileOperand<A>{of_reads, 1, chunk_stride}, memory.key, stride, memory.dkey,
                         stride, not_earlier);
    add_to_sums(-1, memory.key, memory.dkey);
    of_reader(dreads, of_reads);
    add_to_sums(1, memory.key, memory.result);
    for (std::int64_t i = 0; i < count; ++i) add_row(A(1), memory.result + i * stride, width, memory.dkey + i * stride);
    unpack_unit(memory.dkey, memory.key, stride, count, width, A(1), memory.key_factor, s.reverse,
                chunk.at(args.dk, s.k_stride, s), s.k_stride);
    decay_gradients(s, chunk, memory, inner_product<A>(state + layout.elements, dnext, width, width, stride),
                    args.log_decay, args.dlog_decay);
  }
}

template <class T>
using StepsOf = cpu::KernelSet<Step<DeltaAttentionForward<T>, LinearAttentionStep::states>,
                               Step<DeltaAttentionForward<T>, LinearAttentionStep::chunks>,
                               Step<DeltaAttentionBackward<T>, LinearAttentionStep::states>,
                               Step<DeltaAttentionBackward<T>, LinearAttentionStep::dstates>,
                               Step<DeltaAttentionBackward<T>, LinearAttentionStep::chunks>>;

template <class T>
StepsOf<T> steps_of() {
  return {forward_states<T>, forward_chunks<T>, backward_states<T>, backward_dstates<T>, backward_chunks<T>};
}

auto delta_attention_kernels() { return std::tuple_cat(steps_of<float>(), steps_of<bf16>(), steps_of<double>()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
namespace {

HWY_EXPORT(delta_attention_kernels);

using cpu::LinearAttentionStep;

template <LinearAttentionStep step, class Args, class Memory>
void run(Cpu cpu, const Args& args, const Memory& memory) {
  cpu::run_step(cpu, HWY_DYNAMIC_DISPATCH(delta_attention_kernels)(), cpu::StepOf<Args, Memory, step>{args, memory},
                args.linear.shape);
}

}  // namespace

template <class T>
std::int64_t delta_attention_forward_workspace_bytes(Cpu cpu, const LinearAttentionShape& s) {
  return cpu::DeltaAttentionMemory<Accumulate<T>>(s, false, cpu.threads, nullptr).bytes;
}

template <class T>
std::int64_t delta_attention_backward_workspace_bytes(Cpu cpu, const LinearAttentionShape& s) {
  return cpu::DeltaAttentionMemory<Accumulate<T>>(s, true, cpu.threads, nullptr).bytes;
}

template <class T>
void delta_attention_forward(Cpu cpu, const DeltaAttentionForward<T>& given) {
  using A = Accumulate<T>;
  const DeltaAttentionForward<T> args = in_order(given);
  const LinearAttentionShape& s = args.linear.shape;
  const cpu::DeltaAttentionMemory<A> memory(s, false, cpu.threads, args.linear.workspace);
  if (args.transition) {  // what the tokens make of the unit matrix if they add nothing
    std::fill_n(args.transition, s.states() * s.head_width * s.head_width, A(0));
    for (std::int64_t i = 0; i < s.states() * s.head_width; ++i)
      args.transition[i * s.head_width + i % s.head_width] = 1;
    DeltaAttentionForward<T> of_unit = args;
    of_unit.linear.v = nullptr;
    of_unit.linear.state = of_unit.linear.last_state = args.transition;
    run<LinearAttentionStep::states>(cpu, of_unit, memory);
  }
  run<LinearAttentionStep::states>(cpu, args, memory);
  if (args.linear.out) run<LinearAttentionStep::chunks>(cpu, args, memory);
}

template <class T>
void delta_attention_backward(Cpu cpu, const DeltaAttentionBackward<T>& given) {
  const DeltaAttentionBackward<T> args = in_order(given);
  const cpu::DeltaAttentionMemory<Accumulate<T>> memory(args.linear.shape, true, cpu.threads, args.linear.workspace);
  if (args.linear.dq) run<LinearAttentionStep::states>(cpu, args, memory);
  run<LinearAttentionStep::dstates>(cpu, args, memory);
  if (args.linear.dq) run<LinearAttentionStep::chunks>(cpu, args, memory);
}

template <class A>
void carry_through(Cpu cpu, const CarryThrough<A>& args) {
  const std::int64_t width = args.width, elements = width * width;
  const std::int64_t row_step = args.transposed ? 1 : width, depth_step = args.transposed ? width : 1;
  cpu::for_each_part(cpu::num_parts(cpu, args.states, elements * width), args.states, 1, [&](cpu::Part part) {
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const A *transition = args.transition + i * elements, *state = args.state + i * elements;
      A* out = args.out + i * elements;
      std::copy_n(args.next + i * elements, elements, out);
      for (std::int64_t e = 0; e < width; ++e)
        for (std::int64_t n = 0; n < width; ++n) {
          const A factor = transition[e * row_step + n * depth_step];
          for (std::int64_t f = 0; f < width; ++f) out[e * width + f] += factor * state[n * width + f];
        }
    }
  });
}

template std::int64_t delta_attention_forward_workspace_bytes<float>(Cpu, const LinearAttentionShape&);
template std::int64_t delta_attention_forward_workspace_bytes<bf16>(Cpu, const LinearAttentionShape&);
template std::int64_t delta_attention_forward_workspace_bytes<double>(Cpu, const LinearAttentionShape&);
template std::int64_t delta_attention_backward_workspace_bytes<float>(Cpu, const LinearAttentionShape&);
template std::int64_t delta_attention_backward_workspace_bytes<bf16>(Cpu, const LinearAttentionShape&);
template std::int64_t delta_attention_backward_workspace_bytes<double>(Cpu, const LinearAttentionShape&);
template void delta_attention_forward(Cpu, const DeltaAttentionForward<float>&);
template void delta_attention_forward(Cpu, const DeltaAttentionForward<bf16>&);
template void delta_attention_forward(Cpu, const DeltaAttentionForward<double>&);
template void delta_attention_backward(Cpu, const DeltaAttentionBackward<float>&);
template void delta_attention_backward(Cpu, const DeltaAttentionBackward<bf16>&);
template void delta_attention_backward(Cpu, const DeltaAttentionBackward<double>&);
template void carry_through(Cpu, const CarryThrough<float>&);
template void carry_through(Cpu, const CarryThrough<double>&);

}  // namespace choir::kernels
#endif  // HWY_ONCE
