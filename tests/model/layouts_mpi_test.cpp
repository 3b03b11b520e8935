// Layouts in double: gradients of every layout are those of one rank to rounding. What f32 would hide
// in its rounding (a row counted twice, a mask that is one position off at the border between two ranks) shows here.
//
// Error model: framework/train/comparison.h; the bound is 3e-14 for these models in double.
#include <gtest/gtest.h>

#include "tests/model/double_run.h"

namespace choir::tests {
namespace {

struct Split {
  std::string name;
  MeshShape shape;
  bool sequence = false;
  Recompute recompute = Recompute::none;
  int zero = 0;
  std::int64_t micro_batch = 1;
  ContextKind kind = ContextKind::automatic;
};

std::vector<Split> splits() {
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  std::vector<Split> all = {
      {.name = "tensor", .shape = {.tensor = ranks}, .micro_batch = 4},
      {.name = "tensor, sequence", .shape = {.tensor = ranks}, .sequence = true, .micro_batch = 4},
      {.name = "tensor, sequence, ragged rows",
       .shape = {.tensor = ranks},
       .sequence = true,
       .recompute = Recompute::attention},
      {.name = "data", .shape = {.data = ranks}},
      {.name = "data, zero 1", .shape = {.data = ranks}, .zero = 1},
      {.name = "data, zero 2", .shape = {.data = ranks}, .zero = 2},
      {.name = "data, zero 3, recompute", .shape = {.data = ranks}, .recompute = Recompute::block, .zero = 3},
  };
  if (ranks == 4)
    for (const int zero : {1, 2, 3})
      all.push_back({.name = "tensor 2, data 2, zero " + std::to_string(zero),
                     .shape = {.tensor = 2, .data = 2},
                     .sequence = true,
                     .zero = zero});
  using enum ContextKind;
  all.push_back({.name = "context, ring", .shape = {.context = ranks}, .micro_batch = 3, .kind = ring});
  all.push_back(
      {.name = "context, gather", .shape = {.context = ranks}, .recompute = Recompute::attention, .kind = gather});
  all.push_back({.name = "context, heads", .shape = {.context = ranks}, .micro_batch = 4, .kind = heads});
  if (ranks == 4)
    for (const ContextKind kind : {ring, gather, heads})
      all.push_back({.name = std::string("tensor 2, context 2, ") + name_of(kind),
                     .shape = {.tensor = 2, .context = 2},
                     .sequence = true,
                     .micro_batch = 2,
                     .kind = kind});
  all.push_back({.name = "expert", .shape = {.data = ranks, .expert = ranks}});
  all.push_back({.name = "expert, zero 3, recompute",
                 .shape = {.data = ranks, .expert = ranks},
                 .recompute = Recompute::feed_forward,
                 .zero = 3});
  all.push_back({.name = "expert and context", .shape = {.context = ranks, .expert = ranks}, .micro_batch = 2});
  if (ranks == 4) {
    all.push_back({.name = "tensor 2, expert 2", .shape = {.tensor = 2, .data = 2, .expert = 2}, .sequence = true});
    all.push_back({.name = "context 2, data 2, expert 2, zero 2",
                   .shape = {.context = 2, .data = 2, .expert = 2},
                   .zero = 2,
                   .micro_batch = 3});
    all.push_back({.name = "context 2, data 2, expert 4", .shape = {.context = 2, .data = 2, .expert = 4}});
    all.push_back(
        {.name = "data 4, expert 2, zero 2, shard 2", .shape = {.data = 4, .shard = 2, .expert = 2}, .zero = 2});
    all.push_back({.name = "data 4, expert 2, zero 3", .shape = {.data = 4, .expert = 2}, .zero = 3});
  }
  return all;
}

class Layouts : public ::testing::TestWithParam<SmallModel> {};

TEST_P(Layouts, GradientsInDoubleAreThoseOfOneRank) {
  const ModelConfig model = GetParam().config;
  constexpr std::int64_t batch = 12;
  CallRing ring;
  Device device(1);
  Mesh alone = make_mesh(MPI_COMM_SELF, {}, device, ring);
  DoubleRun one(model, device, alone);
  const double loss = one.loss(batch, batch, true);
  const Tensors gradients = one.gradients();
  const double bound = rounding_bound(model, batch * model.context, DType::f64);
  for (const Split& split : splits()) {
    if (split.shape.expert > 1 && model.experts.count == 0) continue;
    SCOPED_TRACE(split.name);
    Mesh mesh = make_mesh(MPI_COMM_WORLD, split.shape, device, ring);
    DoubleRun run(model, device, mesh, split.sequence, split.recompute, split.zero, split.kind);
    EXPECT_NEAR(run.loss(batch, split.micro_batch, true), loss, bound * loss);
    const double worst = expect_holds(compare("gradient of ", gradients, run.gradients(), bound));
    RecordProperty(split.name + ": error / bound", std::to_string(worst));
  }
}

TEST_P(Layouts, GenerationOnAllRanksIsThatOfOneRank) {
  if (GetParam().config.is_classifier()) GTEST_SKIP() << "a classifier has no logits of tokens";
  ModelConfig model = GetParam().config;
  model.dropout = model.attention.dropout = 0;
  CallRing ring;
  Device device(1);
  Mesh alone = make_mesh(MPI_COMM_SELF, {}, device, ring);
  DoubleRun one(model, device, alone);
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  Mesh mesh = make_mesh(MPI_COMM_WORLD, {.tensor = ranks}, device, ring);
  DoubleRun run(model, device, mesh);
  const double expected = generated_loss(one, 5, {2, 1});
  EXPECT_NEAR(generated_loss(run, 5, {2, 1}), expected, 1e-12 * expected);
}

INSTANTIATE_TEST_SUITE_P(Models, Layouts, ::testing::ValuesIn(small_models()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
