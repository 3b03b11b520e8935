#include "framework/checkpoint/extent.h"

namespace choir {

bool is_tensor_shape(const Shape& shape) {
  constexpr std::int64_t limit = std::int64_t{1} << 60;
  if (shape.empty() || shape.size() > 2) return false;
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 1 || dim >= limit / count) return false;
    count *= dim;
  }
  return true;
}

bool lies_inside(const Extent& extent, const Shape& shape) {
  const auto inside = [](std::int64_t begin, std::int64_t end, std::int64_t size) {
    return 0 <= begin && begin <= end && end <= size;
  };
  return inside(extent.region.row_begin, extent.region.row_end, shape[0]) &&
         inside(extent.region.column_begin, extent.region.column_end, width_of(shape)) &&
         inside(extent.begin, extent.end, extent.region.count());
}

std::vector<Region> boxes_of(const Extent& extent) {
  if (extent.count() <= 0) return {};
  const Region& r = extent.region;
  const std::int64_t columns = r.columns();
  const std::int64_t first = r.row_begin + extent.begin / columns, last = r.row_begin + (extent.end - 1) / columns;
  const std::int64_t left = extent.begin % columns, right = (extent.end - 1) % columns + 1;
  const auto box = [&r](std::int64_t row_begin, std::int64_t row_end, std::int64_t from, std::int64_t to) {
    return Region{row_begin, row_end, r.column_begin + from, r.column_begin + to};
  };
  if (first == last) return {box(first, first + 1, left, right)};
  std::vector<Region> boxes;
  if (left > 0) boxes.push_back(box(first, first + 1, left, columns));
  const std::int64_t body_begin = left > 0 ? first + 1 : first, body_end = right < columns ? last : last + 1;
  if (body_begin < body_end) boxes.push_back(box(body_begin, body_end, 0, columns));
  if (right < columns) boxes.push_back(box(last, last + 1, 0, right));
  return boxes;
}

}  // namespace choir
