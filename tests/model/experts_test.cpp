// Layers of experts, and attention of which tokens choose heads: what a token chooses, and what is dropped, never
// depends on later tokens.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/model/double_run.h"

namespace choir::tests {
namespace {

struct ExpertsInAModel : ::testing::Test {
  ExpertsInAModel() : device(1), mesh(make_counting_mesh(0, {}, device, ring)) {}

  /// The loss of the first `counted` tokens of a sequence in which the tokens from `changed` on are others.
  double loss_of_first(DoubleRun& run, std::int64_t counted, std::int64_t changed) {
    const std::int64_t length = run.model.context;
    SampleBuffer sample(run.model);
    random_sample(run.model, random_key_of_tests, 3, sample.view());
    std::vector<std::int32_t>&ids = sample.inputs, &targets = sample.targets;
    for (std::int64_t t = 0; t < length; ++t) {
      const auto at = static_cast<std::size_t>(t);
      if (t >= changed) ids[at] = static_cast<std::int32_t>((ids[at] + 1) % run.model.vocabulary);
      if (t >= counted) targets[at] = -1;
    }
    Context here = run.context();
    here.rows = whole_rows(1, length);
    const Tensor sum = run.runtime.empty({1}, DType::f64);
    ops::fill(run.runtime, sum, 0);
    Stage::Saved saved;
    run.stage.forward(0, {},
                      {.ids = ops::to_device(run.runtime, ids, DType::i32),
                       .targets = ops::to_device(run.runtime, targets, DType::i32)},
                      {.sum = sum}, saved, here, run.shards);
    double loss = 0;
    ops::download(run.runtime, sum, &loss);
    return loss;
  }

  CallRing ring;
  Device device;
  Mesh mesh;  // of one rank: no verb of it moves anything
};

TEST_F(ExpertsInAModel, ALaterTokenChangesNothingBefore) {
  for (const char* name : {"experts", "chosen_heads"}) {
    SCOPED_TRACE(name);
    ModelConfig model = small_model(name);
    model.context = 16;
    model.experts.capacity = model.attention.routing.capacity = 0.7;
    DoubleRun run(model, device, mesh);
    run.loss(1, 1, false);
    ASSERT_GT(run.dropped + run.heads_dropped, 0) << "no token is dropped: the test shows nothing";
    for (std::int64_t t = 1; t < model.context; ++t) {
      EXPECT_EQ(loss_of_first(run, t, t), loss_of_first(run, t, model.context)) << "token " << t;
      EXPECT_NE(loss_of_first(run, t + 1, t), loss_of_first(run, t + 1, model.context)) << "token " << t;
    }
  }
}

TEST_F(ExpertsInAModel, AllHeadsWithEqualScoresAreAttentionOfAllHeads) {
  ModelConfig model = small_model("chosen_heads");
  model.attention.routing = {.chosen = model.attention.heads, .capacity = 0, .balance_weight = 0};
  DoubleRun routed(model, device, mesh);
  for (std::int64_t i = 0; i < model.layers; ++i) {
    const Parameter& router = *routed.store.find("blocks." + std::to_string(i) + ".attention.router.weight");
    std::fill_n(router.value().data<double>(), router.held.count(), 0.0);
  }
  const double loss = routed.loss(2, 2, true);
  model.attention.routing = {};
  DoubleRun plain(model, device, mesh);
  EXPECT_NEAR(plain.loss(2, 2, true), loss, 1e-13 * loss);
  for (const char* name :
       {"blocks.0.attention.q.weight", "blocks.0.attention.k.weight", "blocks.1.attention.v.weight"}) {
    const Parameter &a = *routed.store.find(name), &b = *plain.store.find(name);
    for (std::int64_t i = 0; i < a.held.count(); ++i)
      ASSERT_NEAR(a.gradient().data<double>()[i], b.gradient().data<double>()[i], 1e-13) << name;
  }
}

TEST_F(ExpertsInAModel, HeadsComputeTheRowsThatAreKept) {
  DoubleRun run(small_model("chosen_heads"), device, mesh);
  run.loss(4, 2, false);
  const double choices = 4.0 * static_cast<double>(run.model.context * run.model.layers) * 3;
  EXPECT_GT(run.heads_dropped, 0);
  EXPECT_EQ(std::accumulate(run.rows_of_heads.begin(), run.rows_of_heads.end(), 0.0), choices - run.heads_dropped);
}

TEST_F(ExpertsInAModel, TheGradientOfABiasIsTheChoicesAboveTheMean) {
  DoubleRun run(small_model("biased_experts"), device, mesh);
  const std::int64_t experts = run.model.experts.count;
  for (const std::int64_t micro_batch : {4, 1}) {
    run.loss(4, micro_batch, true);
    for (const auto& [layer, choices] : run.choices.choices) {
      std::vector<double> expected(static_cast<std::size_t>(experts), -static_cast<double>(choices.size()));
      for (const std::int32_t e : choices) expected[static_cast<std::size_t>(e)] += static_cast<double>(experts);
      const Parameter& bias = *run.store.find(layer + ".router.bias");
      const double* gradient = bias.gradient().data<double>();
      EXPECT_EQ(std::vector<double>(gradient, gradient + experts), expected) << layer;
      EXPECT_NE(expected, std::vector<double>(expected.size())) << layer << " is in balance: the test shows nothing";
    }
  }
}

TEST_F(ExpertsInAModel, ABiasMakesTokensChooseAnotherExpert) {
  DoubleRun run(small_model("biased_experts"), device, mesh);
  run.loss(2, 2, true);
  const ChoiceRecord before = run.choices;
  for (const auto& [layer, choices] : before.choices)
    run.store.find(layer + ".router.bias")->value().data<double>()[3] = 1;
  run.loss(2, 2, true);
  for (const auto& [layer, choices] : run.choices.choices) {
    const auto chosen = std::count(choices.begin(), choices.end(), 3),
               rows = std::ssize(choices) / run.model.experts.chosen;
    EXPECT_EQ(chosen, rows) << layer;
    EXPECT_LT(std::count(before.choices.at(layer).begin(), before.choices.at(layer).end(), 3), rows) << layer;
  }
}

TEST_F(ExpertsInAModel, WithoutALimitNothingIsDropped) {
  ModelConfig model = small_model("experts");
  DoubleRun limited(model, device, mesh);
  limited.loss(4, 4, false);
  EXPECT_GT(limited.dropped, 0);
  model.experts.capacity = 0;
  DoubleRun run(model, device, mesh);
  run.loss(4, 4, false);
  EXPECT_EQ(run.dropped, 0);
}

TEST_F(ExpertsInAModel, GenerationDropsWhatTrainingDrops) {
  ModelConfig model = small_model("experts");
  model.context = 16;
  model.experts.capacity = 0.7;
  model.experts.balance = ExpertBalance::none;
  DoubleRun run(model, device, mesh);
  const double trained = run.loss(1, 1, false) * static_cast<double>(model.context);
  ASSERT_GT(run.dropped, 0) << "no token is dropped: the test shows nothing";
  EXPECT_NEAR(generated_loss(run, 0, {1}), trained, 1e-12 * trained);
  EXPECT_NEAR(generated_loss(run, 0, {1}), trained, 1e-12 * trained) << "once more with other caches";
}

}  // namespace
}  // namespace choir::tests
