// choir plan: what it says of each stage, and of layouts that do not fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

TEST(Plan, ShowsMemoryOperationsAndMessagesOfEachStage) {
  const Workshop shop;
  const Finished plan = shop.choir("plan " + shop.path("tiny.yaml") +
                                   " --ranks 6 parallel.pipeline=3 parallel.tensor=2 parallel.micro_batch=1");
  ASSERT_EQ(plan.code, 0) << plan.output;
  std::istringstream lines(plan.output.substr(plan.output.find("each stage: ")));
  std::string line;
  std::getline(lines, line);
  std::getline(lines, line);
  for (const char* column : {"stage", "parameters", "gradients", "optimizer state", "saved activations", "workspace",
                             "temporaries", "total", "TFLOP", "messages", "sent GB"})
    EXPECT_NE(line.find(column), std::string::npos) << column << "\n" << plan.output;
  for (int stage = 0; stage < 3; ++stage) {
    std::getline(lines, line);
    std::istringstream words(line);
    std::vector<double> numbers;
    for (double number = 0; words >> number;) numbers.push_back(number);
    ASSERT_EQ(numbers.size(), 11u) << plan.output;
    EXPECT_EQ(numbers[0], stage);
    EXPECT_GT(numbers[9], 0) << "messages, in\n" << plan.output;
  }
}

// 2 bytes * 12 heads * 1024^2 scores, in two calls of 32 sequences for each of 12 blocks; or 4 bytes * 768 gradients of
// 64 * 1024 queries. Both with 4 bytes for each of 12 heads.
TEST(Plan, SaysWhatDeterministicAttentionCosts) {
  const Workshop shop;
  const std::string plan =
      "plan " CHOIR_SOURCE_DIR "/configs/gpt2-124m.yaml --ranks 1 train.batch=64 parallel.micro_batch=64 --device ";
  const Finished bf16 = shop.choir(plan + "cuda train.precision=bf16");
  ASSERT_EQ(bf16.code, 0) << bf16.output;
  EXPECT_TRUE(contains(bf16,
                       "\n  true   workspace 0.807 GB, of which a step writes and reads 38.730 GB\n"
                       "  false  workspace 0.204 GB, of which a step writes and reads 4.907 GB\n"))
      << bf16.output;
  for (const char* other : {"cuda", "cpu train.precision=bf16", "cuda train.precision=bf16 model.attention.soft_cap=5"})
    EXPECT_FALSE(contains(shop.choir(plan + other), "train.attention.deterministic")) << other;
}

TEST(Plan, CountsWhatIsInMemoryOfTheHost) {
  const Workshop shop;
  const std::string plan =
      "plan " CHOIR_SOURCE_DIR "/configs/gpt2-124m.yaml --ranks 1 --device cuda train.precision=bf16 train.offload=";
  const auto gigabytes = [&](const Finished& finished, const std::string& line) {
    const std::size_t at = finished.output.find("\n  " + line + " ");
    return at == std::string::npos ? 0 : std::stod(finished.output.substr(at + line.size() + 3));
  };
  const Finished none = shop.choir(plan + "none"), offloaded = shop.choir(plan + "optimizer");
  ASSERT_EQ(offloaded.code, 0) << offloaded.output;
  // 124.4 million parameters: two moments in f32, and masters of the matrices.
  EXPECT_NEAR(gigabytes(offloaded, "and of the host"), 1.493, 0.002) << offloaded.output;
  EXPECT_NEAR(gigabytes(none, "total") - gigabytes(offloaded, "total"), 1.493, 0.002) << none.output;
  EXPECT_FALSE(contains(none, "and of the host")) << none.output;
  // What 12 blocks save, but for the two or three that are on their way.
  const Finished both = shop.choir(plan + "optimizer+activations");
  ASSERT_EQ(both.code, 0) << both.output;
  const double saved = gigabytes(none, "saved activations");
  EXPECT_LT(gigabytes(both, "saved activations"), 0.3 * saved) << both.output;
  EXPECT_GT(gigabytes(both, "and of the host"), 1.493 + 0.7 * saved) << both.output;
  EXPECT_TRUE(contains(both, "activations out") && contains(both, "activations back")) << both.output;
}

// What the error says to set is accepted, apart from the batch, which the error cannot know.
TEST(Plan, NamesTheNearestLayoutThatFitsTheRanksAndTheModel) {
  const Workshop shop;  // 3 heads, 5 units of 8 feed-forward columns, 16 positions, 4 parts
  struct Case {
    int ranks;
    std::string asked, fix, repaired;
  };
  const Case cases[] = {
      {7, "parallel.tensor=3", "start 6 or 9 ranks, or set parallel.tensor to 1\n", "parallel.tensor=1"},
      {1, "parallel.tensor=9", "  fix: set parallel.tensor to 1\n", "parallel.tensor=1"},
      {10, "parallel.context=17", "  fix: set parallel.context to 10\n", "parallel.context=10"},
      {6, "parallel.pipeline=5", "  fix: set parallel.pipeline to 3\n", "parallel.pipeline=3"},
      {20, "parallel.context=3 parallel.context_kind=heads", "start 18 or 21 ranks, or set parallel.context to 2\n",
       "parallel.context=2 parallel.context_kind=heads"},
      {30, "parallel.tensor=4 parallel.pipeline=4", "  fix: set parallel.tensor to 2 and parallel.pipeline to 3\n",
       "parallel.tensor=2 parallel.pipeline=3"},
  };
  for (const auto& [ranks, asked, fix, repaired] : cases) {
    const std::string plan = "plan " + shop.path("tiny.yaml") + " --ranks " + std::to_string(ranks) + " ";
    const Finished refused = shop.choir(plan + asked);
    EXPECT_EQ(refused.code, 2) << refused.output;
    EXPECT_TRUE(contains(refused, "cannot be laid out with ")) << refused.output;
    EXPECT_TRUE(contains(refused, fix)) << refused.output;
    const Finished accepted = shop.choir(plan + repaired + " train.batch=" + std::to_string(ranks));
    EXPECT_EQ(accepted.code, 0) << accepted.output;
  }
}

TEST(Plan, NamesTheNearestMicroBatchThatFitsTheBatch) {
  const Workshop shop;
  const std::string plan = "plan " + shop.path("tiny.yaml") + " --ranks 2 train.batch=12 parallel.micro_batch=";
  const Finished refused = shop.choir(plan + "4");
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_TRUE(contains(refused, "set train.batch to 8 or 16, or parallel.micro_batch to 3\n")) << refused.output;
  EXPECT_EQ(shop.choir(plan + "3").code, 0);
}

}  // namespace
}  // namespace choir::tests
