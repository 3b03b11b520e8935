#include "framework/comm/mesh.h"

#include <fmt/format.h>

#include <cassert>
#include <cstdlib>

#include "framework/comm/counting_communicator.h"
#include "framework/comm/host_axis.h"
#include "framework/comm/mpi_communicator.h"
#include "framework/core/error.h"

namespace choir {

MeshShape::Coordinates MeshShape::coordinates(int rank) const {
  assert(0 <= rank && rank < ranks());
  return {.tensor = rank % tensor,
          .context = rank / tensor % context,
          .data = rank / (tensor * context) % data,
          .pipeline = rank / (tensor * context * data)};
}

int MeshShape::rank(const Coordinates& at) const {
  return ((at.pipeline * data + at.data) * context + at.context) * tensor + at.tensor;
}

Group MeshShape::group(Axis axis, int rank) const {
  const Coordinates at = coordinates(rank);
  const auto along = [&](int size, int index, int stride) {
    return Group{.axis = name_of(axis), .first = rank - index * stride, .stride = stride, .size = size, .rank = index};
  };
  switch (axis) {
    case Axis::tensor:
      return along(tensor, at.tensor, 1);
    case Axis::context:
      return along(context, at.context, tensor);
    case Axis::data:
      return along(data, at.data, tensor * context);
    case Axis::pipeline:
      return along(pipeline, at.pipeline, tensor * context * data);
  }
  std::abort();  // all values are above
}

Group MeshShape::gradient_group(int rank) const {
  const Coordinates at = coordinates(rank);
  const int index = at.data * context + at.context;
  return {.axis = name_of(Axis::data),
          .first = rank - index * tensor,
          .stride = tensor,
          .size = context * data,
          .rank = index};
}

Group MeshShape::shard_group(int rank) const {
  const Group all = gradient_group(rank);
  const int size = shard > 0 ? shard : all.size, index = all.rank % size;
  return {.axis = "shard", .first = rank - index * all.stride, .stride = all.stride, .size = size, .rank = index};
}

Group MeshShape::replica_group(int rank) const {
  const Group all = gradient_group(rank);
  const int size = shard > 0 ? shard : all.size;
  return {.axis = "replica",
          .first = all.first + all.rank % size * all.stride,
          .stride = all.stride * size,
          .size = all.size / size,
          .rank = all.rank / size};
}

Group MeshShape::expert_group(int rank) const {
  const Group all = gradient_group(rank);
  const int index = all.rank % expert;
  return {.axis = "expert", .first = rank - index * all.stride, .stride = all.stride, .size = expert, .rank = index};
}

Group MeshShape::expert_shard_group(int rank) const {
  const Group whole = shard_group(rank);
  return {.axis = whole.axis,
          .first = whole.first + whole.rank % expert * whole.stride,
          .stride = whole.stride * expert,
          .size = whole.size / expert,
          .rank = whole.rank / expert};
}

std::vector<Communicator*> Mesh::communicators() const {
  std::vector<Communicator*> all = {world.get(),   tensor.get(),   context.get(), gradient.get(),
                                    replica.get(), pipeline.get(), expert.get()};
  if (shard != gradient) all.push_back(shard.get());
  if (expert_shard != shard) all.push_back(expert_shard.get());
  return all;
}

Mesh make_axes(int rank, const MeshShape& shape, const MakeCommunicator& make) {
  Mesh mesh{.shape = shape, .here = shape.coordinates(rank)};
  mesh.world = make(Group{.axis = "world", .size = shape.ranks(), .rank = rank});
  mesh.tensor = make(shape.group(Axis::tensor, rank));
  mesh.context = make(shape.group(Axis::context, rank));
  mesh.gradient = make(shape.gradient_group(rank));
  const Group shard = shape.shard_group(rank);
  mesh.shard = shard.size == mesh.gradient->size() ? mesh.gradient : make(shard);
  mesh.replica = make(shape.replica_group(rank));
  mesh.pipeline = make(shape.group(Axis::pipeline, rank));
  mesh.expert = make(shape.expert_group(rank));
  mesh.expert_shard = shape.expert == 1 ? mesh.shard : make(shape.expert_shard_group(rank));
  return mesh;
}

static std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm world, Group group, Device& device,
                                                           CallRing& ring) {
  MPI_Comm comm = MPI_COMM_NULL;
  const int code = MPI_Comm_split(world, group.first, group.rank, &comm);
  if (code != MPI_SUCCESS)
    throw Error(
        {.what = fmt::format("MPI cannot make the communicator of {} (MPI_Comm_split: error {})", group.axis, code)});
  return std::make_unique<MpiCommunicator>(comm, std::move(group), device, ring);
}

Mesh make_mesh(MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring) {
  int rank = 0, size = 0;
  MPI_Comm_rank(world, &rank);
  MPI_Comm_size(world, &size);
  if (size != shape.ranks())
    throw Error({.what = fmt::format("the mesh has {} ranks, but MPI has {}", shape.ranks(), size),
                 .why = fmt::format("tensor {} x context {} x data {} x pipeline {} = {}", shape.tensor, shape.context,
                                    shape.data, shape.pipeline, shape.ranks()),
                 .fix = fmt::format("start {} ranks, or change parallel.*", shape.ranks())});
  Mesh mesh;
  Device* host = &device;
  if (device.kind() == DeviceKind::cuda) {
    if constexpr (kernels::built_with_cuda) mesh = make_nccl_mesh(world, shape, device, ring);
    mesh.host_device = std::make_unique<Device>(1);
    host = mesh.host_device.get();
  } else {
    mesh = make_axes(rank, shape,
                     [&](Group group) { return make_mpi_communicator(world, std::move(group), device, ring); });
  }
  mesh.host = make_mpi_communicator(world, Group{.axis = host_axis, .size = size, .rank = rank}, *host, ring);
  return mesh;
}

Mesh make_counting_mesh(int rank, const MeshShape& shape, Device& device, CallRing& ring) {
  const MakeCommunicator make = [&](Group group) {
    return std::make_unique<CountingCommunicator>(std::move(group), device, ring);
  };
  Mesh mesh = make_axes(rank, shape, make);
  mesh.host = make(Group{.axis = host_axis, .size = shape.ranks(), .rank = rank});
  return mesh;
}

}  // namespace choir
