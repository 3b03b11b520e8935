// Checkpoints without a layout: any layout writes, any layout reads.
//
//   step-00001000/
//     rank-0.h5 ...      what each rank owns: plain contiguous f32 datasets, no filters
//     checkpoint.h5      every tensor under its global name and shape: virtual datasets over the rank files, NaN fill
//     manifest.json      format, step, state, files with sizes, tensors with shapes and digests; its last key seals it
//
// It is written under step-….tmp, synced, verified, renamed, and the parent is synced: only then it exists.
// writer.h saves, reader.h finds, verifies and reads, export.h makes one file. This header has the types they exchange.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/checkpoint/extent.h"

namespace choir {

/// A part of a global f32 tensor. The region is rows [row_begin, row_end) and columns [column_begin, column_end) of the
/// tensor (a 1-D tensor [n] has n rows and one column); `data` holds elements [begin, end) of the region in row-major
/// order. Optimizer shards begin and end anywhere; whole slices have begin = 0, end = rows * columns.
struct Piece {
  std::string name;                 ///< global, without '/'; "state" is taken
  std::vector<std::int64_t> shape;  ///< global, 1-D or 2-D
  std::int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 1;
  std::int64_t begin = 0, end = 0;
  float* data = nullptr;

  std::int64_t count() const { return end - begin; }
  Extent extent() const { return {{row_begin, row_end, column_begin, column_end}, begin, end}; }
};

/// What a run needs besides tensors, as text: "data.position", "config", ... The caller chooses keys (without '/') and
/// values (UTF-8).
using State = std::map<std::string, std::string>;

/// The digest of a piece. The digests of all pieces of a tensor have the same sum, however the tensor is cut
/// (tensor_digest.h).
std::uint64_t digest_of(const Piece& piece);

}  // namespace choir
