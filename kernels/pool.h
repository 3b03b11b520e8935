// The mean over positions of each sequence, and its way back: what turns a sequence into one row.
//
//   means[b] = sum of x[r] / n over the rows r of sequence b at its n positions that are read
//
// A rank may hold some rows of a sequence only: the sum over ranks is then the mean.
#pragma once

#include <cstdint>

#include "kernels/documents.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

/// Rows that stand at no position that is read, and those beyond the rows held, do not count.
struct PoolShape {
  std::int64_t rows, width;
  RowMap map;
  Run positions;                             ///< that are read
  const DocumentRange* documents = nullptr;  ///< [sequences, map.length]: if given, only those of them are read that
                                             ///< are in the document of the first one

  constexpr Run positions_of(std::int64_t sequence) const {
    if (!documents) return positions;
    const DocumentRange first = documents[sequence * map.length + positions.begin];
    return intersect(positions, Run{first.begin, first.end});
  }
  template <class Number>
  constexpr Number factor(std::int64_t sequence) const {
    return Number(1) / static_cast<Number>(positions_of(sequence).count());
  }
  /// Of run `run`: the rows [begin, end) of the tensor with the positions that are read of sequence `sequence`.
  constexpr Run rows_of(std::int64_t sequence, int run) const {
    const Run held = map.runs[run], summed = intersect(held, positions_of(sequence));
    const std::int64_t before = run == 0 ? 0 : map.sequences * map.runs[0].count();
    const std::int64_t first = before + sequence * held.count() - held.begin - map.first_row;
    return intersect(Run{first + summed.begin, first + summed.end}, Run{0, rows});
  }
  /// Of row `row`, at place `at`.
  constexpr bool is_read(std::int64_t row, const RowMap::Place& at) const {
    if (map.first_row + row >= map.sequences * map.positions()) return false;
    const Run read = positions_of(at.sequence);
    return at.position >= read.begin && at.position < read.end;
  }
};

/// The rows are added in ascending order.
template <class T>
struct PoolForward {
  PoolShape shape;
  const T* x;            ///< [rows, width]
  Accumulate<T>* means;  ///< [map.sequences, width]
};

/// dx[r] = dmeans[b] / n in the rows that were read, 0 in the others.
template <class T>
struct PoolBackward {
  PoolShape shape;
  const T* dmeans;  ///< [map.sequences, width]
  T* dx;            ///< [rows, width]
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
