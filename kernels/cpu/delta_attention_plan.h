// The memory of linear attention by the delta rule on the CPU: beside that of linear attention
// (linear_attention_plan.h) the values of all chunks and their gradients.
#pragma once

#include "kernels/cpu/linear_attention_plan.h"
#include "kernels/delta_attention.h"

namespace choir::kernels::cpu {

/// Of one thread.
template <class A>
struct DeltaChunkMemory : ChunkMemory<A> {
  A* state_transposed;                  // a state
  A *rate, *query_factor, *key_factor;  // [chunk_rows]: b, and what brings q and k to unit length
  std::int64_t bytes;

  DeltaChunkMemory(const LinearAttentionShape& s, void* start) : ChunkMemory<A>(s, start) {
    const std::int64_t of_linear = ChunkMemory<A>::bytes;
    Carver carver(start ? static_cast<std::byte*>(start) + of_linear : nullptr);
    state_transposed = carver.take<A>(StateLayout(s).elements);
    for (A** row : {&rate, &query_factor, &key_factor}) *row = carver.take<A>(chunk_rows);
    bytes = of_linear + carver.bytes();
  }
};

/// The workspace.
template <class A>
struct DeltaAttentionMemory {
  A *states, *dstates;  // as in LinearAttentionMemory
  A *values, *dreads;   // u and z, [states][chunks][chunk_rows][stride]
  std::byte* threads;
  std::int64_t bytes;

  DeltaAttentionMemory(const LinearAttentionShape& s, bool backward, int num_threads, void* start) {
    Carver carver(start);
    const std::int64_t elements = s.states() * s.chunks() * chunk_rows * StateLayout(s).stride;
    states = carver.take<A>(states_elements(s));
    values = carver.take<A>(elements);
    dstates = carver.take<A>(backward ? states_elements(s) : 0);
    dreads = carver.take<A>(backward ? elements : 0);
    threads = carver.take<std::byte>(num_threads * DeltaChunkMemory<A>(s, nullptr).bytes);
    bytes = carver.bytes();
  }
  DeltaChunkMemory<A> of_thread(const LinearAttentionShape& s, int index) const {
    return {s, threads + index * DeltaChunkMemory<A>(s, nullptr).bytes};
  }
};

}  // namespace choir::kernels::cpu
