// Linear attention in chunks: first the states between the chunks, from chunk to chunk, by heads; then all chunks, each
// on its own. Operands are packed to f32 (f64 for f64); products of blocks run on register tiles (register_tile.h), and
// tiles of later tokens are skipped. q is packed times scale.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_attention.cpp"
#include "kernels/linear_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "kernels/cpu/linear_attention_blocks.h"
#include "kernels/cpu/linear_attention_plan.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

using cpu::LinearAttentionStep;

// ---- States

template <class Args, LinearAttentionStep step>
using Step = cpu::StepOf<Args, cpu::LinearAttentionMemory<std::remove_cvref_t<decltype(*Args::log_decay)>>, step>;

/// The states before all chunks and after the last one, transposed if backward wants them so, of which k^T is v^T.
template <bool transposed, class Args, class A>
void compute_states(const Args& args, const cpu::LinearAttentionMemory<A>& all, cpu::Part part) {
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const ChunkMemory<A> memory = all.of_thread(s, part.index);
  for (std::int64_t i = part.begin; i < part.end; ++i) {
    A* state = state_before(layout, s, all.states, i, 0);
    const A* given = args.state ? args.state + i * layout.width * layout.width : nullptr;
    read_state(layout, given, transposed ? memory.dstate_transposed : state);
    if (transposed) transpose_state(layout, memory.dstate_transposed, state);
    for (std::int64_t n = 0; n < s.chunks(); ++n, state += layout.elements) {
      const Chunk chunk(s, i, n);
      const A decay = read_decays(s, chunk, args.log_decay, memory);
      pack(
          chunk.at(args.k, s.k_stride, s), s.k_stride, chunk.count, s.head_width, [](std::int64_t) { return A(1); },
          memory.key, layout.stride);
      pack(
          chunk.at(args.v, s.v_stride, s), s.v_stride, chunk.count, s.head_width,
          [&](std::int64_t j) { return memory.to_state[j]; }, memory.value, layout.stride);
      step_state(layout, decay, state, transposed ? memory.value : memory.key, transposed ? memory.key : memory.value,
                 chunk.count, state + layout.elements);
    }
  }
}

template <class T, class A = Accumulate<T>>
void forward_states(const Step<LinearAttentionForward<T>, LinearAttentionStep::states>& step, cpu::Part part) {
  const LinearAttentionForward<T>& args = step.args;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  compute_states<false>(args, step.memory, part);
  for (std::int64_t i = part.begin; i < part.end; ++i) {
    if (args.last_state)
      write_state(layout, state_before(layout, s, step.memory.states, i, s.chunks()),
                  args.last_state + i * layout.width * layout.width);
    if (!args.total) continue;
    const A* g = Chunk(s, i, 0).decays(args.log_decay, s);
    args.total[i] = 0;
    for (std::int64_t t = 0; t < s.length; ++t) args.total[i] += g[t * s.decay_stride()];
  }
}

template <class T, class A = Accumulate<T>>
void forward_chunks(const Step<LinearAttentionForward<T>, LinearAttentionStep::chunks>& step, cpu::Part part) {
  const LinearAttentionForward<T>& args = step.args;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const ChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t width = s.head_width;
  const auto one = [](std::int64_t) { return A(1); };
  for (std::int64_t item = part.begin; item < part.end; ++item) {
    const Chunk chunk(s, item / s.chunks(), item % s.chunks());
    read_decays(s, chunk, args.log_decay, memory);
    pack(
        chunk.at(args.q, s.q_stride, s), s.q_stride, chunk.count, width, [&](std::int64_t) { return A(s.scale); },
        memory.query, layout.stride);
    pack(chunk.at(args.k, s.k_stride, s), s.k_stride, chunk.count, width, one, memory.key, layout.stride);
    pack(chunk.at(args.v, s.v_stride, s), s.v_stride, chunk.count, width, one, memory.value, layout.stride);
    transpose(memory.key, layout.stride, cpu::tiled(chunk.count), cpu::tiled(width), memory.key_transposed,
              chunk_stride);
    scores(chunk.count, width, memory.query, layout.stride, memory.key_transposed, memory.scores);
    decay_scores<A>(s, chunk.count, memory, memory.scores, nullptr);
    product<Update::set>(chunk.count, width, TileOperand<A>{memory.query, layout.stride, 1},
                         state_before(layout, s, step.memory.states, chunk.state, item % s.chunks()), layout.stride,
                         memory.result, layout.stride, [&](std::int64_t) {
                           return Depths{0, width};
                         });
    product<Update::rescale_add>(
        chunk.count, width, TileOperand<A>{memory.scores, chunk_stride, 1}, memory.value, layout.stride, memory.result,
        layout.stride,
        [&](std::int64_t i) {
          return Depths{0, std::min(i + tile_rows, chunk.count)};
        },
        memory.from_state);
    unpack(memory.result, layout.stride, chunk.count, width, A(1), s.reverse, chunk.at(args.out, s.out_stride, s),
           s.out_stride);
  }
}

template <class T>
void backward_states(const Step<LinearAttentionBackward<T>, LinearAttentionStep::states>& step, cpu::Part part) {
  compute_states<true>(step.args, step.memory, part);
}

template <class T, class A = Accumulate<T>>
void backward_dstates(const Step<LinearAttentionBackward<T>, LinearAttentionStep::dstates>& step, cpu::Part part) {
  const LinearAttentionBackward<T>& args = step.args;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const ChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t elements = layout.width * layout.width;
  for (std::int64_t i = part.begin; i < part.end; ++i) {
    read_state(layout, args.dlast ? args.dlast + i * elements : nullptr,
               state_before(layout, s, step.memory.dstates, i, s.chunks()));
    for (std::int64_t n = s.chunks() - 1; n >= 0; --n) {
      const Chunk chunk(s, i, n);
      const A decay = read_decays(s, chunk, args.log_decay, memory);
      pack(
          chunk.at(args.q, s.q_stride, s), s.q_stride, chunk.count, s.head_width,
          [&](std::int64_t) { return A(s.scale); }, memory.query, layout.stride);
      pack(
          chunk.at(args.dout, s.out_stride, s), s.out_stride, chunk.count, s.head_width,
          [&](std::int64_t j) { return memory.from_state[j]; }, memory.dout, layout.stride);
      A* dstate = state_before(layout, s, step.memory.dstates, i, n);
      step_state(layout, decay, dstate + layout.elements, memory.query, memory.dout, chunk.count, dstate);
    }
    if (args.dstate)
      write_state(layout, state_before(layout, s, step.memory.dstates, i, 0), args.dstate + i * elements);
  }
}

template <class T, class A = Accumulate<T>>
void backward_chunks(const Step<LinearAttentionBackward<T>, LinearAttentionStep::chunks>& step, cpu::Part part) {
  const LinearAttentionBackward<T>& args = step.args;
  const LinearAttentionShape& s = args.shape;
  const StateLayout layout(s);
  const ChunkMemory<A> memory = step.memory.of_thread(s, part.index);
  const std::int64_t width = s.head_width, stride = layout.stride;
  const auto one = [](std::int64_t) { return A(1); };
  const auto of_width = [&](std::int64_t) { return Depths{0, width}; };
  for (std::int64_t item = part.begin; item < part.end; ++item) {
    const Chunk chunk(s, item / s.chunks(), item % s.chunks());
    const std::int64_t count = chunk.count;
    const auto not_later = [&](std::int64_t i) { return Depths{0, std::min(i + tile_rows, count)}; };
    const auto not_earlier = [&](std::int64_t j) { return Depths{j, count}; };
    read_decays(s, chunk, args.log_decay, memory);
    pack(
        chunk.at(args.q, s.q_stride, s), s.q_stride, count, width, [&](std::int64_t) { return A(s.scale); },
        memory.query, stride);
    pack(chunk.at(args.k, s.k_stride, s), s.k_stride, count, width, one, memory.key, stride);
    pack(chunk.at(args.v, s.v_stride, s), s.v_stride, count, width, one, memory.value, stride);
    pack(chunk.at(args.dout, s.out_stride, s), s.out_stride, count, width, one, memory.dout, stride);
    const std::int64_t rows = cpu::tiled(count), columns = cpu::tiled(width);
    transpose(memory.key, stride, rows, columns, memory.key_transposed, chunk_stride);
    transpose(memory.value, stride, rows, columns, memory.value_transposed, chunk_stride);
    scores(count, width, memory.query, stride, memory.key_transposed, memory.scores);
    scores(count, width, memory.dout, stride, memory.value_transposed, memory.dscores);
    decay_scores(s, count, memory, memory.scores, memory.dscores);

    const A* state = state_before(layout, s, step.memory.states, chunk.state, item % s.chunks());  // transposed
    const A* dnext = state_before(layout, s, step.memory.dstates, chunk.state, item % s.chunks() + 1);
    transpose_state(layout, dnext, memory.dstate_transposed);
    A* dquery = memory.result;
    product<Update::set>(count, width, TileOperand<A>{memory.dout, stride, 1}, state, stride, dquery, stride, of_width);
    product<Update::rescale_add>(count, width, TileOperand<A>{memory.dscores, chunk_stride, 1}, memory.key, stride,
                                 dquery, stride, not_later, memory.from_state);
    product<Update::set>(count, width, TileOperand<A>{memory.value, stride, 1}, memory.dstate_transposed, stride,
                         memory.dkey, stride, of_width);
    product<Update::rescale_add>(count, width, TileOperand<A>{memory.dscores, 1, chunk_stride}, memory.query, stride,
                                 memory.dkey, stride, not_earlier, memory.to_state);
    for (std::int64_t i = 0; i < count; ++i) {
      memory.dsum[i] = inner_product(memory.query + i * stride, dquery + i * stride, 1, width, stride) -
                       inner_product(memory.key + i * stride, memory.dkey + i * stride, 1, width, stride);
    }
    decay_gradients(s, chunk, memory,
                    inner_product<A>(state + layout.elements, memory.dstate_transposed, width, width, stride),
                    args.log_decay, args.dlog_decay);
    unpack(dquery, stride, count, width, A(s.scale), s.reverse, chunk.at(args.dq, s.q_stride, s), s.q_stride);
    unpack(memory.dkey, stride, count, width, A(1), s.reverse, chunk.at(args.dk, s.k_stride, s), s.k_stride);

    A* dvalue = memory.result;
    product<Update::set>(count, width, TileOperand<A>{memory.key, stride, 1}, dnext, stride, dvalue, stride, of_width);
    product<Update::rescale_add>(count, width, TileOperand<A>{memory.scores, 1, chunk_stride}, memory.dout, stride,
                                 dvalue, stride, not_earlier, memory.to_state);
    unpack(dvalue, stride, count, width, A(1), s.reverse, chunk.at(args.dv, s.v_stride, s), s.v_stride);
  }
}

template <class T>
using StepsOf = cpu::KernelSet<Step<LinearAttentionForward<T>, LinearAttentionStep::states>,
                               Step<LinearAttentionForward<T>, LinearAttentionStep::chunks>,
                               Step<LinearAttentionBackward<T>, LinearAttentionStep::states>,
                               Step<LinearAttentionBackward<T>, LinearAttentionStep::dstates>,
                               Step<LinearAttentionBackward<T>, LinearAttentionStep::chunks>>;

template <class T>
StepsOf<T> steps_of() {
  return {forward_states<T>, forward_chunks<T>, backward_states<T>, backward_dstates<T>, backward_chunks<T>};
}

auto linear_attention_kernels() { return std::tuple_cat(steps_of<float>(), steps_of<bf16>(), steps_of<double>()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
namespace {

HWY_EXPORT(linear_attention_kernels);

using cpu::LinearAttentionStep;

template <LinearAttentionStep step, class Args, class Memory>
void run(Cpu cpu, const Args& args, const Memory& memory) {
  cpu::run_step(cpu, HWY_DYNAMIC_DISPATCH(linear_attention_kernels)(), cpu::StepOf<Args, Memory, step>{args, memory},
                args.shape);
}

}  // namespace

template <class T>
std::int64_t linear_attention_forward_workspace_bytes(Cpu cpu, const LinearAttentionShape& s) {
  return cpu::LinearAttentionMemory<Accumulate<T>>(s, false, cpu.threads, nullptr).bytes;
}

template <class T>
std::int64_t linear_attention_backward_workspace_bytes(Cpu cpu, const LinearAttentionShape& s) {
  return cpu::LinearAttentionMemory<Accumulate<T>>(s, true, cpu.threads, nullptr).bytes;
}

template <class T>
void linear_attention_forward(Cpu cpu, const LinearAttentionForward<T>& given) {
  const LinearAttentionForward<T> args = in_order(given);
  const cpu::LinearAttentionMemory<Accumulate<T>> memory(args.shape, false, cpu.threads, args.workspace);
  run<LinearAttentionStep::states>(cpu, args, memory);
  if (args.out) run<LinearAttentionStep::chunks>(cpu, args, memory);
}

template <class T>
void linear_attention_backward(Cpu cpu, const LinearAttentionBackward<T>& given) {
  const LinearAttentionBackward<T> args = in_order(given);
  const cpu::LinearAttentionMemory<Accumulate<T>> memory(args.shape, true, cpu.threads, args.workspace);
  run<LinearAttentionStep::dstates>(cpu, args, memory);
  if (!args.dq) return;
  run<LinearAttentionStep::states>(cpu, args, memory);
  run<LinearAttentionStep::chunks>(cpu, args, memory);
}

template <class A>
void carry_state(Cpu cpu, const CarryState<A>& args) {
  const int parts = cpu::num_parts(cpu, args.states, args.elements);
  cpu::for_each_part(parts, args.states, 1, [&](cpu::Part part) {
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const A factor = std::exp(args.total[i]);
      A* state = args.state + i * args.elements;
      for (std::int64_t e = 0; e < args.elements; ++e) state[e] = factor * state[e] + args.next[i * args.elements + e];
    }
  });
}

template std::int64_t linear_attention_forward_workspace_bytes<float>(Cpu, const LinearAttentionShape&);
template std::int64_t linear_attention_forward_workspace_bytes<bf16>(Cpu, const LinearAttentionShape&);
template std::int64_t linear_attention_forward_workspace_bytes<double>(Cpu, const LinearAttentionShape&);
template std::int64_t linear_attention_backward_workspace_bytes<float>(Cpu, const LinearAttentionShape&);
template std::int64_t linear_attention_backward_workspace_bytes<bf16>(Cpu, const LinearAttentionShape&);
template std::int64_t linear_attention_backward_workspace_bytes<double>(Cpu, const LinearAttentionShape&);
template void linear_attention_forward(Cpu, const LinearAttentionForward<float>&);
template void linear_attention_forward(Cpu, const LinearAttentionForward<bf16>&);
template void linear_attention_forward(Cpu, const LinearAttentionForward<double>&);
template void linear_attention_backward(Cpu, const LinearAttentionBackward<float>&);
template void linear_attention_backward(Cpu, const LinearAttentionBackward<bf16>&);
template void linear_attention_backward(Cpu, const LinearAttentionBackward<double>&);
template void carry_state(Cpu, const CarryState<float>&);
template void carry_state(Cpu, const CarryState<double>&);

}  // namespace choir::kernels
#endif  // HWY_ONCE
