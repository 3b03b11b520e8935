// On device `count` verbs touch nothing, but the ledger holds their messages and the allocator their workspace.
#include <gtest/gtest.h>

#include "framework/comm/mesh.h"
#include "framework/comm/reduction.h"
#include "framework/core/error.h"

namespace choir::tests {
namespace {

struct CountingMesh : ::testing::Test {
  Device device{CountOnly{}, 1};
  CallRing ring;
  MeshShape shape{.tensor = 4, .data = 2};
  Mesh mesh = make_counting_mesh(5, shape, device, ring);
  Stream& stream = device.compute();

  Tensor empty(Shape s, DType type = DType::f32) {
    return {device.allocator(), std::move(s), type, MemoryKind::temporary};
  }
};

TEST_F(CountingMesh, SeesTheMeshAsTheRankWould) {
  EXPECT_EQ(mesh.here, shape.coordinates(5));
  EXPECT_EQ(mesh.tensor->rank(), 1);
  EXPECT_EQ(mesh.tensor->size(), 4);
  EXPECT_EQ(mesh.gradient->rank(), 1);
  EXPECT_EQ(mesh.pipeline->size(), 1);
  EXPECT_EQ(mesh.world->rank(), 5);
}

TEST_F(CountingMesh, CountsMessagesByAxisAndVerb) {
  device.ledger().enabled = true;
  const Tensor small = empty({10, 6}), large = empty({40, 6});
  mesh.tensor->all_reduce(small, Reduce::sum, stream, "a");
  mesh.tensor->all_reduce(small, Reduce::sum, stream, "b");
  mesh.tensor->all_gather(small, large, stream, "c");
  mesh.tensor->reduce_scatter(large, small, Reduce::sum, stream, "d");
  mesh.tensor->all_to_all(large, empty({40, 6}), stream, "e");
  mesh.tensor->broadcast(small, 0, stream, "f");
  mesh.tensor->exchange({{small, 0}, {large, 2}}, {{empty({1}), 3}}, stream, "g");
  mesh.tensor->barrier(stream, "h");
  mesh.gradient->all_reduce(empty({8}, DType::bf16), Reduce::sum, stream, "i");
  mesh.context->all_reduce(small, Reduce::sum, stream, "one rank: no message");
  mesh.context->all_gather(small, empty({10, 6}), stream, "one rank: no message, and no copy of what is not there");

  struct Row {
    std::string axis, verb;
    std::int64_t messages;
    double bytes;
  };
  const std::vector<Row> expected = {{"tensor", "all_reduce", 2, 480},     {"tensor", "all_gather", 1, 960},
                                     {"tensor", "reduce_scatter", 1, 960}, {"tensor", "all_to_all", 1, 960},
                                     {"tensor", "broadcast", 1, 240},      {"tensor", "exchange", 1, 1200},
                                     {"tensor", "barrier", 1, 0},          {"data", "all_reduce", 1, 16}};
  const auto& traffic = device.ledger().traffic();
  ASSERT_EQ(traffic.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(traffic[i].axis, expected[i].axis);
    EXPECT_EQ(traffic[i].verb, expected[i].verb);
    EXPECT_EQ(traffic[i].messages, expected[i].messages);
    EXPECT_EQ(traffic[i].bytes, expected[i].bytes);
  }
  EXPECT_TRUE(ring.calls().empty());
}

TEST_F(CountingMesh, TakesTheWorkspaceOfTheRealDevice) {
  const Tensor x =
      empty({1 << 20});  // 4 MB over 4 ranks: a block of 1 MB each, in pieces of 1 MB on all ranks together
  device.allocator().reset_peak();
  mesh.tensor->all_reduce(x, Reduce::sum, stream, "a");
  EXPECT_EQ(device.allocator().at_peak().bytes[static_cast<int>(MemoryKind::workspace)], 1 << 20);
  EXPECT_EQ(device.allocator().in_use().bytes[static_cast<int>(MemoryKind::workspace)], 0);
}

TEST_F(CountingMesh, ChecksAsTheRealOneDoes) {
  EXPECT_THROW(mesh.tensor->all_gather(empty({10}), empty({41}), stream, "a"), Error);
}

// The workspace holds what MpiCommunicator puts there: every rank's block of a piece, or a small tensor of every rank.
TEST(Reduction, WorkspaceHoldsEveryPiece) {
  for (const int ranks : {2, 3, 4, 7, 64})
    for (const DType type : {DType::f32, DType::bf16, DType::f64, DType::u8})
      for (const std::int64_t count : {0, 1, 2, 5, 100, 1000, 4096, 65536, 100'003, 10'000'000}) {
        const std::int64_t block = (count + ranks - 1) / ranks;
        const std::int64_t bytes = reduction_workspace_bytes(block, ranks, type);
        EXPECT_GE(bytes, ranks * reduction_block(block, ranks, type) * size_of(type));
        if (ranks * count * size_of(type) <= small_reduction_bytes) {
          EXPECT_GE(bytes, ranks * count * size_of(type));
        }
        EXPECT_LE(bytes, std::max<std::int64_t>(1 << 20, ranks * (64 << 10)));
        EXPECT_EQ(reduction_block(block, ranks, type) > 0, count > 0);
      }
}

}  // namespace
}  // namespace choir::tests
