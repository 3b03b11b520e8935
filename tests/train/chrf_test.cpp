// chrF of texts, against the numbers of sacrebleu 2.6.0: CHRF().corpus_score(hypotheses, [references]).score.
#include "framework/train/chrf.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace choir::tests {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;  // of a hypothesis and its reference

double chrf(const Pairs& pairs) {
  ChrF counts;
  for (const auto& [hypothesis, reference] : pairs) counts.add(hypothesis, reference);
  return counts.score();
}

TEST(ChrF, IsThatOfSacrebleu) {
  EXPECT_DOUBLE_EQ(chrf({{"The cat sat.", "The cat sat."}}), 100);
  EXPECT_DOUBLE_EQ(chrf({{"Der Hund bellt laut.", "Der Hund hat laut gebellt."}}), 50.03809747278747);
  EXPECT_DOUBLE_EQ(
      chrf({{"Gewählte Überweisung löschen", "Die gewählte Überweisungsvorlage löschen"}, {"Konto", "Konten öffnen…"}}),
      51.982206373736076);
  EXPECT_DOUBLE_EQ(chrf({{"ab", "abc"}, {"", "x y"}, {"abcdefgh", "a"}}), 44.889502762430936);
  EXPECT_DOUBLE_EQ(chrf({{"abc", "xyz"}}), 0);
  EXPECT_DOUBLE_EQ(chrf({{"a b  c d e f", "abc def"}, {"x\u00a0y", "xy"}}), 100) << "white space does not count";
}

TEST(ChrF, OfNothingIsZero) {
  EXPECT_EQ(chrf({}), 0);
  EXPECT_EQ(chrf({{"", ""}}), 0);
}

TEST(ChrF, TakesBytesThatAreNoUtf8) { EXPECT_DOUBLE_EQ(chrf({{"a\xff\xc3", "a\xff\xc3"}}), 100); }

}  // namespace
}  // namespace choir::tests
