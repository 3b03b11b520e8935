// What operations return has the shape and the element type that their headers promise, in every compute type.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/every_operation.h"

namespace choir::tests {
namespace {

template <class T>
void expect_numbers(const Tensor& x) {
  for (std::int64_t i = 0; i < x.count(); ++i)
    ASSERT_TRUE(std::isfinite(static_cast<double>(x.data<T>()[i]))) << "element " << i << " has not been written";
}

TEST(Shapes, OfWhatOperationsReturn) {
  for (const DType type : {DType::f32, DType::bf16, DType::f64}) {
    SCOPED_TRACE(name_of(type));
    Device device(2);
    Runtime runtime{.device = device, .compute_type = type};
    for (const auto& [what, tensor, shape, of] : call_every_operation(runtime)) {
      SCOPED_TRACE(what);
      EXPECT_EQ(tensor.shape(), shape);
      EXPECT_STREQ(name_of(tensor.dtype()), name_of(of));
      EXPECT_TRUE(tensor.contiguous());
      if (of == DType::f32) expect_numbers<float>(tensor);
      if (of == DType::bf16) expect_numbers<bf16>(tensor);
      if (of == DType::f64) expect_numbers<double>(tensor);
    }
  }
}

TEST(Shapes, ContiguousTensorsAndKeptGradientsAreTheSameMemory) {
  Device device(1);
  Runtime runtime{.device = device};
  const Tensor x = runtime.empty({3, 5}, DType::f32);
  EXPECT_EQ(ops::contiguous(runtime, x).raw(), x.raw());
  EXPECT_EQ(ops::residual_backward(runtime, x, {}).raw(), x.raw()) << "nothing is dropped";
  EXPECT_NE(ops::contiguous(runtime, x.slice_columns(0, 4)).raw(), x.raw());
}

TEST(RotaryTable, IsMadeOnceByARuntime) {
  Device device(1);
  Runtime runtime{.device = device};
  const Tensor table = ops::rotary_table(runtime, 5, 4, 100);
  EXPECT_EQ(ops::rotary_table(runtime, 5, 4, 100).raw(), table.raw());
  EXPECT_NE(ops::rotary_table(runtime, 6, 4, 100).raw(), table.raw());
  EXPECT_NE(ops::rotary_table(runtime, 5, 2, 100).raw(), table.raw());
  EXPECT_NE(ops::rotary_table(runtime, 5, 4, 1000).raw(), table.raw());
  EXPECT_NE(ops::rotary_table(runtime, 5, 4, 100, {.rows = 1, .columns = 5}).raw(), table.raw());
}

TEST(Shapes, DropoutHasAKeyForEachUse) {
  Device device(1);
  Runtime runtime{.device = device};
  EXPECT_EQ(ops::dropout_for(runtime, 0.25, "test", {}).p, 0.25);
  EXPECT_EQ(ops::dropout_for(runtime, 0.25, "test", {.first_row = 7}).rows.first_row, 7);
  EXPECT_NE(ops::dropout_for(runtime, 0.25, "test", {}).key, ops::dropout_for(runtime, 0.25, "other", {}).key);
}

}  // namespace
}  // namespace choir::tests
