// MeshShape is arithmetic: checked exhaustively on all small shapes, against the formula at the top of mesh.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "framework/comm/mesh.h"
#include "framework/core/error.h"

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
  struct Axis {
    const char* name;
    int MeshShape::*size;
    int MeshShape::Coordinates::*index;
  };
  const Axis axes[] = {{"tensor", &MeshShape::tensor, &MeshShape::Coordinates::tensor},
                       {"context", &MeshShape::context, &MeshShape::Coordinates::context},
                       {"data", &MeshShape::data, &MeshShape::Coordinates::data},
                       {"pipeline", &MeshShape::pipeline, &MeshShape::Coordinates::pipeline}};
  for_all_shapes([&](const MeshShape& shape) {
    for (const Axis& axis : axes) {
      std::set<std::vector<int>> groups;
      for (int rank = 0; rank < shape.ranks(); ++rank) {
        const std::vector<int> group = shape.group(axis.name, rank);
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

TEST(MeshShape, UnknownAxisIsNamed) {
  try {
    MeshShape().group("tensr", 0);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("'tensr'"), std::string::npos);
  }
}

}  // namespace
}  // namespace choir::tests
