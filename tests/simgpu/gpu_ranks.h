// What a multi-process test of collectives between simulated GPUs needs: one GPU per rank, and a mesh over all ranks.
#pragma once

#include <gtest/gtest.h>
#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "framework/comm/mesh.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {

inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

struct GpuRanks {
  explicit GpuRanks(const MeshShape& shape = {.tensor = world_size()})
      : device(GpuOptions{}, 1), mesh(make_mesh(MPI_COMM_WORLD, shape, device, ring)) {}

  Tensor empty(Shape shape, DType type) {
    return Tensor(device.allocator(), std::move(shape), type, MemoryKind::temporary);
  }
  template <class T>
  Tensor tensor(const std::vector<T>& values) {
    Tensor result = empty({static_cast<std::int64_t>(values.size())}, dtype_of<T>);
    device.upload(values.data(), result.raw(), result.bytes());
    return result;
  }
  /// After everything enqueued on the compute stream.
  template <class T>
  std::vector<T> values_of(const Tensor& tensor) {
    std::vector<T> values(static_cast<std::size_t>(tensor.count()));
    device.download(tensor.raw(), values.data(), tensor.bytes());
    return values;
  }

  CallRing ring;
  Device device;
  Mesh mesh;
};

/// A test on fresh simulated GPUs, in a random order that is different on every rank; findings fail it unless the test
/// takes them.
class GpuRanksTest : public ::testing::Test {
 protected:
  GpuRanksTest() {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    configure({.seed = static_cast<unsigned>(rank) + 1u, .hang_seconds = 20});
    ranks = std::make_unique<GpuRanks>();
  }
  ~GpuRanksTest() override {
    ranks.reset();
    for (const Finding& finding : take_findings()) ADD_FAILURE() << finding.kind << ": " << finding.text;
  }

  std::unique_ptr<GpuRanks> ranks;
};

}  // namespace choir::simgpu::tests
