// What a multi-process test of collectives needs: a device, a ring and a mesh over all ranks of the job.
#pragma once

#include <mpi.h>

#include <vector>

#include "framework/comm/mesh.h"

namespace choir::tests {

inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

struct Ranks {
  explicit Ranks(const MeshShape& shape, StreamMode streams = StreamMode::immediate)
      : device(1, streams), mesh(make_mesh(MPI_COMM_WORLD, shape, device, ring)) {}
  /// All ranks on the tensor axis.
  explicit Ranks(StreamMode streams = StreamMode::immediate) : Ranks(MeshShape{.tensor = world_size()}, streams) {}

  Tensor empty(Shape shape, DType type) {
    return Tensor(device.allocator(), std::move(shape), type, MemoryKind::temporary);
  }
  template <class T>
  Tensor tensor(const std::vector<T>& values) {
    Tensor result = empty({static_cast<std::int64_t>(values.size())}, dtype_of<T>);
    std::copy(values.begin(), values.end(), result.data<T>());
    return result;
  }

  CallRing ring;
  Device device;
  Mesh mesh;
};

template <class T>
std::vector<T> values_of(const Tensor& tensor) {
  return {tensor.data<T>(), tensor.data<T>() + tensor.count()};
}

/// Small integers, so that sums are exact in every type; different on every rank and at near places.
inline int small_integer(int rank, std::int64_t i) { return static_cast<int>((i * 5 + rank * 3 + i / 7) % 8); }

}  // namespace choir::tests
