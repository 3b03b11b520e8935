// Positions that are the squares of an image, row after row.
#pragma once

#include <cstdint>

namespace choir::kernels {

struct Grid {
  std::int64_t rows = 0, columns = 0;  ///< of squares; 0: the positions are those of a sequence
  std::int64_t first = 0;              ///< the position of the first square: 1 after a class token

  struct Place {
    std::int64_t row, column;
  };
  /// The first square is at (first, first), and what stands before it at (0, 0).
  constexpr Place place(std::int64_t position) const {
    const std::int64_t square = position - first;
    if (square < 0) return {0, 0};
    return {first + square / columns, first + square % columns};
  }
  constexpr bool is_given() const { return columns > 0; }
  bool operator==(const Grid&) const = default;
};

}  // namespace choir::kernels
