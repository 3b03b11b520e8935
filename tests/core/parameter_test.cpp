// The parameter store: layout of the flat arrays, and start values that do not depend on slicing.
#include "framework/core/parameter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace choir::tests {
namespace {

constexpr std::int64_t rows = 37, columns = 29;
constexpr Initial initial = {0.5f, 0.1f};

class Parameters : public ::testing::Test {
 protected:
  /// The start values of a region of tensor "w" [37, 29], as doubles.
  std::vector<double> start_values(const Region& held, DType type, std::uint64_t seed = 7,
                                   const std::string& name = "w") {
    Runtime runtime{.device = device, .seed = seed, .compute_type = type};
    ParameterStore store;
    store.begin_group();
    Weight* weight = store.add_weight(held.rows() + 3, held.columns(), true);  // rows below it are padding
    store.add({.name = name,
               .shape = {rows, columns},
               .held = held,
               .owned_end = held.rows(),
               .initial = initial,
               .weight = weight});
    store.allocate(runtime, 16);
    store.initialize(runtime);
    const Tensor& master = weight->master;
    EXPECT_EQ(master.dtype(), accumulate_type(type));
    std::vector<double> values;
    for (std::int64_t i = 0; i < master.count(); ++i)
      values.push_back(master.dtype() == DType::f64 ? master.data<double>()[i]
                                                    : static_cast<double>(master.data<float>()[i]));
    for (std::int64_t i = held.count(); i < master.count(); ++i)
      EXPECT_EQ(values[static_cast<std::size_t>(i)], 0) << "padding";
    values.resize(static_cast<std::size_t>(held.count()));
    return values;
  }
  Device device{1};
};

TEST_F(Parameters, StartValuesAreTheSameInAnySliceAndType) {
  for (const DType type : {DType::f32, DType::bf16, DType::f64}) {
    const auto whole = start_values({0, rows, 0, columns}, type);
    EXPECT_EQ(whole, start_values({0, rows, 0, columns}, DType::f32))
        << "masters do not depend on the precision of the run";
    for (const Region held :
         {Region{5, 18, 0, columns}, Region{0, rows, 3, 11}, Region{36, 37, 28, 29}, Region{4, 9, 7, 28}}) {
      const auto part = start_values(held, type);
      for (std::int64_t r = 0; r < held.rows(); ++r)
        for (std::int64_t c = 0; c < held.columns(); ++c)
          ASSERT_EQ(part[static_cast<std::size_t>(r * held.columns() + c)],
                    whole[static_cast<std::size_t>((held.row_begin + r) * columns + held.column_begin + c)])
              << name_of(type) << " " << r << ", " << c;
    }
  }
}

TEST_F(Parameters, StartValuesDependOnSeedAndNameAndHaveMeanAndDeviation) {
  const Region all{0, rows, 0, columns};
  const auto values = start_values(all, DType::f32);
  EXPECT_NE(values, start_values(all, DType::f32, 8));
  EXPECT_NE(values, start_values(all, DType::f32, 7, "v"));
  double sum = 0, square = 0;
  for (const double value : values) sum += value;
  const auto n = static_cast<double>(values.size());
  for (const double value : values) square += (value - sum / n) * (value - sum / n);
  EXPECT_NEAR(sum / n, 0.5, 4 * 0.1 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(square / n), 0.1, 4 * 0.1 / std::sqrt(2 * n));
}

TEST_F(Parameters, GroupsAreAlignedAndBuffersStartOnCacheLinesInOrder) {
  Runtime runtime{.device = device, .compute_type = DType::bf16};
  ParameterStore store;
  store.begin_group();
  Weight* a = store.add_weight(3, 5, true);
  Weight* b = store.add_weight(7, 1, false);
  store.begin_group();
  Weight* c = store.add_weight(100, 10, true);
  store.begin_group();
  Weight* d = store.add_weight(1, 1, false);
  store.allocate(runtime, 48);
  EXPECT_EQ(a->offset, 0);
  EXPECT_EQ(b->offset, 16);
  EXPECT_EQ(c->offset, 48);
  EXPECT_EQ(store.group_begin(1), 48);
  EXPECT_EQ(store.group_end(0), 48);
  EXPECT_EQ(store.group_begin(2) % 48, 0);
  EXPECT_EQ(d->offset, store.group_begin(2));
  EXPECT_EQ(store.size() % 48, 0);
  EXPECT_EQ(store.group_end(2), store.size());
  for (const Weight* weight : {a, b, c, d}) {
    EXPECT_EQ(weight->master.raw(), store.master.data<float>() + weight->offset);
    EXPECT_EQ(weight->gradient.raw(), store.gradient.data<float>() + weight->offset);
    EXPECT_EQ(weight->value.dtype(), weight->matrix ? DType::bf16 : DType::f32) << "vectors stay f32";
  }
}

TEST_F(Parameters, RoundedValuesFollowTheMastersAndInF32AreTheMasters) {
  for (const DType type : {DType::bf16, DType::f32}) {
    Runtime runtime{.device = device, .compute_type = type};
    ParameterStore store;
    store.begin_group();
    Weight* weight = store.add_weight(4, 4, true);
    store.add(
        {.name = "w", .shape = {4, 4}, .held = {0, 4, 0, 4}, .owned_end = 4, .initial = initial, .weight = weight});
    store.allocate(runtime, 16);
    store.initialize(runtime);
    weight->master.data<float>()[5] = 1.2345678f;
    store.round_values(runtime);
    if (type == DType::bf16) {
      EXPECT_EQ(weight->value.data<bf16>()[5].bits, bf16(1.2345678f).bits);
    } else {
      EXPECT_EQ(weight->value.raw(), weight->master.raw());
    }
  }
}

TEST_F(Parameters, CountsAndSlicesOfNamedPartsOfOneBuffer) {
  Runtime runtime{.device = device};
  ParameterStore store;
  store.begin_group();
  Weight* qkv = store.add_weight(8, 6, true);
  store.add({.name = "q", .shape = {10, 6}, .held = {2, 6, 0, 6}, .owned_end = 4, .weight = qkv});
  store.add({.name = "k",
             .shape = {6, 6},
             .held = {0, 4, 0, 6},
             .owned_begin = 1,
             .owned_end = 4,
             .weight = qkv,
             .first_row = 4});
  store.allocate(runtime, 16, true);
  EXPECT_EQ(store.owned_count(), 4 * 6 + 3 * 6);
  EXPECT_EQ(store.global_count(), 10 * 6 + 6 * 6);
  EXPECT_EQ(store.parameters()[1].offset(), 24);
  EXPECT_EQ(store.parameters()[1].master().raw(), qkv->master.data<float>() + 24);
  EXPECT_EQ(store.parameters()[1].master().shape(), (Shape{4, 6}));
  EXPECT_FALSE(store.gradient) << "inference has no gradients";
}

TEST(RandomKey, DiffersWithTheSeedAndWithEveryLetter) {
  EXPECT_EQ(random_key(1, "embedding"), random_key(1, "embedding"));
  EXPECT_NE(random_key(1, "embedding"), random_key(2, "embedding"));
  EXPECT_NE(random_key(1, "blocks.1.attention"), random_key(1, "blocks.2.attention"));
  EXPECT_NE(random_key(1, "ab"), random_key(1, "ba"));
  EXPECT_NE(random_key(1, ""), random_key(2, ""));
}

}  // namespace
}  // namespace choir::tests
