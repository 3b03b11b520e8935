// Attention whose keys and values are of several streams: what a token reads never depends on later tokens, and it
// depends on all streams. Nor does what it chooses, of experts and heads.
#include <gtest/gtest.h>

#include "tests/model/double_run.h"

namespace choir::tests {
namespace {

struct Case {
  std::string model;
  Sources sources{};
};

struct SourcesOfAModel : ::testing::TestWithParam<Case> {
  SourcesOfAModel() : device(1), mesh(make_counting_mesh(0, {}, device, ring)) {}

  /// The loss of the first `counted` targets of a pair with other tokens from `changed` on, and from `changed_source`
  /// on in its source.
  double loss_of_first(DoubleRun& run, std::int64_t counted, std::int64_t changed, std::int64_t changed_source) {
    const std::int64_t length = run.model.context;
    SampleBuffer sample(run.model);
    random_sample(run.model, random_key_of_tests, 3, sample.view());
    std::ranges::replace_if(
        sample.source, [](std::int32_t id) { return id < 0; }, 7);
    const auto change = [&](std::vector<std::int32_t>& ids, std::int64_t begin) {
      for (auto id = ids.begin() + begin; id != ids.end(); ++id)
        *id = static_cast<std::int32_t>((*id + 1) % run.model.vocabulary);
    };
    change(sample.inputs, changed);
    change(sample.source, changed_source);
    std::fill(sample.targets.begin() + counted, sample.targets.end(), -1);
    Context here = run.context();
    here.rows = whole_rows(1, length);
    BatchRows held(run.model, here.rows, whole_rows(source_texts(run.model), run.model.source_length()));
    held.set(0, sample);
    here.source = held.upload_source(run.runtime);
    const Tensor sum = run.runtime.empty({1}, DType::f64);
    ops::fill(run.runtime, sum, 0);
    Stage::Saved saved;
    run.stage.forward(0, {}, held.upload(run.runtime), {.sum = sum}, saved, here, run.shards);
    double loss = 0;
    ops::download(run.runtime, sum, &loss);
    return loss;
  }

  CallRing ring;
  Device device;
  Mesh mesh;  // of one rank: no verb of it moves anything
};

TEST_P(SourcesOfAModel, ALaterTokenChangesNothingBefore) {
  ModelConfig model = small_model(GetParam().model);
  model.attention.sources = GetParam().sources;
  model.dropout = model.attention.dropout = 0;
  model.experts.capacity = model.attention.routing.capacity = 0.7;
  DoubleRun run(model, device, mesh);
  run.loss(1, 1, false);
  EXPECT_EQ(run.dropped > 0 && run.heads_dropped > 0, model.experts.count > 0);
  for (std::int64_t t = 1; t < model.context; ++t) {
    const double loss = loss_of_first(run, t, model.context, model.context);
    EXPECT_EQ(loss_of_first(run, t, t, model.context), loss) << "token " << t;
    EXPECT_NE(loss_of_first(run, t, t - 1, model.context), loss) << "token " << t;
  }
  EXPECT_NE(loss_of_first(run, model.context, model.context, 0),
            loss_of_first(run, model.context, model.context, model.context));
}

INSTANTIATE_TEST_SUITE_P(Streams, SourcesOfAModel,
                         ::testing::Values(Case{"aligned_sources", {.keys = TokenStream::target}},
                                           Case{"aligned_sources", {.values = TokenStream::target}},
                                           Case{"aligned_sources", {}},
                                           Case{"aligned_sources", {.values = TokenStream::second_source}},
                                           Case{"chosen_pairs", {}}));

}  // namespace
}  // namespace choir::tests
