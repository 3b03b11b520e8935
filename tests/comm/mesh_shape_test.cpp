// MeshShape is arithmetic: checked exhaustively on all small shapes, against the formula at the top of mesh.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "framework/comm/mesh.h"

namespace choir::tests {
namespace {

template <class Check>
void for_all_shapes(Check&& check) {
  for (int tensor = 1; tensor <= 4; ++tensor)
    for (int context = 1; context <= 3; ++context)
      for (int data = 1; data <= 4; ++data)
        for (int pipeline = 1; pipeline <= 3; ++pipeline)
          check(MeshShape{.tensor = tensor, .context = context, .data = data, .pipeline = pipeline});
}

TEST(MeshShape, CoordinatesAndRanksAreOneToOne) {
  for_all_shapes([](const MeshShape& shape) {
    int rank = 0;  // tensor fastest, pipeline slowest
    for (int p = 0; p < shape.pipeline; ++p)
      for (int d = 0; d < shape.data; ++d)
        for (int c = 0; c < shape.context; ++c)
          for (int t = 0; t < shape.tensor; ++t) {
            const MeshShape::Coordinates at{.tensor = t, .context = c, .data = d, .pipeline = p};
            ASSERT_EQ(shape.rank(at), rank);
            ASSERT_EQ(shape.coordinates(rank), at);
            ++rank;
          }
    ASSERT_EQ(shape.ranks(), rank);
  });
}

TEST(MeshShape, GroupsDifferAlongOneAxisAndDivideTheRanks) {
  struct Along {
    Axis axis;
    int MeshShape::*size;
    int MeshShape::Coordinates::*index;
  };
  const Along axes[] = {{Axis::tensor, &MeshShape::tensor, &MeshShape::Coordinates::tensor},
                        {Axis::context, &MeshShape::context, &MeshShape::Coordinates::context},
                        {Axis::data, &MeshShape::data, &MeshShape::Coordinates::data},
                        {Axis::pipeline, &MeshShape::pipeline, &MeshShape::Coordinates::pipeline}};
  for_all_shapes([&](const MeshShape& shape) {
    for (const Along& axis : axes) {
      std::set<std::vector<int>> groups;
      for (int rank = 0; rank < shape.ranks(); ++rank) {
        const std::vector<int> group = shape.group(axis.axis, rank).members();
        std::vector<int> expected;
        for (int i = 0; i < shape.*axis.size; ++i) {
          MeshShape::Coordinates at = shape.coordinates(rank);
          at.*axis.index = i;
          expected.push_back(shape.rank(at));
        }
        ASSERT_EQ(group, expected);
        ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
        groups.insert(group);
      }
      std::size_t members = 0;
      for (const auto& group : groups) members += group.size();
      ASSERT_EQ(members, static_cast<std::size_t>(shape.ranks()));
    }
  });
}

TEST(MeshShape, GradientsAreSummedOverContextAndData) {
  const MeshShape shape{.tensor = 2, .context = 3, .data = 2, .pipeline = 2};
  for (int rank = 0; rank < shape.ranks(); ++rank) {
    const MeshShape::Coordinates at = shape.coordinates(rank);
    std::vector<int> expected;
    for (int other = 0; other < shape.ranks(); ++other)
      if (const auto there = shape.coordinates(other); there.tensor == at.tensor && there.pipeline == at.pipeline)
        expected.push_back(other);
    const Group group = shape.gradient_group(rank);
    EXPECT_EQ(group.members(), expected);
    EXPECT_EQ(group.members()[static_cast<std::size_t>(group.rank)], rank);
  }
}

TEST(MeshShape, ReplicasAndTheirShardsCoverTheGradientGroup) {
  for (const int shard : {0, 1, 2, 3, 6}) {
    const MeshShape shape{.tensor = 2, .context = 3, .data = 2, .pipeline = 2, .shard = shard};
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      const Group mine = shape.shard_group(rank), replicas = shape.replica_group(rank);
      EXPECT_EQ(mine.size, shard > 0 ? shard : 6);
      EXPECT_EQ(mine.members()[static_cast<std::size_t>(mine.rank)], rank);
      EXPECT_EQ(replicas.members()[static_cast<std::size_t>(replicas.rank)], rank);
      std::vector<int> all;
      for (const int peer : replicas.members())
        for (const int member : shape.shard_group(peer).members()) all.push_back(member);
      EXPECT_EQ(all, shape.gradient_group(rank).members());
    }
  }
}

}  // namespace
}  // namespace choir::tests
