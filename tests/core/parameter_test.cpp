// The parameter store: layout of the flat arrays, and start values that do not depend on slicing.
#include "framework/core/parameter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace choir::tests {
namespace {

constexpr std::int64_t rows = 37, columns = 29;
constexpr Initial initial = {0.5f, 0.1f};

class Parameters : public ::testing::Test {
 protected:
  /// The start values of a region of tensor "w" [37, 29], made `step` elements at a time.
  std::vector<float> values_of(const Region& held, std::int64_t step = rows * columns, std::uint64_t seed = 7,
                               const std::string& name = "w") {
    Runtime runtime{.device = device, .seed = seed};
    const Parameter parameter{
        .name = name, .shape = {rows, columns}, .held = held, .owned_end = held.rows(), .initial = initial};
    std::vector<float> values(static_cast<std::size_t>(held.count()));
    for (std::int64_t begin = 0; begin < held.count(); begin += step)
      start_values(runtime, parameter, begin, std::min(held.count(), begin + step), values.data() + begin);
    return values;
  }
  Device device{1};
};

TEST_F(Parameters, StartValuesAreTheSameInAnySlice) {
  const auto whole = values_of({0, rows, 0, columns});
  for (const Region held : {Region{0, rows, 0, columns}, Region{5, 18, 0, columns}, Region{0, rows, 3, 11},
                            Region{36, 37, 28, 29}, Region{4, 9, 7, 28}})
    for (const std::int64_t step : {rows * columns, std::int64_t{7}, std::int64_t{1}}) {
      const auto part = values_of(held, step);
      for (std::int64_t r = 0; r < held.rows(); ++r)
        for (std::int64_t c = 0; c < held.columns(); ++c)
          ASSERT_EQ(part[static_cast<std::size_t>(r * held.columns() + c)],
                    whole[static_cast<std::size_t>((held.row_begin + r) * columns + held.column_begin + c)])
              << r << ", " << c << ", " << step << " at a time";
    }
}

TEST_F(Parameters, StartValuesDependOnSeedAndNameAndHaveMeanAndDeviation) {
  const Region all{0, rows, 0, columns};
  const auto values = values_of(all);
  EXPECT_NE(values, values_of(all, all.count(), 8));
  EXPECT_NE(values, values_of(all, all.count(), 7, "v"));
  double sum = 0, square = 0;
  for (const float value : values) sum += static_cast<double>(value);
  const auto n = static_cast<double>(values.size());
  for (const float value : values) square += std::pow(static_cast<double>(value) - sum / n, 2);
  EXPECT_NEAR(sum / n, 0.5, 4 * 0.1 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(square / n), 0.1, 4 * 0.1 / std::sqrt(2 * n));
}

TEST_F(Parameters, GroupsHaveMatricesThenVectorsAlignedAndBuffersStartOnCacheLines) {
  ParameterStore store;
  store.begin_group();
  Weight* a = store.add_weight(7, 1, false);
  Weight* b = store.add_weight(3, 5, true);
  Weight* c = store.add_weight(2, 2, true);
  store.begin_group();
  Weight* d = store.add_weight(100, 10, true);
  store.begin_group();
  Weight* e = store.add_weight(1, 1, false);
  store.lay_out(48);
  EXPECT_EQ(b->offset, 0);
  EXPECT_EQ(c->offset, 16);
  EXPECT_EQ(store.matrices(0), (FlatRange{0, 48}));
  EXPECT_EQ(a->offset, 48);
  EXPECT_EQ(store.vectors(0), (FlatRange{48, 96}));
  EXPECT_EQ(d->offset, 96);
  EXPECT_EQ(store.matrices(1), (FlatRange{96, 96 + 1008}));
  EXPECT_EQ(store.vectors(1), (FlatRange{1104, 1104})) << "none";
  EXPECT_EQ(store.matrices(2).count(), 0);
  EXPECT_EQ(e->offset, store.group_begin(2));
  EXPECT_EQ(store.group_end(0), store.group_begin(1));
  EXPECT_EQ(store.group_end(2), store.size());
  EXPECT_EQ(store.size(), 1104 + 48);
  for (const Weight* weight : {a, b, c}) EXPECT_EQ(weight->group, 0);
  EXPECT_EQ(e->group, 2);
}

TEST_F(Parameters, CountsAndSlicesOfNamedPartsOfOneBuffer) {
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
  store.lay_out(16);
  EXPECT_EQ(store.owned_count(), 4 * 6 + 3 * 6);
  EXPECT_EQ(store.global_count(), 10 * 6 + 6 * 6);
  EXPECT_EQ(store.parameters()[1].offset(), 24);
  qkv->value = Runtime{.device = device}.empty({8, 6}, DType::f32);
  EXPECT_EQ(store.parameters()[1].value().raw(), qkv->value.data<float>() + 24);
  EXPECT_EQ(store.parameters()[1].value().shape(), (Shape{4, 6}));
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
