// chrF: how alike two texts are, by the sequences of 1 to 6 characters that they share; 0 to 100.
//
//   P = mean over n of (n-grams of the hypotheses that are in their references) / (all n-grams of the hypotheses)
//   R = the same, divided by the n-grams of the references
//   chrF = 100 * 5 P R / (4 P + R)                        recall counts twice as much: F with beta = 2
//
// Counts are summed over all pairs of texts, and an n-gram counts as often as it is in both. Characters are code points
// of UTF-8 without white space; orders n of which the hypotheses or the references have no n-gram are left out. Popovic
// 2015, "chrF: character n-gram F-score for automatic MT evaluation", WMT; with the settings of sacrebleu (Post 2018).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace choir {

class ChrF {
 public:
  void add(std::string_view hypothesis, std::string_view reference);
  double score() const;

 private:
  struct Counts {
    std::int64_t hypothesis = 0, reference = 0, shared = 0;
  };
  std::array<Counts, 6> counts_;  // of n-grams, n from 1
};

}  // namespace choir
