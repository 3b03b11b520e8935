// What every kind of parallelism promises, through the program: any layout gives the losses of one rank, checkpoints do
// not depend on it, and going on in the same layout is exact.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "tests/launch/runs.h"

namespace choir::tests {

struct LaunchLayout {
  int ranks;
  std::string words;
};
inline void PrintTo(const LaunchLayout& of, std::ostream* to) { *to << of.ranks << " ranks " << of.words; }

/// A value of metrics.jsonl, and how much it may differ, relatively.
struct ComparedMetric {
  std::string name;
  double tolerance = relative;
};

/// Trains with one rank and in each of `layouts`, all with `words`.
void expect_metrics_of_one_rank(const std::vector<LaunchLayout>& layouts, const std::vector<ComparedMetric>& metrics,
                                const std::string& words = "");

/// A checkpoint of `written` is whole, generates and evaluates with one rank, and goes on with one rank and
/// `without` ("parallel.zero=0", ...); one of one rank goes on in `resumed`. All with `words`, which both have.
void expect_checkpoints_to_cross(const LaunchLayout& written, const std::string& without, const LaunchLayout& resumed,
                                 const std::string& words = "");

/// Going on from a checkpoint gives the bits of the run that was not interrupted.
void expect_exact_resume(const LaunchLayout& layout);

}  // namespace choir::tests
