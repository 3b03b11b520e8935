// Sums over positions of each sequence, and their way back: what turns a sequence into one row.
//
//   sums[b] = factor * sum of x[r] over the rows r of sequence b at these positions
//
// A rank may hold some rows of a sequence only: the sum over ranks is then the sequence's.
#pragma once

#include <cstdint>

#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

/// Rows that stand at no position of `positions`, and those beyond the rows held, do not count.
struct PoolShape {
  std::int64_t rows, width;
  RowMap map;
  Run positions;      ///< that are summed
  double factor = 1;  ///< 1 / positions.count(): the mean

  /// Of run `run`: the rows [begin, end) of the tensor with the positions of `positions` in sequence `sequence`.
  constexpr Run rows_of(std::int64_t sequence, int run) const {
    const Run held = map.runs[run], summed = intersect(held, positions);
    const std::int64_t before = run == 0 ? 0 : map.sequences * map.runs[0].count();
    const std::int64_t first = before + sequence * held.count() - held.begin - map.first_row;
    return intersect(Run{first + summed.begin, first + summed.end}, Run{0, rows});
  }
  /// Of row `row`, at position `position` of its sequence.
  constexpr bool is_summed(std::int64_t row, std::int64_t position) const {
    return map.first_row + row < map.sequences * map.positions() && position >= positions.begin &&
           position < positions.end;
  }
};

/// The rows are added in ascending order.
template <class T>
struct PoolForward {
  PoolShape shape;
  const T* x;           ///< [rows, width]
  Accumulate<T>* sums;  ///< [map.sequences, width]
};

/// dx[r] = factor * dsums[b] in the rows that were summed, 0 in the others.
template <class T>
struct PoolBackward {
  PoolShape shape;
  const T* dsums;  ///< [map.sequences, width]
  T* dx;           ///< [rows, width]
};

template <class T>
void pool_forward(Cpu, const PoolForward<T>&);
template <class T>
void pool_forward(Cuda, const PoolForward<T>&);
template <class T>
void pool_backward(Cpu, const PoolBackward<T>&);
template <class T>
void pool_backward(Cuda, const PoolBackward<T>&);

}  // namespace choir::kernels
