// Rows of one or two runs against a list of them.
#include "kernels/rows.h"

#include <gtest/gtest.h>

#include <vector>

namespace choir::kernels::tests {
namespace {

struct Listed {
  std::int64_t sequence, position;
};

std::vector<Listed> list(const RowMap& map) {
  std::vector<Listed> rows;
  for (const Run& run : map.runs)
    for (std::int64_t s = 0; s < map.sequences; ++s)
      for (std::int64_t position = run.begin; position < run.end; ++position) rows.push_back({s, position});
  return rows;
}

const RowMap maps[] = {
    {},
    {.first_sample = 4, .sequences = 3, .length = 5, .runs = {{0, 5}, {0, 0}}},
    {.sequences = 1, .length = 9, .runs = {{4, 9}, {0, 0}}},
    {.first_sample = 2, .sequences = 3, .length = 20, .runs = {{2, 5}, {13, 20}}},
    {.first_sample = 2, .sequences = 4, .length = 8, .runs = {{0, 1}, {7, 8}}},
};

TEST(RowMap, PlacesEveryRow) {
  for (RowMap map : maps) {
    const std::vector<Listed> all = list(map);
    const auto rows = static_cast<std::int64_t>(all.size());
    for (map.first_row = 0; map.first_row < rows; ++map.first_row)
      for (std::int64_t row = 0; map.first_row + row < rows; ++row) {
        const Listed& expected = all[static_cast<std::size_t>(map.first_row + row)];
        ASSERT_EQ(map.place(row).sequence, expected.sequence);
        ASSERT_EQ(map.position(row), expected.position);
        ASSERT_EQ(map.global_row(row), (map.first_sample + expected.sequence) * map.length + expected.position);
        if (!map.in_order()) continue;
        ASSERT_EQ(map.global_row(row), map.global_row(0) + row);
      }
  }
}

TEST(RowMap, PaddingStandsAtPositionsThatAreHeld) {
  for (const RowMap& map : maps) {
    const auto rows = static_cast<std::int64_t>(list(map).size());
    for (std::int64_t row = rows; row < rows + 7; ++row) ASSERT_LE(map.position(row), map.last_position());
  }
}

TEST(RowMap, FindsTheRowsOfEveryPosition) {
  for (RowMap map : maps) {
    const std::vector<Listed> all = list(map);
    const auto held = static_cast<std::int64_t>(all.size());
    for (map.first_row = 0; map.first_row < held; ++map.first_row)
      for (std::int64_t rows = 1; map.first_row + rows <= held; ++rows) {
        std::int64_t found = 0;
        for (std::int64_t index = 0; index < map.positions(); ++index) {
          const RowMap::RowsOfPosition of = map.rows_of(index, rows);
          std::int64_t last = -1;
          for (std::int64_t row = of.begin; row < of.end; row += of.step, ++found) {
            ASSERT_GT(row, last);
            ASSERT_LT(row, rows);
            ASSERT_EQ(map.position(row), of.position);
            last = row;
          }
        }
        ASSERT_EQ(found, rows);
      }
  }
}

}  // namespace
}  // namespace choir::kernels::tests
