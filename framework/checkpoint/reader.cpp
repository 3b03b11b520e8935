#include "framework/checkpoint/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "framework/checkpoint/agreement.h"
#include "framework/checkpoint/publish.h"
#include "framework/checkpoint/reason.h"
#include "framework/core/error.h"
#include "framework/data/file.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

void read_floats(const File& file, std::int64_t offset, float* to, std::int64_t count) {
  const std::span bytes(reinterpret_cast<char*>(to), static_cast<std::size_t>(count) * 4);
  const std::size_t got = file.read(static_cast<std::uint64_t>(offset), bytes);
  if (got < bytes.size())
    throw Error(
        {.what = fmt::format("{} ends at byte {}", file.path(), offset + static_cast<std::int64_t>(got)),
         .why = fmt::format("{} bytes more were expected: it has changed since it was listed", bytes.size() - got)});
}

// The manifest of a folder, after checks of its consistency and of the sizes of all files. Throws ConfigError if the
// checkpoint is damaged, Error if it cannot be read.
Manifest open_manifest(const std::string& path) {
  const auto reject = [](std::string reason) { throw ConfigError({.what = std::move(reason)}); };
  // A missing file is damage; after any other failure of the system the checkpoint may still be whole.
  const auto check_kind = [&](const std::string& file, fs::file_type kind, const std::string& missing) {
    std::error_code error;
    const fs::file_status status = fs::status(file, error);
    if (error && status.type() != fs::file_type::not_found)
      throw Error({.what = "cannot examine " + file, .why = error.message()});
    if (status.type() != kind) reject(missing);
  };
  check_kind(path, fs::file_type::directory, "there is no such folder");
  check_kind(path + "/manifest.json", fs::file_type::regular, "manifest.json is missing");
  Manifest manifest = parse_manifest(read_text(path + "/manifest.json"));
  if (const std::string reason = inconsistency(manifest); !reason.empty()) reject("manifest.json: " + reason);
  for (const FileEntry& file : manifest.files) {
    check_kind(path + "/" + file.name, fs::file_type::regular, file.name + " is missing");
    const std::uint64_t size = fs::file_size(path + "/" + file.name);
    if (size != static_cast<std::uint64_t>(file.bytes))
      reject(fmt::format("{} has {} bytes, the manifest says {}", file.name, size, file.bytes));
  }
  const std::int64_t named = step_of(fs::path(path).lexically_normal().filename().string());
  if (named >= 0 && named != manifest.step)
    reject(fmt::format("manifest.json is of step {}: it belongs to another checkpoint", manifest.step));
  return manifest;
}

// Calls `look`, and returns what its exceptions mean for the checkpoint in folder `path`.
template <class Look>
Condition condition_of(const std::string& path, std::string& problem, Look&& look) {
  try {
    look();
    return Condition::whole;
  } catch (const ConfigError& damage) {
    problem = reason_of(damage, path);
    return Condition::damaged;
  } catch (const std::exception& failure) {
    problem = reason_of(failure, path);
    return Condition::unreadable;
  }
}

// Digests of one rank file's parts against the manifest, and of all its other bytes.
void verify_rank_file(const std::string& path, const Manifest& manifest, int rank, std::vector<std::string>& problems) {
  const FileEntry& entry = manifest.files[static_cast<std::size_t>(rank)];
  const File file = File::open(path + "/" + entry.name);
  constexpr std::int64_t block = std::int64_t{1} << 20;
  std::vector<float> buffer;
  for (const TensorEntry& tensor : manifest.tensors) {
    for (const StoredPart& part : tensor.parts) {
      if (part.rank != rank) continue;
      const Region& r = part.extent.region;
      std::uint64_t digest = 0;
      for (std::int64_t done = 0; done < part.extent.count(); done += block) {
        const std::int64_t count = std::min(block, part.extent.count() - done);
        if (static_cast<std::int64_t>(buffer.size()) < count) buffer.resize(static_cast<std::size_t>(count));
        read_floats(file, part.offset + done * 4, buffer.data(), count);
        digest += digest_of(Piece{tensor.name, tensor.shape, r.row_begin, r.row_end, r.column_begin, r.column_end,
                                  part.extent.begin + done, part.extent.begin + done + count, buffer.data()});
      }
      if (digest != part.digest)
        problems.push_back(fmt::format("{}: tensor '{}' is damaged: digest {:016x}, the manifest says {:016x}",
                                       entry.name, tensor.name, digest, part.digest));
    }
  }
}

}  // namespace

std::string list_of(const std::vector<CheckpointInfo>& checkpoints) {
  std::string text;
  for (const CheckpointInfo& info : checkpoints)
    text += (text.empty() ? "" : "\n       ") + info.path + ": " + info.problem;
  return text;
}

CheckpointInfo look_at(const std::string& path) {
  CheckpointInfo info{step_of(fs::path(path).lexically_normal().filename().string()), path, "", Condition::whole};
  info.condition = condition_of(path, info.problem, [&] { info.step = open_manifest(path).step; });
  return info;
}

std::vector<CheckpointInfo> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointInfo> found;
  for (const std::int64_t step : list_steps(folder)) found.push_back(look_at(folder + "/" + step_name(step)));
  return found;
}

std::vector<std::string> verify_checkpoint(const std::string& path, int index, int readers, Condition* condition) {
  std::vector<std::string> problems;
  std::string failure;
  const auto verify_files = [&] {
    const Manifest manifest = open_manifest(path);
    const std::vector<std::vector<ByteRange>> ranges = element_ranges(manifest);
    for (int i = index; i <= manifest.ranks; i += readers) {
      const FileEntry& file = manifest.files[static_cast<std::size_t>(i)];
      const bool has_elements = i < manifest.ranks;
      if (has_elements) verify_rank_file(path, manifest, i, problems);
      const std::string digest = digest_outside(
          path + "/" + file.name, has_elements ? ranges[static_cast<std::size_t>(i)] : std::vector<ByteRange>{});
      if (digest != file.digest)
        problems.push_back(fmt::format("{}: bytes that are not elements are damaged: digest {}, the manifest says {}",
                                       file.name, digest, file.digest));
    }
  };
  Condition found = condition_of(path, failure, verify_files);
  if (!failure.empty()) problems.push_back(failure);
  if (found == Condition::whole && !problems.empty()) found = Condition::damaged;
  if (condition) *condition = found;
  return problems;
}

std::string verify_together(const std::string& path, Communicator& world, Condition* condition) {
  Condition mine = Condition::whole;
  const std::vector<std::string> problems = verify_checkpoint(path, world.rank(), world.size(), &mine);
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(problems.size(), 3); ++i) text += (i > 0 ? "; " : "") + problems[i];
  if (problems.size() > 3) text += fmt::format("; and {} more", problems.size() - 3);
  Agreement ranks(world);
  const auto worst = static_cast<Condition>(ranks.largest(static_cast<std::int32_t>(mine), "checkpoint.verify"));
  if (condition) *condition = worst;
  return ranks.first(mine == worst ? text : "", "checkpoint.verify");
}

std::optional<CheckpointInfo> find_latest(const std::string& folder, Communicator& world,
                                          std::vector<CheckpointInfo>& rejected) {
  Agreement ranks(world);
  std::vector<std::int64_t> steps;  // rank 0 lists them, so that all ranks verify the same checkpoints
  ranks.on_rank_0([&] { steps = list_steps(folder); }, "checkpoint.find");
  rejected.clear();
  steps.resize(static_cast<std::size_t>(ranks.largest(static_cast<std::int32_t>(steps.size()), "checkpoint.find")));
  for (const std::int64_t step : steps) {
    const std::string path = ranks.broadcast(folder + "/" + step_name(step), 0, "checkpoint.find");
    CheckpointInfo info{step_of(fs::path(path).filename().string()), path, "", Condition::whole};
    info.problem = verify_together(info.path, world, &info.condition);
    if (info.condition == Condition::whole) return info;
    rejected.push_back(info);
  }
  return std::nullopt;
}

CheckpointReader::CheckpointReader(const std::string& path) : path_(path) {
  try {
    manifest_ = open_manifest(path);
  } catch (const ConfigError& failure) {
    throw ConfigError({.what = path + " is not a whole checkpoint",
                       .why = reason_of(failure, path),
                       .fix = "use another checkpoint: 'choir checkpoint list' lists them"});
  }
}

void CheckpointReader::read(const std::vector<Piece>& pieces) const {
  struct Wanted {
    const Piece* piece;
    const StoredPart* part;
  };
  std::vector<std::vector<Wanted>> wanted(static_cast<std::size_t>(manifest_.ranks));  // by the file that has it
  std::vector<Problem> problems;
  for (const Piece& piece : pieces) {
    const TensorEntry* found = manifest_.find(piece.name);
    if (!found) {
      problems.push_back({.what = fmt::format("{} has no tensor '{}'", path_, piece.name)});
    } else if (found->shape != piece.shape) {
      problems.push_back({.what = fmt::format("{}: tensor '{}' has shape {}, but the model has {}", path_, piece.name,
                                              to_string(found->shape), to_string(piece.shape))});
    } else {
      for (const StoredPart& part : found->parts)
        wanted[static_cast<std::size_t>(part.rank)].push_back({&piece, &part});
    }
  }
  throw_if_any(problems);
  for (std::size_t rank = 0; rank < wanted.size(); ++rank) {
    std::optional<File> file;  // opened once, and only if it has wanted elements
    for (const auto& [piece, part] : wanted[rank]) {
      const std::int64_t width = width_of(piece->shape);
      const auto read_run = [&](auto, std::int64_t in_piece, std::int64_t in_part, std::int64_t length) {
        if (!file) file.emplace(File::open(path_ + "/" + manifest_.files[rank].name));
        read_floats(*file, part->offset + in_part * 4, piece->data + in_piece, length);
      };
      for_each_common_run(piece->extent(), part->extent, width, read_run);
    }
  }
}

}  // namespace choir
