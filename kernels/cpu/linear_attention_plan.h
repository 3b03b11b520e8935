// The memory of linear attention on the CPU: the states between chunks, and what one thread needs for a chunk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/carver.h"
#include "kernels/cpu/parallel.h"
#include "kernels/linear_attention.h"

namespace choir::kernels::cpu {

/// Rows of blocks are multiples of 24, hence of 6 and 8, the rows of a register tile (register_tile.h).
inline constexpr std::int64_t tiled(std::int64_t rows) { return num_blocks(rows, 24) * 24; }

inline constexpr std::int64_t chunk_rows = tiled(linear_attention_chunk);
inline constexpr std::int64_t chunk_stride = padded_stride(chunk_rows);

/// The layout of a state: [tiled(E)][padded_stride(tiled(E))], the rest zeros.
struct StateLayout {
  std::int64_t width, stride, elements;
  explicit StateLayout(const LinearAttentionShape& s)
      : width(s.head_width), stride(padded_stride(tiled(s.head_width))), elements(tiled(s.head_width) * stride) {}
};

/// States of all heads of all sequences, before each chunk and after the last one.
inline std::int64_t states_elements(const LinearAttentionShape& s) {
  return s.states() * (s.chunks() + 1) * StateLayout(s).elements;
}

/// Of one thread. Blocks of a chunk have rows `StateLayout::stride` apart.
template <class A>
struct ChunkMemory {
  A *query, *key, *value, *dout;           // [chunk_rows][stride]
  A *key_transposed, *value_transposed;    // [tiled(E)][chunk_stride]
  A *scores, *dscores;                     // [chunk_rows][chunk_stride]
  A *result, *dkey;                        // [chunk_rows][stride]
  A* dstate_transposed;                    // a state
  A *sums, *from_state, *to_state, *dsum;  // [chunk_rows]: c, exp(c), exp(c_last - c), dc
  std::int64_t* first;                     // [chunk_rows]: the first token of the document, in the chunk
  std::int64_t bytes;

  ChunkMemory(const LinearAttentionShape& s, void* start) {
    const StateLayout layout(s);
    Carver carver(start);
    for (A** block : {&query, &key, &value, &dout, &result, &dkey}) *block = carver.take<A>(chunk_rows * layout.stride);
    for (A** block : {&key_transposed, &value_transposed}) *block = carver.take<A>(tiled(s.head_width) * chunk_stride);
    for (A** block : {&scores, &dscores}) *block = carver.take<A>(chunk_rows * chunk_stride);
    dstate_transposed = carver.take<A>(layout.elements);
    for (A** row : {&sums, &from_state, &to_state, &dsum}) *row = carver.take<A>(chunk_rows);
    first = carver.take<std::int64_t>(chunk_rows);
    bytes = carver.bytes();
  }
};

/// The workspace.
template <class A>
struct LinearAttentionMemory {
  A *states, *dstates;
  std::byte* threads;
  std::int64_t bytes;

  LinearAttentionMemory(const LinearAttentionShape& s, bool backward, int num_threads, void* start) {
    Carver carver(start);
    states = carver.take<A>(states_elements(s));
    dstates = carver.take<A>(backward ? states_elements(s) : 0);
    const std::int64_t of_thread = ChunkMemory<A>(s, nullptr).bytes;
    threads = carver.take<std::byte>(num_threads * of_thread);
    bytes = carver.bytes();
  }
  ChunkMemory<A> of_thread(const LinearAttentionShape& s, int index) const {
    return {s, threads + index * ChunkMemory<A>(s, nullptr).bytes};
  }
};

// ---- The steps of a call, one kernel each

enum class LinearAttentionStep : std::uint8_t {
  states,   ///< forward's, by state; by the delta rule also the values of tokens
  dstates,  ///< their gradients, likewise
  chunks,   ///< what is returned of tokens and not yet known, by chunk: chunks() of each state
};

template <class Args, class Memory, LinearAttentionStep step>
struct StepOf {
  static constexpr bool by_chunk = step == LinearAttentionStep::chunks;
  const Args& args;
  const Memory& memory;
};

template <class Kernels, class Step>
void run_step(Cpu cpu, const Kernels& kernels, const Step& step, const LinearAttentionShape& s) {
  const std::int64_t chunks = Step::by_chunk ? 1 : s.chunks();
  run_parts(cpu, kernels, step, s.states() * s.chunks() / chunks,
            chunks * std::min(linear_attention_chunk, s.length) * s.head_width * 8);
}

}  // namespace choir::kernels::cpu
