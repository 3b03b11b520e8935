#include "launch/checkpoint_path.h"

#include <cstdio>

#include "framework/comm/counting_communicator.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

void say(const std::string& text) { std::fprintf(stderr, "choir: %s\n", text.c_str()); }

}  // namespace

// The configuration is in the checkpoint, so the device and the mesh that it asks for are not known yet.
std::string find_checkpoint(const CheckpointName& name, const MpiProcess& process) {
  CallRing ring;
  Device device(1);
  const Mesh mesh = make_mesh(MPI_COMM_WORLD, {.data = process.ranks()}, device, ring);
  return locate_checkpoint(name, *mesh.host, [&](const std::string& text) {
    if (process.rank() == 0) say(text);
  });
}

std::string find_checkpoint(const CheckpointName& name) {
  CallRing ring;
  Device device(1);
  CountingCommunicator alone(Group{.axis = "host"}, device, ring);  // one rank needs no messages
  return locate_checkpoint(name, alone, say);
}

LoadedModel load_model(const CheckpointReader& reader, const Config& config, const MpiProcess& process) {
  LoadedModel loaded{.ring = std::make_unique<CallRing>(), .device = make_device(config, process)};
  loaded.mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *loaded.device, *loaded.ring);
  loaded.trainer = std::make_unique<Trainer>(config, *loaded.device, loaded.mesh, true);
  load_weights(*loaded.trainer, reader);
  return loaded;
}

}  // namespace choir
