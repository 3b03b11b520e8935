// Which elements of a tensor: the arithmetic of parts, without memory or files.
//
// A 2-D tensor [rows, columns] is row-major; a 1-D tensor [n] is [n, 1]. An Extent is elements [begin, end), in
// row-major order, of a rectangle: a whole slice of a layer, or the part of it that one optimizer shard holds.
//
//   rectangle   . . . . .      extent [4, 13) of a 5-column rectangle is at most three boxes:
//               . . . . x      head
//               x x x x x      body
//               x x x . .      tail
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "framework/core/parameter.h"
#include "framework/core/tensor.h"

namespace choir {

struct Extent {
  Region region;
  std::int64_t begin = 0, end = 0;

  std::int64_t count() const { return end - begin; }
  bool operator==(const Extent&) const = default;
};

/// Columns of a tensor of `shape`.
inline std::int64_t width_of(const Shape& shape) { return shape.size() > 1 ? shape[1] : 1; }

/// 1-D or 2-D, no dim below 1, and fewer than 2^60 elements.
bool is_tensor_shape(const Shape& shape);

/// True if the extent lies inside a tensor of `shape`; is_tensor_shape(shape) must be true.
bool lies_inside(const Extent& extent, const Shape& shape);

/// The at most three boxes of an extent, in row-major order, as regions of the tensor.
std::vector<Region> boxes_of(const Extent& extent);

/// Calls visit(global, in_a, in_b, length) for each contiguous run of elements that `a` and `b` have in common:
/// its first element's index in the tensor [.., width], and within either extent.
template <class Visit>
void for_each_common_run(const Extent& a, const Extent& b, std::int64_t width, Visit&& visit) {
  if (a.count() <= 0 || b.count() <= 0) return;
  if (a.region.columns() == width && b.region.columns() == width) {  // both are contiguous in the whole tensor
    const std::int64_t first_a = a.region.row_begin * width + a.begin, first_b = b.region.row_begin * width + b.begin;
    const std::int64_t begin = std::max(first_a, first_b);
    const std::int64_t end = std::min(first_a + a.count(), first_b + b.count());
    if (begin < end) visit(begin, begin - first_a, begin - first_b, end - begin);
    return;
  }
  const auto first_row = [](const Extent& e) { return e.region.row_begin + e.begin / e.region.columns(); };
  const auto end_row = [](const Extent& e) { return e.region.row_begin + (e.end - 1) / e.region.columns() + 1; };
  const std::int64_t last = std::min(end_row(a), end_row(b));
  for (std::int64_t row = std::max(first_row(a), first_row(b)); row < last; ++row) {
    // An extent's element in column c of this row is number c + shift; its columns here are [first, first + n).
    const auto shift = [row](const Extent& e) {
      return (row - e.region.row_begin) * e.region.columns() - e.region.column_begin - e.begin;
    };
    const std::int64_t shift_a = shift(a), shift_b = shift(b);
    const std::int64_t begin = std::max({a.region.column_begin, b.region.column_begin, -shift_a, -shift_b});
    const std::int64_t end =
        std::min({a.region.column_end, b.region.column_end, a.count() - shift_a, b.count() - shift_b});
    if (begin < end) visit(row * width + begin, begin + shift_a, begin + shift_b, end - begin);
  }
}

}  // namespace choir
