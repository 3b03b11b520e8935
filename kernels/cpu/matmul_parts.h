// How a product of matrices is divided among threads: c is cut into a grid of parts, one for each thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace choir::kernels::cpu {

struct MatmulParts {
  int rows = 1, columns = 1;

  /// `parts` parts of c [m, n]. A thread packs the b of its columns, which takes about twice as long as its a: the grid
  /// has the least rows + 2 columns a part.
  static MatmulParts of(int parts, std::int64_t m, std::int64_t n) {
    MatmulParts best;
    std::int64_t least = -1;
    for (int rows = 1; rows <= parts; ++rows) {
      if (parts % rows != 0) continue;
      const int columns = parts / rows;
      const std::int64_t cost = (m + rows - 1) / rows + 2 * ((n + columns - 1) / columns);
      if (least >= 0 && cost >= least) continue;
      least = cost;
      best = {rows, columns};
    }
    return best;
  }
  int count() const { return rows * columns; }

  struct Range {
    std::int64_t begin, end;
  };
  /// Part `index` of `parts` of [0, size), in whole units but for the last one. The first part is the largest.
  static Range part(std::int64_t size, std::int64_t unit, int parts, int index) {
    const std::int64_t units = (size + unit - 1) / unit, most = (units + parts - 1) / parts;
    return {std::min(size, most * index * unit), std::min(size, most * (index + 1) * unit)};
  }
};

}  // namespace choir::kernels::cpu
