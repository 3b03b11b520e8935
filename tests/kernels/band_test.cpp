// Bands against their definition, pair by pair: every band of every small rectangle, and ends of any size.
#include "kernels/band.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace choir::kernels {
namespace {

constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max(),
                       smallest = std::numeric_limits<std::int64_t>::min();

bool sees(Band band, std::int64_t i, std::int64_t j) {
  return (band.first <= j - i && j - i <= band.last) || (i < band.prefix_queries && j < band.prefix_keys);
}

template <class Index>
struct BandTest : testing::Test {};
using Indices = testing::Types<std::int64_t, int>;
TYPED_TEST_SUITE(BandTest, Indices);

/// Every answer about ranges of up to three queries and keys, against a loop over the pairs.
template <class Index>
void expect_definition(Band band, Index q_length, Index kv_length) {
  using Range = IndexRange<Index>;
  SCOPED_TRACE(testing::Message() << q_length << " queries, " << kv_length << " keys, band " << band.first << " to "
                                  << band.last);
  const VisiblePairs<Index> pairs(band, q_length, kv_length);
  const auto count = [&](Range queries, Range keys) {
    int seen = 0;
    for (Index i = queries.begin; i < std::min(queries.end, q_length); ++i)
      for (Index j = keys.begin; j < std::min(keys.end, kv_length); ++j) seen += sees(band, i, j);
    return seen;
  };
  const Range all_queries{0, q_length}, all_keys{0, kv_length};
  ASSERT_EQ(pairs.count(), count(all_queries, all_keys));
  const Index size = 3;
  for (Index i = 0; i < q_length + 2; ++i)
    for (Index j = 0; j < kv_length + 2; ++j) {
      ASSERT_EQ(pairs.sees(i, j), i < q_length && j < kv_length && sees(band, i, j)) << i << ", " << j;
      const Range queries{i, i + size}, keys{j, j + size};
      ASSERT_EQ(pairs.any(queries, keys), count(queries, keys) > 0) << i << ", " << j;
      ASSERT_EQ(pairs.all(queries, keys), count(queries, keys) == size * size) << i << ", " << j;
    }
  for (const Index tile : {1, 3}) {
    for (Index i = 0; i < q_length; i += tile) {
      const Range keys = tile == 1 ? pairs.keys_of(i) : pairs.keys_of(Range{i, i + tile});
      for (Index j = 0; j < kv_length; ++j)
        ASSERT_EQ(keys.begin <= j && j<keys.end, count({i, i + tile}, {j, j + 1})> 0) << i << ", " << j;
      ASSERT_TRUE(keys.empty() || (keys.begin >= 0 && keys.end <= kv_length));
    }
    for (Index j = 0; j < kv_length; j += tile) {
      const Range queries = tile == 1 ? pairs.queries_of(j) : pairs.queries_of(Range{j, j + tile});
      for (Index i = 0; i < q_length; ++i)
        ASSERT_EQ(queries.begin <= i && i<queries.end, count({i, i + 1}, {j, j + tile})> 0) << i << ", " << j;
      ASSERT_TRUE(queries.empty() || (queries.begin >= 0 && queries.end <= q_length));
    }
  }
  const auto pairs_of = [&](std::int64_t first, std::int64_t last) {
    return VisiblePairs<Index>({first, last, band.prefix_queries, band.prefix_keys}, q_length, kv_length).count();
  };
  if (band.first <= band.last && pairs.count() > 0 && pairs.prefix_queries == 0) {
    ASSERT_EQ(pairs.limited_before(), pairs_of(smallest, band.last) > pairs.count());
    ASSERT_EQ(pairs.limited_after(), pairs_of(band.first, largest) > pairs.count());
  }
}

TYPED_TEST(BandTest, AnswersEveryQuestionByItsDefinition) {
  for (TypeParam q_length = 1; q_length <= 7; ++q_length)
    for (TypeParam kv_length = 1; kv_length <= 7; ++kv_length) {
      std::vector<std::int64_t> ends{smallest, -unlimited, unlimited};
      for (std::int64_t end = -q_length - 1; end <= kv_length + 1; ++end) ends.push_back(end);
      for (const std::int64_t first : ends)
        for (const std::int64_t last : ends) {
          expect_definition<TypeParam>({first, last}, q_length, kv_length);
          if (this->HasFatalFailure()) return;
        }
    }
}

// Every block of a sequence, as a ring has them, and the last queries of a cache.
TYPED_TEST(BandTest, WithAPrefixAnswersByItsDefinition) {
  constexpr TypeParam length = 9;
  for (const TypeParam prefix : {0, 1, 4, 9})
    for (const std::int64_t window : {0, 1, 3})
      for (TypeParam first_query = 0; first_query < length; ++first_query)
        for (TypeParam first_key = 0; first_key < length; ++first_key)
          for (const TypeParam queries : {1, 4})
            for (const TypeParam keys : {3, 6}) {
              const Band whole = with_prefix(causal_band(length, length, window), prefix);
              expect_definition<TypeParam>(band_between(whole, first_query, first_key),
                                           std::min(queries, length - first_query), std::min(keys, length - first_key));
              if (this->HasFatalFailure()) return;
            }
}

TEST(Band, WithAPrefixIsCausalBehindIt) {
  const Band band = with_prefix(causal_band(9, 9), 4);
  for (std::int64_t i = 0; i < 9; ++i)
    for (std::int64_t j = 0; j < 9; ++j) EXPECT_EQ(sees(band, i, j), j <= i || (i < 4 && j < 4)) << i << ", " << j;
}

TEST(Band, OfACausalWindowIsTheLastKeysUpToTheQuerysOwn) {
  for (const std::int64_t kv_length : {1, 4, 9})
    for (const std::int64_t q_length : {1, 4, 9})
      for (const std::int64_t window : std::vector<std::int64_t>{0, 1, 3, 8, 9, 10, 1000, largest}) {
        const Band band = causal_band(q_length, kv_length, window);
        for (std::int64_t i = 0; i < q_length; ++i)
          for (std::int64_t j = 0; j < kv_length; ++j) {
            const std::int64_t before = i + kv_length - q_length - j;  // of the query: its own key is 0 before
            EXPECT_EQ(sees(band, i, j), before >= 0 && (window == 0 || before < window))
                << q_length << " queries, " << kv_length << " keys, window " << window << ": " << i << ", " << j;
          }
      }
}

TEST(Band, FullShowsEveryKeyToEveryQuery) {
  constexpr VisiblePairs<std::int64_t> pairs(full_band(), 5, 8);
  static_assert(pairs.count() == 40 && pairs.all({0, 5}, {0, 8}));
  static_assert(!pairs.limited_before() && !pairs.limited_after());
}

TEST(Band, CountsThePairsOfLongSequencesExactly) {
  constexpr std::int64_t length = std::int64_t{1} << 28;  // the largest that int can hold
  constexpr VisiblePairs<int> causal(causal_band(length, length), length, length);
  static_assert(causal.count() == length * (length + 1) / 2);
  constexpr VisiblePairs<int> window(causal_band(length, length, 4096), length, length);
  static_assert(window.count() == length * 4096 - 4096 * 4095 / 2);
}

TEST(Band, WithoutQueriesOrKeysHasNoPairs) {
  for (const Band band : {full_band(), causal_band(0, 0), Band{1, 0}}) {
    EXPECT_EQ(VisiblePairs<int>(band, 0, 0).count(), 0);
    EXPECT_EQ(VisiblePairs<int>(band, 0, 5).count(), 0);
    EXPECT_EQ(VisiblePairs<int>(band, 5, 0).count(), 0);
    EXPECT_TRUE(VisiblePairs<int>(band, 5, 0).keys_of(3).empty());
  }
}

TEST(Bands, OfAWindowReachAsFarOnEitherSide) {
  for (const std::int64_t window : {0, 1, 2, 5, 9, 20})
    for (std::int64_t i = 0; i < 9; ++i)
      for (std::int64_t j = 0; j < 9; ++j)
        EXPECT_EQ(sees(window_band(window), i, j), window == 0 || (i - j < window && j - i < window));
}

TEST(Bands, BetweenPartsOfASequenceAreThatOfTheWhole) {
  for (const Band whole : {full_band(), causal_band(9, 9), causal_band(9, 9, 4), window_band(3), Band{2, unlimited},
                           with_prefix(causal_band(9, 9, 2), 5)})
    for (std::int64_t query = 0; query < 9; ++query)
      for (std::int64_t key = 0; key < 9; ++key)
        for (const std::int64_t first_query : {std::int64_t{0}, query})
          for (const std::int64_t first_key : {std::int64_t{0}, key})
            EXPECT_EQ(sees(band_between(whole, first_query, first_key), query - first_query, key - first_key),
                      sees(whole, query, key));
}

}  // namespace
}  // namespace choir::kernels
