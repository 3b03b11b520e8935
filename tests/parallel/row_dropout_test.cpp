// Dropout of the rows that a rank holds: by their place in the global batch, and in training only.
#include <gtest/gtest.h>

#include "framework/parallel/tensor.h"

namespace choir::tests {
namespace {

TEST(RowDropout, KnowsTheFirstRowAndIsForTrainingOnly) {
  Device device(CountOnly{}, 1);
  CallRing ring;
  Mesh mesh = make_counting_mesh(1, {.tensor = 2}, device, ring);
  Runtime runtime{.device = device};
  Context context{.runtime = runtime, .mesh = mesh, .rows = whole_rows(3, 5, 7)};
  context.rows.split = 2;
  context.rows.part = 1;
  EXPECT_EQ(row_dropout(context, 0.25, "test").p, 0.25);
  EXPECT_EQ(row_dropout(context, 0.25, "test").rows.global_row(0), 7 * 5 + 8) << "15 rows on 2 ranks: 8 and 7";
  context.training = false;
  EXPECT_EQ(row_dropout(context, 0.25, "test").p, 0);
}

}  // namespace
}  // namespace choir::tests
