// How attention on packed panels (tile_attention_kernel.h) divides its work, and the memory of each thread.
//
// A unit of work is a group: the query heads of one sequence that read one key/value head. So no sum is shared between
// threads, and results do not depend on their number.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cpu/carver.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/tile_panel.h"

namespace choir::kernels::cpu {

/// Keys whose scores against 32 queries are in memory at once: 32 KB of f32, near the first cache.
inline constexpr std::int64_t panels_of_span = 8;

/// Panels of keys after which backward adds to dq. With f32, all that backward holds of 256 tokens is near a megabyte.
template <class T>
inline constexpr std::int64_t backward_span = std::is_same_v<T, float> ? 2 : panels_of_span;

/// Sizes in panels of 32.
struct AttentionPanels {
  std::int64_t queries, keys, width;

  explicit AttentionPanels(const AttentionShape& s)
      : queries(num_panels(s.q_length)), keys(num_panels(s.kv_length)), width(num_panels(s.head_width)) {}
};

/// T is the type of the operands.
template <class T>
struct TileForwardMemory {
  T *keys, *values;          ///< of a group, as right operands of scores and of out
  T* query;                  ///< 32 queries, as left operand
  float *scores, *out;       ///< [panels_of_span], [width panels] blocks of 32 x 32 sums
  T* probabilities;          ///< [panels_of_span] steps, left operand; those of f32 take the place of the scores
  float *row_max, *row_sum;  ///< [32]
  std::int64_t bytes;

  TileForwardMemory(const AttentionShape& s, void* start) {
    const AttentionPanels panels(s);
    Carver carver(start);
    keys = carver.take<T>(panels.keys * panels.width * step_elements);
    values = carver.take<T>(panels.keys * panels.width * step_elements);
    query = carver.take<T>(panels.width * step_elements);
    scores = carver.take<float>(panels_of_span * step_elements);
    out = carver.take<float>(panels.width * step_elements);
    if constexpr (std::is_same_v<T, float>)
      probabilities = scores;
    else
      probabilities = carver.take<T>(panels_of_span * step_elements);
    row_max = carver.take<float>(panel);
    row_sum = carver.take<float>(panel);
    bytes = carver.bytes();
  }
};

template <class T>
struct TileBackwardMemory {
  T* keys;                         ///< of a group, as right operand of dq
  float *dkeys, *dvalues;          ///< of a group: [key panels][width panels] blocks of sums
  T *queries, *douts;              ///< of a head, as right operands of the scores and of dp, both transposed
  T *queries_of_dk, *douts_of_dv;  ///< of a head, as right operands of dk and dv
  float *lse, *delta;              ///< of a head: [queries], lse times log2(e)
  float* dqueries;                 ///< of a head: [query panels][width panels] blocks of sums
  T* dscores;                      ///< of a span: [query panels][backward_span] steps, left operand of dq
  T *key_rows, *value_rows;        ///< of 32 keys, left operands of the transposed scores and dp
  T *probabilities_transposed, *dscores_transposed;  ///< of 32 keys: [query panels] steps, left operands of dv, dk
  float *scores, *dprobabilities;                    ///< of 32 keys and 32 queries
  std::int64_t bytes;

  TileBackwardMemory(const AttentionShape& s, void* start) {
    const AttentionPanels panels(s);
    const std::int64_t of_queries = panels.queries * panels.width * step_elements;
    const std::int64_t of_keys = panels.keys * panels.width * step_elements;
    Carver carver(start);
    keys = carver.take<T>(of_keys);
    dkeys = carver.take<float>(of_keys);
    dvalues = carver.take<float>(of_keys);
    for (T** packed : {&queries, &douts, &queries_of_dk, &douts_of_dv}) *packed = carver.take<T>(of_queries);
    lse = carver.take<float>(panels.queries * panel);
    delta = carver.take<float>(panels.queries * panel);
    dqueries = carver.take<float>(of_queries);
    dscores = carver.take<T>(panels.queries * backward_span<T> * step_elements);
    key_rows = carver.take<T>(panels.width * step_elements);
    value_rows = carver.take<T>(panels.width * step_elements);
    probabilities_transposed = carver.take<T>(panels.queries * step_elements);
    dscores_transposed = carver.take<T>(panels.queries * step_elements);
    scores = carver.take<float>(step_elements);
    dprobabilities = carver.take<float>(step_elements);
    bytes = carver.bytes();
  }
};

/// Group `index` of batch * kv_heads: its sequence, its key/value head, and the query heads that read it.
struct AttentionGroup {
  std::int64_t batch, kv_head, first_head, end_head;

  AttentionGroup(const AttentionShape& s, std::int64_t index)
      : batch(index / s.kv_heads),
        kv_head(index % s.kv_heads),
        first_head(std::max<std::int64_t>(0, kv_head * s.group_size - s.group_offset)),
        end_head(std::min(s.heads, (kv_head + 1) * s.group_size - s.group_offset)) {}
};

inline int attention_parts(Cpu cpu, const AttentionShape& s) {
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(cpu.threads, s.batch * s.kv_heads)));
}

template <class T>
std::int64_t tile_attention_forward_workspace_bytes(Cpu cpu, const AttentionShape& s) {
  return attention_parts(cpu, s) * TileForwardMemory<T>(s, nullptr).bytes;
}
template <class T>
std::int64_t tile_attention_backward_workspace_bytes(Cpu cpu, const AttentionShape& s) {
  return attention_parts(cpu, s) * TileBackwardMemory<T>(s, nullptr).bytes;
}

/// compute(args, groups [begin, end), workspace of the part) for the parts of all groups.
template <class Memory, class Args>
void run_tile_attention(Cpu cpu, const Args& args, void (*compute)(const Args&, Part, void*)) {
  const std::int64_t bytes = Memory(args.shape, nullptr).bytes;
  for_each_part(attention_parts(cpu, args.shape), args.shape.batch * args.shape.kv_heads, 1,
                [&](Part part) { compute(args, part, static_cast<std::byte*>(args.workspace) + part.index * bytes); });
}

/// On the unit that Cpu::unit names: tiles, for bf16 only, or vectors.
template <class T>
void tile_attention_forward(Cpu, const AttentionForward<T>&);
template <class T>
void tile_attention_backward(Cpu, const AttentionBackward<T>&);

}  // namespace choir::kernels::cpu
