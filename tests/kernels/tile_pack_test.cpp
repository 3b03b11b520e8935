// The packers of tiles against the definition of their layouts, over ragged sizes and strides.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/tile_panel.h"
#include "tests/kernels/tile_units.h"

namespace choir::kernels::tests {
namespace {

using cpu::num_panels, cpu::step_elements;

enum class Side { rows, columns };

/// Where line `line` at depth `k` is in a step, by the definition in tile_pack.h.
std::int64_t place(Side side, std::int64_t line, std::int64_t k) {
  if (side == Side::rows) return line * 32 + k;
  return line / 16 * 512 + k / 2 * 32 + line % 16 * 2 + k % 2;
}

/// `along_depth`: each stored row is a line.
void expect_definition(TilePacker pack, Side side, bool along_depth) {
  const std::int64_t sizes[] = {1, 2, 15, 16, 31, 32, 33, 64, 95};
  for (const std::int64_t lines : sizes) {
    for (const std::int64_t depth : sizes) {
      for (const std::int64_t gap : {0, 3}) {
        SCOPED_TRACE(std::to_string(lines) + " lines of depth " + std::to_string(depth));
        const std::int64_t rows = along_depth ? lines : depth, columns = along_depth ? depth : lines;
        const std::int64_t stride = columns + gap;
        // The last row has no gap: nothing behind the matrix is read (the sanitizers watch).
        std::vector<bf16> from(static_cast<std::size_t>((rows - 1) * stride + columns));
        for (std::size_t i = 0; i < from.size(); ++i) from[i].bits = static_cast<std::uint16_t>(i % 65521 + 1);
        const std::int64_t steps = num_panels(depth), elements = num_panels(lines) * steps * step_elements;
        bf16 mark;
        mark.bits = 0xffff;
        std::vector<bf16> to(static_cast<std::size_t>(elements + 64), mark);
        pack(from.data(), stride, lines, depth, to.data());
        for (std::int64_t line = 0; line < 32 * num_panels(lines); ++line) {
          for (std::int64_t k = 0; k < 32 * steps; ++k) {
            const std::int64_t step = line / 32 * steps + k / 32;
            const std::uint16_t found = to[step * step_elements + place(side, line % 32, k % 32)].bits;
            const bool inside = line < lines && k < depth;
            ASSERT_EQ(found, inside ? from[along_depth ? line * stride + k : k * stride + line].bits : 0)
                << "line " << line << ", depth " << k;
          }
        }
        for (std::int64_t i = elements; i < elements + 64; ++i) ASSERT_EQ(to[i].bits, 0xffff) << "beyond the panels";
      }
    }
  }
}

TEST(TilePack, RowsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers().rows, Side::rows, true); });
}
TEST(TilePack, TransposedRowsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers().rows_transposed, Side::rows, false); });
}
TEST(TilePack, ColumnsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers().columns, Side::columns, false); });
}
TEST(TilePack, TransposedColumnsEqualTheDefinition) {
  on_every_instruction_set([] { expect_definition(tile_packers().columns_transposed, Side::columns, true); });
}

}  // namespace
}  // namespace choir::kernels::tests
