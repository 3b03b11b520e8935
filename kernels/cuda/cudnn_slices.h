// How cuDNN's attention is cut into calls, and what its backward keeps meanwhile: arithmetic, for which no cuDNN is
// needed.
//
// A shape is cut into parts whose query heads divide evenly among their key/value heads, as cuDNN requires (a rank may
// begin or end in the middle of a group: at most three parts), and a part into slices of one size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/attention.h"

namespace choir::kernels::cuda {

inline constexpr std::int64_t cudnn_workspace_limit_bytes = std::int64_t{1}
                                                            << 30;  ///< of one call, unless said otherwise

struct AttentionPart {
  std::int64_t batch_begin, batch;
  std::int64_t head_begin, heads;
  std::int64_t kv_head_begin, kv_heads;
};

inline AttentionShape shape_of(const AttentionShape& whole, const AttentionPart& part) {
  AttentionShape shape = whole;
  shape.batch = part.batch;
  shape.heads = part.heads;
  shape.kv_heads = part.kv_heads;
  shape.group_size = part.heads / part.kv_heads;
  shape.group_offset = 0;
  return shape;
}

/// The end of a group that began on another rank, whole groups, and the beginning of one that ends on another rank.
inline std::vector<AttentionPart> even_parts(const AttentionShape& s) {
  std::vector<AttentionPart> parts;
  std::int64_t head = 0, kv_head = 0;
  const auto add = [&](std::int64_t heads, std::int64_t kv_heads) {
    if (heads == 0) return;
    parts.push_back({0, s.batch, head, heads, kv_head, kv_heads});
    head += heads;
    kv_head += kv_heads;
  };
  if (s.group_offset > 0) add(std::min(s.heads, s.group_size - s.group_offset), 1);
  const std::int64_t groups = (s.heads - head) / s.group_size;
  add(groups * s.group_size, groups);
  add(s.heads - head, 1);
  return parts;
}

/// Sizes of equal slices of a part, largest first: slices of the batch, then of the key/value heads of one sequence.
inline std::vector<AttentionPart> slice_sizes(const AttentionPart& part) {
  std::vector<AttentionPart> sizes;
  for (std::int64_t batch = part.batch; batch >= 1; --batch) {
    if (part.batch % batch == 0) sizes.push_back({0, batch, 0, part.heads, 0, part.kv_heads});
  }
  for (std::int64_t kv_heads = part.kv_heads - 1; kv_heads >= 1; --kv_heads) {
    if (part.kv_heads % kv_heads == 0) sizes.push_back({0, 1, 0, part.heads / part.kv_heads * kv_heads, 0, kv_heads});
  }
  return sizes;
}

/// The workspace of one call of backward on an H100, as cuDNN 9 reports it: a deterministic one keeps a score in 16
/// bits for each pair of a query and a key, in blocks of 64 queries and 128 keys; another one adds the gradients of
/// queries up in 32 bits. tests/cudnn compares.
inline std::int64_t cudnn_backward_workspace_bytes(const AttentionShape& s, bool deterministic) {
  const auto whole_blocks = [](std::int64_t length, std::int64_t block) {
    return (length + block - 1) / block * block;
  };
  const std::int64_t heads = s.batch * s.heads, sums = 4 * heads * s.q_length;
  const std::int64_t scores = 2 * heads * whole_blocks(s.q_length, 64) * whole_blocks(s.kv_length, 128);
  const std::int64_t of_queries = 4 * heads * s.q_length * s.head_width;
  const std::int64_t of_grouped_keys = s.heads == s.kv_heads ? 0 : 4 * heads * s.kv_length * s.head_width;
  return (deterministic ? scores : of_queries) + sums + of_grouped_keys + 256;
}

/// Of backward over a whole shape.
struct CudnnBackwardMemory {
  std::int64_t workspace_bytes = 0;  ///< of the largest call
  double all_bytes = 0;              ///< of all calls
};
/// Nothing if no slice is within the limit: then Choir's own kernel runs.
inline std::optional<CudnnBackwardMemory> cudnn_backward_memory(const AttentionShape& shape, bool deterministic) {
  CudnnBackwardMemory memory;
  for (const AttentionPart& part : even_parts(shape)) {
    const std::vector<AttentionPart> sizes = slice_sizes(part);
    const auto bytes_of = [&](const AttentionPart& size) {
      return cudnn_backward_workspace_bytes(shape_of(shape, size), deterministic);
    };
    const auto largest = std::find_if(sizes.begin(), sizes.end(), [&](const AttentionPart& size) {
      return bytes_of(size) <= cudnn_workspace_limit_bytes;
    });
    if (largest == sizes.end()) return std::nullopt;
    memory.workspace_bytes = std::max(memory.workspace_bytes, bytes_of(*largest));
    memory.all_bytes +=
        static_cast<double>(bytes_of(*largest) * (part.batch / largest->batch) * (part.kv_heads / largest->kv_heads));
  }
  return memory;
}

}  // namespace choir::kernels::cuda
