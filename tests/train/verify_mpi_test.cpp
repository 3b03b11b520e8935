// What `choir verify` stands on: rounding stays well below its bound, and whichever collective call is left out, it is
// found, in every precision.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <set>
#include <sstream>

#include "framework/train/verify.h"
#include "tests/support/faulty_mesh.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

Config verify_config(const ModelConfig& model, const Layout& layout) {
  Config config = small_config(model, safe_adamw(0.01), layout);
  config.train.precision = Precision::bf16;  // and so f32 too
  return config;
}

/// Collective; rank 0 has the comparisons.
std::vector<Comparison> verify_with(const Config& config, const Fault& fault, std::vector<CallName>* calls = nullptr) {
  CallRing ring;
  const auto device = make_device();
  const MeshShape shape = mesh_shape(config, world_size());
  Mesh mesh = device_is_simulated() ? make_mesh(MPI_COMM_WORLD, shape, *device, ring)
                                    : make_faulty_mesh(MPI_COMM_WORLD, shape, *device, ring, fault, calls);
  Mesh alone = make_mesh(MPI_COMM_SELF, {}, *device, ring);
  return verify_layout(config, *device, mesh, alone);
}

/// With every kind of collective call, on any number of ranks. Parity tries all layouts.
std::vector<Layout> proved_layouts() {
  const int ranks = world_size();
  if (ranks == 4)
    return {{.name = "tensor 2, data 2, sequence, zero 1", .tensor = 2, .data = 2, .sequence = true, .zero = 1},
            {.name = "tensor, micro-batch 4", .tensor = ranks, .micro_batch = 4}};
  return {{.name = "pipeline, micro-batch 3", .micro_batch = 3, .pipeline = ranks},
          {.name = "tensor, sequence", .tensor = ranks, .sequence = true},
          {.name = "data, micro-batch 2", .data = ranks, .micro_batch = 2}};
}

class Verify : public ::testing::TestWithParam<SmallModel> {};

// "bf16 gradient of ...": the largest share of the tolerance that rounding takes, for each precision and kind.
TEST_P(Verify, RoundingStaysWellBelowTheBoundAndTheBoundBelowAQuarter) {
  struct Worst {
    Comparison comparison;
    double share = -1;
  };
  std::map<std::string, Worst> worst;
  // A classifier has one target for each sequence, whose gradient all positions share: fewer errors average out.
  const double share_of_tolerance = GetParam().config.is_classifier() ? 0.6 : 0.5;
  for (const Layout& layout : proved_layouts())
    for (const Comparison& c : verify_with(verify_config(GetParam().config, layout), {})) {
      EXPECT_TRUE(c.holds()) << layout.name << ": " << c.what << " differs by " << c.difference << ", tolerance "
                             << c.tolerance;
      // Decays' biases begin at 2, not at 0: the rounding of the value is more of an update, most in a second block.
      // The chain of an encoder-decoder has two stacks. Zeros are off by 1.
      const double most = c.what.ends_with(".decay.bias") ? 0.4 : GetParam().config.has_source() ? 0.3 : 0.25;
      EXPECT_LT(c.tolerance, most) << layout.name << ": " << c.what;
      EXPECT_LE(c.difference, share_of_tolerance * c.tolerance) << layout.name << ": " << c.what;
      Worst& of_kind = worst[c.what.substr(0, c.what.find(" of "))];
      const double share = c.tolerance > 0 ? c.difference / c.tolerance : 0;
      if (share > of_kind.share) of_kind = {{c.what + ", " + layout.name, c.difference, c.tolerance}, share};
    }
  for (const auto& [kind, w] : worst)
    std::printf("%-18s bound %.2g of the tensor, measured %.2g: %s\n", kind.c_str(), w.comparison.tolerance,
                w.comparison.difference, w.comparison.what.c_str());
}

INSTANTIATE_TEST_SUITE_P(Models, Verify, ::testing::ValuesIn(models_under_test()),
                         [](const auto& instance) { return instance.param.name; });

/// The calls of rank 0, then those that only other ranks make. Collective.
std::vector<CallName> calls_of_all_ranks(const std::vector<CallName>& mine) {
  std::string text;
  for (const auto& [axis, verb, label] : mine) text += axis + "\t" + verb + "\t" + label + "\n";
  std::vector<CallName> all;
  for (int rank = 0; rank < world_size(); ++rank) {
    std::string theirs = text;
    auto length = static_cast<int>(theirs.size());
    MPI_Bcast(&length, 1, MPI_INT, rank, MPI_COMM_WORLD);
    theirs.resize(static_cast<std::size_t>(length));
    MPI_Bcast(theirs.data(), length, MPI_CHAR, rank, MPI_COMM_WORLD);
    const std::set<CallName> before(all.begin(), all.end());
    std::istringstream lines(theirs);
    for (std::string axis, verb, label;
         std::getline(lines, axis, '\t') && std::getline(lines, verb, '\t') && std::getline(lines, label);)
      if (!before.contains({axis, verb, label})) all.emplace_back(axis, verb, label);
  }
  return all;
}

/// An exchange that only sends is missed at its other end, which has a call of its own.
bool only_sends(const CallName& call) {
  const auto& [axis, verb, label] = call;
  return verb == "exchange" && label.find(" to stage ") != std::string::npos &&
         label.find(" from stage ") == std::string::npos;
}

// A verify that lets one of them pass proves nothing about a layout that lacks it.
class VerifyWithoutACollective : public ::testing::TestWithParam<Layout> {};

TEST_P(VerifyWithoutACollective, SaysMismatchInEveryPrecisionWhicheverCallIsMissing) {
  if (device_is_simulated()) GTEST_SKIP() << "the faults are planted in MPI's communicators, a GPU's are NCCL's";
  if (world_size() != 2) GTEST_SKIP() << "one rank makes no collective call, and two make every one";
  const Layout& layout = GetParam();
  Config config = verify_config(small_model("window_8_of_2"), layout);
  config.model.layers = 1;
  config.train.batch = 4;
  config.optimizer.clip = 0.01;  // the gradient norm matters too
  // Without more norms, the halves of the vectors of a block that two ranks update begin with the same values, and a
  // rank that took its own for those of the other would be right.
  config.model.attention.norm = layout.zero == 1;
  // The calls of one step, in order.
  std::vector<CallName> calls;
  {
    CallRing ring;
    Device device(1);
    const MeshShape shape = mesh_shape(config, world_size());
    Mesh mesh = make_faulty_mesh(MPI_COMM_WORLD, shape, device, ring, {}, &calls);
    Trainer(config, device, mesh).step(1, read_random(config.model));
  }
  ASSERT_FALSE(calls.empty());
  calls = calls_of_all_ranks(calls);
  std::erase_if(calls, only_sends);
  const auto ends_the_program = [](const CallName& call) { return std::get<2>(call) == "parts of the model"; };
  std::erase_if(calls, ends_the_program);
  std::map<CallName, int> seen, of;
  for (const CallName& call : calls) ++of[call];
  for (const CallName& call : calls) {
    const auto& [axis, verb, label] = call;
    const int occurrence = seen[call]++;
    const std::string what = layout.name + ": " + verb + " of " + axis + " (" + label + "), " +
                             std::to_string(occurrence + 1) + " of " + std::to_string(of[call]);
    const auto comparisons = verify_with(
        config, {.axis = axis, .verb = verb, .label = label, .occurrence = occurrence, .of = of[call], .damage = {}});
    if (world_rank() != 0) continue;
    std::set<std::string> found;
    for (const Comparison& c : comparisons)
      if (!c.holds()) found.insert(c.what.substr(0, c.what.find(' ')));
    EXPECT_TRUE(found.contains("f32")) << what;
    EXPECT_TRUE(found.contains("bf16")) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, VerifyWithoutACollective,
                         ::testing::Values(Layout{.name = "tensor", .tensor = 2},
                                           Layout{.name = "tensor_sequence", .tensor = 2, .sequence = true},
                                           Layout{.name = "data", .data = 2},
                                           Layout{.name = "data_zero", .data = 2, .zero = 1},
                                           Layout{.name = "data_zero_3", .data = 2, .zero = 3},
                                           Layout{.name = "ring", .context = 2, .context_kind = ContextKind::ring},
                                           Layout{.name = "heads", .context = 2, .context_kind = ContextKind::heads},
                                           Layout{.name = "gather", .context = 2, .context_kind = ContextKind::gather},
                                           Layout{.name = "pipeline", .micro_batch = 2, .pipeline = 2}),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace choir::tests
