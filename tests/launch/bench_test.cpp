// choir bench: every verb and every operation of a layer has its line. The figures depend on the machine.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(Bench, CollectivesTimesTheSevenVerbs) {
  const Workshop workshop;
  const Finished finished = workshop.mpirun(2, "bench collectives --device cpu --largest 40000 --json");
  ASSERT_EQ(finished.code, 0) << finished.output;
  const auto json = nlohmann::json::parse(finished.output);
  EXPECT_EQ(json["ranks"], 2);
  std::vector<std::string> verbs;
  for (const auto& row : json["rows"]) {
    EXPECT_GT(row["seconds"], 0.0) << row;
    const auto verb = row["verb"].get<std::string>();
    if (verbs.empty() || verbs.back() != verb) verbs.push_back(verb);
  }
  EXPECT_EQ(verbs, (std::vector<std::string>{"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast",
                                             "exchange", "barrier"}));
}

TEST(Bench, CollectivesNeedTwoRanks) {
  const Finished finished = shell(CHOIR_BINARY " bench collectives --device cpu");
  EXPECT_EQ(finished.code, 2) << finished.output;
  EXPECT_NE(finished.output.find("mpirun -n 2"), std::string::npos) << finished.output;
}

TEST(Bench, KernelsNamesEachOperationOfALayer) {
  const Workshop workshop;
  const Finished finished = workshop.choir("bench kernels " + workshop.path("tiny.yaml") + " --device cpu");
  ASSERT_EQ(finished.code, 0) << finished.output;
  for (const char* operation : {"attention forward", "attention backward", "head", "norm forward", "optimizer"})
    EXPECT_NE(finished.output.find(operation), std::string::npos) << operation << "\n" << finished.output;
}

}  // namespace
}  // namespace choir::tests
