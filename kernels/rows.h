// Where the rows of a tensor stand in the global batch: what dropout, positions and rotary depend on.
//
// A rank holds one or two runs of positions of each of its sequences (two: balanced context parallelism). Its rows are
// those of the first run, sequence after sequence, then those of the second run:
//
//   rows   [0, B * runs[0].count())                  then B * runs[1].count() more
//          sequence 0, sequence 1, ..., sequence B-1 | sequence 0, sequence 1, ..., sequence B-1
#pragma once

#include <cstdint>

#include "kernels/band.h"

namespace choir::kernels {

using Run = IndexRange<std::int64_t>;

struct RowMap {
  std::int64_t first_sample = 0;   ///< of the global batch: sequence 0
  std::int64_t sequences = 1;      ///< B
  std::int64_t length = 1;         ///< positions of a whole sequence
  Run runs[2] = {{0, 1}, {0, 0}};  ///< positions of each sequence held here; the second may be empty
  std::int64_t first_row = 0;      ///< row 0 of the tensor is this one of the rows held

  struct Place {
    std::int64_t sequence, position;
  };
  /// Rows beyond those held are padding: any sequence, but a position that is held.
  constexpr Place place(std::int64_t row) const {
    const std::int64_t n = first_row + row, in_first = sequences * runs[0].count();
    const bool second = n >= in_first && !runs[1].empty();
    const Run run = second ? runs[1] : runs[0];  // a GPU indexes in memory, not in registers
    const std::int64_t of_run = second ? n - in_first : n, sequence = of_run / run.count();
    return {sequence, run.begin + (of_run - sequence * run.count())};
  }
  constexpr std::int64_t position(std::int64_t row) const { return place(row).position; }
  /// The row of the rows held that is position `index` of a sequence, counting the positions held.
  constexpr std::int64_t row_at(std::int64_t sequence, std::int64_t index) const {
    const std::int64_t in_first = runs[0].count(), in_second = runs[1].count();
    return index < in_first ? sequence * in_first + index
                            : sequences * in_first + sequence * in_second + index - in_first;
  }
  /// sample * length + position
  constexpr std::int64_t global_row(std::int64_t row) const {
    const Place at = place(row);
    return (first_sample + at.sequence) * length + at.position;
  }
  /// True if global_row(row) is global_row(0) + row.
  constexpr bool in_order() const { return runs[0].begin == 0 && runs[0].end == length && runs[1].empty(); }

  constexpr std::int64_t positions() const { return runs[0].count() + runs[1].count(); }
  constexpr std::int64_t last_position() const { return runs[1].empty() ? runs[0].end - 1 : runs[1].end - 1; }

  /// The rows of a tensor of `rows` rows that stand at one position: begin, begin + step, ... below end.
  struct RowsOfPosition {
    std::int64_t position, begin, end, step;
  };
  /// `index` counts the positions held.
  constexpr RowsOfPosition rows_of(std::int64_t index, std::int64_t rows) const {
    const std::int64_t in_first = runs[0].count();
    const bool second = index >= in_first;
    const Run run = second ? runs[1] : runs[0];
    const std::int64_t step = run.count(), offset = second ? index - in_first : index;
    const std::int64_t first = (second ? sequences * in_first : 0) - first_row;  // of the run, in the tensor
    const std::int64_t missed = first + offset < 0 ? (step - 1 - first - offset) / step : 0;
    const std::int64_t end = first + sequences * step;
    return {run.begin + offset, first + offset + missed * step, end < rows ? end : rows, step};
  }
};

/// All positions of `sequences` sequences.
constexpr RowMap whole_sequences(std::int64_t sequences, std::int64_t length, std::int64_t first_sample = 0) {
  return {first_sample, sequences, length, {{0, length}, {0, 0}}};
}

}  // namespace choir::kernels
