// Tensors: handles, slices and strides.
#include "framework/core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>

namespace choir::tests {
namespace {

template <class T>
constexpr bool has_dtype = requires {
  ElementType<T>::value;
};
static_assert(has_dtype<float> && has_dtype<bf16> && has_dtype<double> && has_dtype<std::int32_t> &&
              has_dtype<std::uint8_t>);
static_assert(!has_dtype<std::int64_t> && !has_dtype<std::uint32_t> && !has_dtype<const float>);

class Tensors : public ::testing::Test {
 protected:
  /// Elements 0, 1, 2, ...
  Tensor counting(const Shape& shape) {
    Tensor x(allocator, shape, DType::f32, MemoryKind::temporary);
    std::iota(x.data<float>(), x.data<float>() + x.count(), 0.0f);
    return x;
  }
  Allocator allocator{host_memory()};
};

TEST_F(Tensors, KnowTheirShape) {
  const Tensor x = counting({2, 3, 4});
  EXPECT_EQ(x.rows(), 6);
  EXPECT_EQ(x.width(), 4);
  EXPECT_EQ(x.count(), 24);
  EXPECT_EQ(x.bytes(), 96);
  EXPECT_EQ(x.dim(1), 3);
  EXPECT_TRUE(x.contiguous());
  EXPECT_EQ(to_string(x.shape()), "[2, 3, 4]");
  EXPECT_FALSE(Tensor{});
}

TEST_F(Tensors, SliceRowsOfTheFlattenedRows) {
  const Tensor rows = counting({2, 3, 4}).slice_rows(2, 5);
  EXPECT_EQ(rows.shape(), (Shape{3, 4}));
  EXPECT_EQ(rows.data<float>()[0], 8);
  EXPECT_TRUE(rows.contiguous());
  EXPECT_EQ(rows.slice_rows(1, 1).count(), 0);
}

TEST_F(Tensors, SliceColumnsKeepsTheRowStride) {
  const Tensor x = counting({3, 8});
  const Tensor columns = x.slice_columns(2, 5);
  EXPECT_EQ(columns.shape(), (Shape{3, 3}));
  EXPECT_EQ(columns.row_stride(), 8);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(columns.data<float>()[columns.row_stride()], 10);
  const Tensor one = columns.slice_rows(2, 3);
  EXPECT_TRUE(one.contiguous()) << "one row is contiguous";
  EXPECT_EQ(one.data<float>()[0], 18);
  EXPECT_EQ(columns.slice_columns(1, 2).slice_rows(1, 2).data<float>()[0], 11) << "slices of slices";
}

TEST_F(Tensors, ReshapeIsTheSameMemory) {
  const Tensor x = counting({4, 6});
  const Tensor y = x.reshape({2, 12});
  EXPECT_EQ(y.raw(), x.raw());
  EXPECT_EQ(y.row_stride(), 12);
}

TEST_F(Tensors, MemoryIsReleasedWithTheLastHandle) {
  Tensor slice;
  {
    const Tensor x = counting({4, 6});
    slice = x.slice_rows(3, 4);
    EXPECT_EQ(allocator.in_use().total(), 4096);
  }
  EXPECT_EQ(allocator.in_use().total(), 4096) << "a slice keeps the whole block";
  EXPECT_EQ(slice.data<float>()[0], 18);
  slice = {};
  EXPECT_EQ(allocator.in_use().total(), 0);
}

TEST_F(Tensors, KeepAccountsAsSavedUntilTheLastHandleIsReleased) {
  const auto saved = [&] { return allocator.in_use().bytes[static_cast<std::size_t>(MemoryKind::saved)]; };
  {
    const Tensor x = counting({4});
    const Tensor part = x.slice_columns(0, 2);
    keep(part);
    keep(x);
    EXPECT_EQ(saved(), 4096) << "counted once, even if it is kept twice";
  }
  EXPECT_EQ(saved(), 0);
}

}  // namespace
}  // namespace choir::tests
