// What the tests of attention share, on the CPU and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/attention.h"

namespace choir::kernels::tests {

struct AttentionCase {
  const char* name;
  std::int64_t batch, q_length, kv_length, heads, kv_heads, width, group_size, group_offset;
  bool causal;
  std::int64_t window;
};

/// k and v are in one fused buffer; between the rows are so many elements that a kernel must not touch.
inline AttentionShape shape_of(const AttentionCase& c, std::int64_t q_gap, std::int64_t kv_gap, std::int64_t out_gap) {
  return {.batch = c.batch,
          .q_length = c.q_length,
          .kv_length = c.kv_length,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_width = c.width,
          .group_size = c.group_size,
          .group_offset = c.group_offset,
          .q_stride = c.heads * c.width + q_gap,
          .k_stride = 2 * c.kv_heads * c.width + kv_gap,
          .v_stride = 2 * c.kv_heads * c.width + kv_gap,
          .out_stride = c.heads * c.width + out_gap,
          .causal = c.causal,
          .window = c.window,
          .scale = 1 / std::sqrt(static_cast<double>(c.width))};
}

}  // namespace choir::kernels::tests
