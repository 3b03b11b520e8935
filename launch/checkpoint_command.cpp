// choir checkpoint list|verify|show|export
#include <algorithm>
#include <cstdio>
#include <vector>

#include "framework/checkpoint/export.h"
#include "framework/checkpoint/reader.h"
#include "framework/core/quantity.h"
#include "launch/checkpoint_path.h"

namespace choir {
namespace {

/// The checkpoint that `path` is, or those of a run, newest first.
std::vector<CheckpointInfo> checkpoints_of(const std::string& path) {
  if (is_checkpoint(path)) return {look_at(path)};
  std::vector<CheckpointInfo> found = list_checkpoints(checkpoints_folder(path));
  if (found.empty())
    throw ConfigError(Problem{.what = "PATH = " + path + " holds no checkpoints",
                              .fix = "name the folder of a checkpoint, a run folder, or its checkpoints/"});
  return found;
}

int list(const std::string& path) {
  for (const CheckpointInfo& info : checkpoints_of(path))
    std::printf("%s  %s\n", info.path.c_str(),
                info.problem.empty() ? "whole (by manifest and sizes)" : info.problem.c_str());
  return 0;
}

int verify(const std::string& path) {
  bool whole = true;
  for (const CheckpointInfo& info : checkpoints_of(path)) {
    const auto problems = verify_checkpoint(info.path);
    for (const std::string& problem : problems) std::printf("%s: %s\n", info.path.c_str(), problem.c_str());
    if (problems.empty()) std::printf("%s: whole, every byte\n", info.path.c_str());
    whole = whole && problems.empty();
  }
  return whole ? 0 : 1;
}

int show(const std::string& path) {
  const CheckpointReader reader(find_checkpoint({"PATH", path}));
  std::printf("%s: step %lld, written by %s\n", reader.path().c_str(), static_cast<long long>(reader.step()),
              quantity(reader.manifest().ranks, "rank").c_str());
  for (const auto& [key, value] : reader.state()) {
    if (value.size() <= 80 && value.find('\n') == std::string::npos)
      std::printf("%s: %s\n", key.c_str(), value.c_str());
    else if (key == "config")
      std::printf("config:\n%s\n", value.c_str());
    else
      std::printf("%s: %s\n", key.c_str(), quantity(std::ssize(value), "byte").c_str());
  }
  std::vector<TensorEntry> tensors = reader.tensors();  // in an order that depends on the ranks that wrote them
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
  for (const TensorEntry& tensor : tensors)
    std::printf("%016llx  %-14s %s\n", static_cast<unsigned long long>(tensor.digest), to_string(tensor.shape).c_str(),
                tensor.name.c_str());
  return 0;
}

int export_one_file(CommandLine& line, const std::string& path, const std::string& out) {
  MpiProcess& process = line.start_mpi();
  const std::string checkpoint = find_checkpoint({"PATH", path}, process);
  export_checkpoint(checkpoint, out, MPI_COMM_WORLD);
  if (process.rank() == 0) std::printf("%s: all tensors of %s\n", out.c_str(), checkpoint.c_str());
  return 0;
}

}  // namespace

void add_checkpoint_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("checkpoint", "list, verify, show or export checkpoints");
  verb->require_subcommand(1);
  auto path = std::make_shared<std::string>();
  auto out = std::make_shared<std::string>();
  const auto add = [&](const char* name, const char* text, std::function<int()> run) {
    CLI::App* action = verb->add_subcommand(name, text);
    action->add_option("PATH", *path, "a checkpoint's folder, or a run folder (show, export: its newest whole one)")
        ->required();
    action->callback([&line, run] { line.run = run; });
    return action;
  };
  add("list", "the checkpoints of a run, newest first, by their manifests", [path] { return list(*path); });
  add("verify", "read every byte of a checkpoint, or of all in a run, and say what is damaged",
      [path] { return verify(*path); });
  add("show", "the contents of a checkpoint", [path] { return show(*path); });
  add("export", "one HDF5 file with all tensors, written by all ranks",
      [&line, path, out] { return export_one_file(line, *path, *out); })
      ->add_option("OUT", *out, "the file to write")
      ->required();
}

}  // namespace choir
