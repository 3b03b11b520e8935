// The peers of a rank. MeshShape is arithmetic, Mesh owns the communicators.
//
// Rank order, written once: tensor fastest (inside a node), then context, then data, pipeline slowest:
//
//   rank = ((pipeline_index * data + data_index) * context + context_index) * tensor + tensor_index
//
// The expert axis is not one more factor: it cuts the gradient group into consecutive ranks that share the experts.
#pragma once

#include <mpi.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "framework/comm/communicator.h"
#include "framework/core/names.h"

namespace choir {

enum class Axis : std::uint8_t { tensor, context, data, pipeline };
template <>
inline constexpr auto names<Axis> = std::array{"tensor", "context", "data", "pipeline"};

struct MeshShape {
  int tensor = 1, context = 1, data = 1, pipeline = 1;
  int shard = 0;   ///< ranks of a gradient group that split masters, gradients and values (ZeRO); 0: all of them
  int expert = 1;  ///< ranks of a gradient group that share the experts; divides it, and a shard

  struct Coordinates {
    int tensor = 0, context = 0, data = 0, pipeline = 0;
    bool operator==(const Coordinates&) const = default;
  };

  int ranks() const { return tensor * context * data * pipeline; }
  Coordinates coordinates(int rank) const;
  int rank(const Coordinates& at) const;
  /// The ranks that differ from `rank` only along one axis.
  Group group(Axis axis, int rank) const;
  /// The ranks that hold the same weights and have other rows of the batch: the context and the data axis together. Its
  /// name is "data".
  Group gradient_group(int rank) const;
  /// A gradient group is replicas of `shard` consecutive ranks each, which together hold what ZeRO splits. The ranks of
  /// one replica, and those that hold the same part as `rank`, one of each replica.
  Group shard_group(int rank) const;
  Group replica_group(int rank) const;
  /// The ranks of the gradient group that together hold all experts: `expert` consecutive ones.
  Group expert_group(int rank) const;
  /// The ranks of the shard group that hold the same experts.
  Group expert_shard_group(int rank) const;
  bool operator==(const MeshShape&) const = default;
};

struct Mesh {
  MeshShape shape;
  MeshShape::Coordinates here;
  std::unique_ptr<Communicator> world;  ///< all ranks
  std::unique_ptr<Communicator> tensor, context, pipeline;
  std::shared_ptr<Communicator> gradient;  ///< MeshShape::gradient_group()
  std::shared_ptr<Communicator> shard;     ///< MeshShape::shard_group(): `gradient` itself if that has the same ranks
  std::unique_ptr<Communicator> replica;   ///< MeshShape::replica_group()
  std::unique_ptr<Communicator> expert;    ///< MeshShape::expert_group()
  std::shared_ptr<Communicator> expert_shard;  ///< MeshShape::expert_shard_group(): `shard` itself without expert ranks
  std::unique_ptr<Device> host_device;         ///< the CPU, if the mesh is of GPUs
  std::unique_ptr<Communicator> host;          ///< all ranks, on host memory: for messages about files and signals

  /// All but `host`: those that a watchdog checks for problems.
  std::vector<Communicator*> communicators() const;
};

/// The mesh of `device`: MPI on the CPU, NCCL on GPUs. Collective over `world`, whose size is shape.ranks(). `ring` and
/// `device` outlive the mesh.
Mesh make_mesh(MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring);

/// The part of make_mesh() for GPUs: all but `host`. Only in builds with CUDA (comm/cuda/nccl_communicator.cpp). Throws
/// Error with NCCL's message if GPUs cannot reach each other, or if a rank does not connect within `timeout` seconds.
Mesh make_nccl_mesh(MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring, double timeout = 300);

/// A mesh without `host`, whose communicators come from `make`: the world's first, then those of the axes.
using MakeCommunicator = std::function<std::unique_ptr<Communicator>(Group)>;
Mesh make_axes(int rank, const MeshShape& shape, const MakeCommunicator& make);

/// The mesh as `rank` would see it, on device `count`: verbs move nothing, but are counted.
Mesh make_counting_mesh(int rank, const MeshShape& shape, Device& device, CallRing& ring);

}  // namespace choir
