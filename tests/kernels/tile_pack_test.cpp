// The packers of panels against the definition of their layouts, over ragged sizes and strides.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cpu/tile_panel.h"
#include "tests/kernels/tile_units.h"

namespace choir::kernels::tests {
namespace {

using cpu::num_panels, cpu::step_elements;

enum class Side { rows, columns };

/// Where line `line` at depth `k` is in a step, by the definition in tile_pack.h.
template <class T>
std::int64_t place(Side side, std::int64_t line, std::int64_t k) {
  if (side == Side::rows) return line * 32 + k;
  constexpr std::int64_t together = std::is_same_v<T, bf16> ? 2 : 1;  // depths in a row of a tile
  return line / 16 * 512 + k / together * 16 * together + line % 16 * together + k % together;
}

/// Numbers that are exact in T, none of them 0 or 1000.
template <class T>
T number(std::size_t i) {
  T value;
  if constexpr (std::is_same_v<T, float>)
    value = static_cast<float>(i + 2000);
  else
    value.bits = static_cast<std::uint16_t>(i % 16000 + 1);
  return value;
}

/// `along_depth`: each stored row is a line.
template <class T>
void expect_definition(TilePacker<T> pack, Side side, bool along_depth) {
  const std::int64_t sizes[] = {1, 2, 15, 16, 31, 32, 33, 64, 95};
  const T mark = T(1000.0f);
  for (const std::int64_t lines : sizes) {
    for (const std::int64_t depth : sizes) {
      for (const std::int64_t gap : {0, 3}) {
        SCOPED_TRACE(std::to_string(lines) + " lines of depth " + std::to_string(depth));
        const std::int64_t rows = along_depth ? lines : depth, columns = along_depth ? depth : lines;
        const std::int64_t stride = columns + gap;
        // The last row has no gap: nothing behind the matrix is read (the sanitizers watch).
        std::vector<T> from(static_cast<std::size_t>((rows - 1) * stride + columns));
        for (std::size_t i = 0; i < from.size(); ++i) from[i] = number<T>(i);
        const std::int64_t steps = num_panels(depth), elements = num_panels(lines) * steps * step_elements;
        std::vector<T> to(static_cast<std::size_t>(elements + 64), mark);
        pack(from.data(), stride, lines, depth, to.data());
        for (std::int64_t line = 0; line < 32 * num_panels(lines); ++line) {
          for (std::int64_t k = 0; k < 32 * steps; ++k) {
            const std::int64_t step = line / 32 * steps + k / 32;
            const auto found = static_cast<float>(to[step * step_elements + place<T>(side, line % 32, k % 32)]);
            const bool inside = line < lines && k < depth;
            ASSERT_EQ(found, inside ? static_cast<float>(from[along_depth ? line * stride + k : k * stride + line]) : 0)
                << "line " << line << ", depth " << k;
          }
        }
        for (std::int64_t i = elements; i < elements + 64; ++i)
          ASSERT_EQ(static_cast<float>(to[i]), static_cast<float>(mark)) << "beyond the panels";
      }
    }
  }
}

template <class T>
struct TilePack : testing::Test {};
using Elements = testing::Types<bf16, float>;
TYPED_TEST_SUITE(TilePack, Elements);

TYPED_TEST(TilePack, RowsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers<TypeParam>().rows, Side::rows, true); });
}
TYPED_TEST(TilePack, TransposedRowsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers<TypeParam>().rows_transposed, Side::rows, false); });
}
TYPED_TEST(TilePack, ColumnsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers<TypeParam>().columns, Side::columns, false); });
}
TYPED_TEST(TilePack, TransposedColumnsEqualTheDefinition) {
  on_every_instruction_set(
      [] { expect_definition(tile_packers<TypeParam>().columns_transposed, Side::columns, true); });
}

}  // namespace
}  // namespace choir::kernels::tests
