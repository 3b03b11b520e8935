// The arithmetic of parts, against element-by-element enumeration.
#include "framework/checkpoint/extent.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace choir {
namespace {

// The global index of every element of an extent, in its order.
std::vector<std::int64_t> elements(const Extent& e, std::int64_t width) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = e.begin; i < e.end; ++i)
    all.push_back((e.region.row_begin + i / e.region.columns()) * width + e.region.column_begin +
                  i % e.region.columns());
  return all;
}

Extent random_extent(std::mt19937& random, std::int64_t rows, std::int64_t width) {
  const auto interval = [&](std::int64_t n) {
    std::int64_t a = static_cast<std::int64_t>(random() % (n + 1)), b = static_cast<std::int64_t>(random() % (n + 1));
    return std::pair(std::min(a, b), std::max(a, b));
  };
  Extent e;
  std::tie(e.region.row_begin, e.region.row_end) = interval(rows);
  std::tie(e.region.column_begin, e.region.column_end) =
      random() % 3 == 0 ? std::pair<std::int64_t, std::int64_t>(0, width) : interval(width);
  std::tie(e.begin, e.end) =
      random() % 3 == 0 ? std::pair<std::int64_t, std::int64_t>(0, e.region.count()) : interval(e.region.count());
  return e;
}

TEST(Extent, RunsInCommonAreThoseOfAnEnumeration) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    const std::int64_t rows = 1 + random() % 6, width = 1 + random() % 6;
    const Extent a = random_extent(random, rows, width), b = random_extent(random, rows, width);
    std::map<std::int64_t, std::pair<std::int64_t, std::int64_t>> expected, got;
    const auto in_a = elements(a, width), in_b = elements(b, width);
    for (std::size_t i = 0; i < in_a.size(); ++i)
      for (std::size_t j = 0; j < in_b.size(); ++j)
        if (in_a[i] == in_b[j]) expected[in_a[i]] = {i, j};
    std::size_t visited = 0;
    for_each_common_run(a, b, width, [&](std::int64_t global, std::int64_t at_a, std::int64_t at_b, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i, ++visited) got[global + i] = {at_a + i, at_b + i};
    });
    ASSERT_EQ(got, expected) << "trial " << trial;
    ASSERT_EQ(visited, expected.size()) << "trial " << trial;
  }
}

TEST(Extent, AtMostThreeBoxesInRowMajorOrderHoldTheSameElements) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    const std::int64_t rows = 1 + random() % 6, width = 1 + random() % 6;
    const Extent e = random_extent(random, rows, width);
    const std::vector<Region> boxes = boxes_of(e);
    ASSERT_LE(boxes.size(), 3u);
    std::vector<std::int64_t> all;
    for (const Region& box : boxes) {
      ASSERT_GT(box.count(), 0);
      for (std::int64_t r = box.row_begin; r < box.row_end; ++r)
        for (std::int64_t c = box.column_begin; c < box.column_end; ++c) all.push_back(r * width + c);
    }
    ASSERT_EQ(all, elements(e, width)) << "trial " << trial;
  }
}

TEST(Extent, ImpossibleShapesAndExtentsAreRefused) {
  EXPECT_TRUE(is_tensor_shape({3}));
  EXPECT_TRUE(is_tensor_shape({3, 4}));
  for (const Shape& shape : {Shape{}, Shape{1, 2, 3}, Shape{0}, Shape{-1, 4}, Shape{3, 0},
                             Shape{std::int64_t{1} << 40, std::int64_t{1} << 40}, Shape{INT64_MAX}})
    EXPECT_FALSE(is_tensor_shape(shape)) << to_string(shape);
  EXPECT_TRUE(lies_inside({{0, 3, 1, 2}, 0, 3}, {3, 4}));
  EXPECT_FALSE(lies_inside({{0, 4, 1, 2}, 0, 3}, {3, 4}));
  EXPECT_FALSE(lies_inside({{0, 3, 1, 5}, 0, 3}, {3, 4}));
  EXPECT_FALSE(lies_inside({{0, 3, 1, 2}, 0, 4}, {3, 4}));
  EXPECT_FALSE(lies_inside({{2, 1, 0, 1}, 0, 0}, {3}));
  EXPECT_FALSE(lies_inside({{0, 3, 0, 1}, -1, 2}, {3}));
}

}  // namespace
}  // namespace choir
