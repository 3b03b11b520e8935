// A flipped bit of a master or of the optimizer's state is found and named, in layouts with replicas and without.
#include <bit>
#include <random>

#include "framework/train/state_check.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

/// A tensor of a rank's state, and its elements.
struct Held {
  std::string name;
  Tensor values;
};

std::vector<Held> held(Trainer& trainer) {
  std::vector<Held> all;
  for (const ParameterPart& part : parts_in(trainer.parameters(), trainer.shards().updated(), false)) {
    all.push_back({part.parameter->name, trainer.shards().at(part.flat(), &Bucket::master)});
    const std::int64_t begin = trainer.optimizer().state_offset(part.flat_begin);
    for (const Optimizer::StateArray& array : trainer.optimizer().state())
      all.push_back({"optimizer." + array.name + "." + part.parameter->name,
                     array.values.slice_columns(begin, begin + part.flat().count())});
  }
  return all;
}

void flip(Runtime& runtime, const Tensor& values, std::int64_t element, int bit) {
  const Tensor one = values.slice_columns(element, element + 1);
  std::uint32_t bits = 0;
  ops::download(runtime, one, &bits);
  bits ^= 1u << bit;
  ops::upload(runtime, &bits, one);
}

std::vector<Layout> layouts_with_state(int ranks) {
  std::vector<Layout> all = {{.name = "tensor", .tensor = ranks},
                             {.name = "data", .data = ranks},
                             {.name = "data, zero 3, micro-batch 1", .data = ranks, .zero = 3, .micro_batch = 1},
                             {.name = "context", .context = ranks}};
  if (ranks == 4) {
    all.push_back({.name = "tensor 2, data 2", .tensor = 2, .data = 2});
    all.push_back({.name = "data, zero 3, shard 2", .data = 4, .zero = 3, .shard = 2});
    all.push_back({.name = "pipeline 2, data 2", .data = 2, .micro_batch = 3, .pipeline = 2});
  }
  if (device_is_simulated()) all.resize(2);
  return all;
}

TEST(StateCheck, FindsEveryFlippedBitAndNamesTensorAndRank) {
  const int flips = device_is_simulated() ? 3 : 100;
  const ModelConfig model = small_model("gpt");
  for (const Layout& layout : layouts_with_state(world_size())) {
    SCOPED_TRACE(layout.name);
    SmallRun run(model, safe_adamw(0.01), layout);
    run.step(0);
    StateCheck check(run.trainer);
    EXPECT_EQ(check.compare(), "");
    check.remember();
    EXPECT_EQ(check.unchanged(), "");
    const std::vector<Held> all = held(run.trainer);
    // Ranks that hold the same, without this one: all of a group in these layouts, or none.
    const bool sharded = layout.zero > 0;
    const int holders = sharded ? (layout.shard > 0 ? layout.data / layout.shard : 1) : layout.data * layout.context;
    std::mt19937 random(1);  // the same on all ranks
    int found = 0;
    for (int i = 0; i < flips; ++i) {
      const int rank = static_cast<int>(random() % static_cast<unsigned>(world_size()));
      const std::size_t tensor = random();
      const std::int64_t element = static_cast<std::int64_t>(random());
      const int bit = static_cast<int>(random() % 32);
      const bool here = world_rank() == rank;
      const Held& victim = all[tensor % all.size()];
      check.remember();
      const std::int64_t place = element % victim.values.count();
      if (here) flip(run.trainer.runtime(), victim.values, place, bit);
      const std::string text = holders > 1 ? check.compare() : check.unchanged();
      if (here) flip(run.trainer.runtime(), victim.values, place, bit);
      const std::string at = std::string(" ").append(std::to_string(rank));
      if (here) {
        EXPECT_TRUE(text.starts_with(victim.name + " on rank")) << text << ", not " << victim.name;
        EXPECT_NE(text.find(at), std::string::npos) << text;
        if (holders != 2) {
          EXPECT_EQ(text, victim.name + " on rank" + at);
        }
      }
      found += text.empty() ? 0 : 1;
      check.unchanged();
    }
    EXPECT_EQ(found, flips);
    EXPECT_EQ(check.compare(), "");
  }
}

TEST(StateCheck, TrainingInAnyLayoutKeepsWhatRanksHoldEqual) {
  if (device_is_simulated()) GTEST_SKIP() << "too many steps for an interpreter";
  const ModelConfig model = small_model("biased_experts");
  OptimizerConfig optimizer = safe_adamw(0.01);
  optimizer.moments = Moments::bf16;  // rounded at random, alike on all ranks that hold them
  for (const Layout& layout : layouts(world_size(), model)) {
    SCOPED_TRACE(layout.name);
    SmallRun run(model, optimizer, layout);
    StateCheck check(run.trainer);
    for (int step = 0; step < 3; ++step) {
      run.step(step);
      EXPECT_EQ(check.compare(), "");
    }
  }
}

}  // namespace
}  // namespace choir::tests
