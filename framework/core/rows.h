// Which rows of the global batch a rank computes: the one answer for dropout, positions, attention and the loss.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/rows.h"

namespace choir {

/// Rows [begin, end) of the N rows held, in a block of `block` rows: blocks of all tensor ranks are equally large.
struct RowShare {
  std::int64_t begin = 0, end = 0, block = 0;
};

struct Rows {
  std::int64_t first_sample = 0;            ///< of the global batch: the first sequence
  std::int64_t sequences = 1;               ///< B
  std::int64_t length = 1;                  ///< T: positions of a whole sequence
  kernels::Run runs[2] = {{0, 1}, {0, 0}};  ///< positions of each sequence held here; the second may be empty
  std::int64_t split = 1, part = 0;         ///< sequence parallelism: between layers a rank has block `part` of `split`

  std::int64_t positions() const { return runs[0].count() + runs[1].count(); }  ///< of each sequence held here
  std::int64_t count() const { return sequences * positions(); }                ///< N
  std::int64_t count(int run) const { return sequences * runs[run].count(); }   ///< rows of one run
  bool is_split() const { return split > 1; }

  /// The rows that this rank has between layers.
  RowShare share() const {
    const std::int64_t rows = count(), block = (rows + split - 1) / split;
    return {std::min(part * block, rows), std::min((part + 1) * block, rows), block};
  }

  /// Of a tensor of all rows held.
  kernels::RowMap map() const { return {first_sample, sequences, length, {runs[0], runs[1]}}; }
  /// Of a tensor of the rows between layers.
  kernels::RowMap share_map() const { return {first_sample, sequences, length, {runs[0], runs[1]}, share().begin}; }
};

/// Of sequences without positions.
inline Rows no_rows() { return {.length = 0, .runs = {{0, 0}, {0, 0}}}; }

/// All positions of `sequences` sequences.
inline Rows whole_rows(std::int64_t sequences, std::int64_t length, std::int64_t first_sample = 0) {
  return {.first_sample = first_sample, .sequences = sequences, .length = length, .runs = {{0, length}, {0, 0}}};
}

}  // namespace choir
