#include "launch/checkpoint_path.h"

#include <cstdio>
#include <filesystem>

#include "framework/train/snapshot.h"

namespace choir {

std::string find_checkpoint(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).lexically_normal();
  if (fs::exists(folder / "manifest.json")) return path;
  for (const fs::path& candidate : {folder / "checkpoints", folder}) {
    for (const CheckpointInfo& info : list_checkpoints(candidate.string())) {
      if (info.problem.empty()) return info.path;
      std::fprintf(stderr, "choir: passing over %s: %s\n", info.path.c_str(), info.problem.c_str());
    }
  }
  throw ConfigError(Problem{.what = path + " is no checkpoint and holds no whole one",
                            .why = "a checkpoint is a folder step-…, in the checkpoints/ of a run folder",
                            .fix = "name one of them, or the run folder: choir checkpoint list RUN"});
}

LoadedModel load_model(const CheckpointReader& reader, const Config& config, const MpiProcess& process) {
  LoadedModel loaded{.ring = std::make_unique<CallRing>(), .device = make_device(config, process)};
  loaded.mesh = make_mesh(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *loaded.device, *loaded.ring);
  const std::string damage =
      verify_together(reader.path(), *loaded.mesh.host, loaded.mesh.host->device().communicate());
  if (!damage.empty())
    throw ConfigError(Problem{.what = reader.path() + " is damaged: " + damage, .fix = "name another checkpoint"});
  loaded.trainer = std::make_unique<Trainer>(config, *loaded.device, loaded.mesh, true);
  load_weights(*loaded.trainer, reader);
  return loaded;
}

}  // namespace choir
