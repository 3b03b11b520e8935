// Communicators of a mesh connect the ranks that MeshShape says, for every way to divide this job's ranks.
#include <gtest/gtest.h>

#include "framework/core/error.h"
#include "tests/comm/ranks.h"

namespace choir::tests {
namespace {

std::vector<MeshShape> shapes_of(int ranks) {
  std::vector<MeshShape> shapes;
  for (int tensor = 1; tensor <= ranks; ++tensor)
    for (int context = 1; tensor * context <= ranks; ++context)
      for (int data = 1; tensor * context * data <= ranks; ++data)
        for (int shard = 1; shard <= context * data; ++shard)
          if (ranks % (tensor * context * data) == 0 && context * data % shard == 0)
            shapes.push_back({.tensor = tensor,
                              .context = context,
                              .data = data,
                              .pipeline = ranks / (tensor * context * data),
                              .shard = shard});
  return shapes;
}

TEST(Mesh, EveryAxisConnectsItsGroupInRankOrder) {
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  for (const MeshShape& shape : shapes_of(world_size())) {
    Ranks ranks(shape);
    EXPECT_EQ(ranks.mesh.here, shape.coordinates(world_rank));
    const auto check = [&](Communicator& comm, const std::vector<int>& members) {
      ASSERT_EQ(comm.size(), static_cast<int>(members.size()));
      EXPECT_EQ(members[static_cast<std::size_t>(comm.rank())], world_rank);
      const Tensor mine = ranks.tensor(std::vector<std::int32_t>{world_rank});
      const Tensor all = ranks.empty({comm.size()}, DType::i32);
      comm.all_gather(mine, all, ranks.device.compute(), "members");
      EXPECT_EQ(values_of<std::int32_t>(all), std::vector<std::int32_t>(members.begin(), members.end()));
    };
    check(*ranks.mesh.tensor, shape.group(Axis::tensor, world_rank).members());
    check(*ranks.mesh.context, shape.group(Axis::context, world_rank).members());
    check(*ranks.mesh.gradient, shape.gradient_group(world_rank).members());
    check(*ranks.mesh.shard, shape.shard_group(world_rank).members());
    check(*ranks.mesh.replica, shape.replica_group(world_rank).members());
    check(*ranks.mesh.pipeline, shape.group(Axis::pipeline, world_rank).members());
    std::vector<int> everyone;
    for (int r = 0; r < world_size(); ++r) everyone.push_back(r);
    check(*ranks.mesh.world, everyone);
  }
}

TEST(Mesh, RefusesAnotherNumberOfRanks) {
  try {
    Ranks ranks(MeshShape{.tensor = world_size(), .data = 3});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("x data 3 x pipeline 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace choir::tests
