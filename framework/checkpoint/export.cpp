#include "framework/checkpoint/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "framework/checkpoint/global_file.h"
#include "framework/checkpoint/publish.h"
#include "framework/checkpoint/reader.h"
#include "framework/checkpoint/reason.h"
#include "framework/core/error.h"
#include "framework/data/file.h"

namespace choir {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t largest_write = std::int64_t{1} << 24;  // elements

struct Ranks {
  MPI_Comm comm;
  int rank = 0, size = 1;
};

// Runs `work` on every rank. If it fails on any, all ranks get the reason of the first of these.
std::string together(const Ranks& ranks, const std::function<void()>& work) {
  std::string reason;
  try {
    work();
  } catch (const std::exception& failure) {
    reason = reason_of(failure);
  }
  int speaker = reason.empty() ? ranks.size : ranks.rank;
  MPI_Allreduce(MPI_IN_PLACE, &speaker, 1, MPI_INT, MPI_MIN, ranks.comm);
  if (speaker == ranks.size) return "";
  auto length = static_cast<int>(reason.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, ranks.comm);
  reason.resize(static_cast<std::size_t>(length));
  MPI_Bcast(reason.data(), length, MPI_CHAR, speaker, ranks.comm);
  return reason;
}

Hdf5Handle create_shared(const std::string& path, MPI_Comm comm) {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_fapl_mpio(access, comm, MPI_INFO_NULL), "H5Pset_fapl_mpio");
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose, "H5Fcreate"};
}

// All ranks create the dataset; each fills elements [count * rank / size, count * (rank + 1) / size) on its own.
void write_tensor(hid_t file, const TensorEntry& tensor, const CheckpointReader& reader, const Ranks& ranks) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time");
  hdf5_check(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), "H5Pset_fill_time");
  const Hdf5Handle space = make_space(tensor.shape);
  const Hdf5Handle dataset(
      H5Dcreate2(file, tensor.name.c_str(), H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
      "H5Dcreate2");
  const std::int64_t width = width_of(tensor.shape), count = tensor.shape[0] * width;
  const auto share = [&](int rank) {
    return count / ranks.size * rank + std::min<std::int64_t>(rank, count % ranks.size);
  };
  std::vector<float> elements;
  for (std::int64_t begin = share(ranks.rank); begin < share(ranks.rank + 1); begin += largest_write) {
    const std::int64_t end = std::min(begin + largest_write, share(ranks.rank + 1));
    elements.resize(static_cast<std::size_t>(end - begin));
    const Piece piece{tensor.name, tensor.shape, 0, tensor.shape[0], 0, width, begin, end, elements.data()};
    reader.read({piece});
    select_extent(space, piece.extent());
    const Hdf5Handle memory = make_space({end - begin});
    hdf5_check(H5Dwrite(dataset, H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, elements.data()), "H5Dwrite");
  }
}

}  // namespace

void export_checkpoint(const std::string& path, const std::string& out, MPI_Comm world) {
  Ranks ranks{.comm = world};
  MPI_Comm_rank(world, &ranks.rank);
  MPI_Comm_size(world, &ranks.size);
  const std::string damage = together(ranks, [&] {
    const std::vector<std::string> problems = verify_checkpoint(path, ranks.rank, ranks.size);
    if (!problems.empty()) throw std::runtime_error(problems.front());
  });
  if (!damage.empty())
    throw ConfigError({.what = path + " is not a whole checkpoint",
                       .why = damage,
                       .fix = "use another checkpoint: 'choir checkpoint list' lists them"});

  const CheckpointReader reader(path);
  const std::string unfinished = out + ".tmp";
  const std::string refusal = together(ranks, [&] {
    if (ranks.rank != 0) return;
    if (fs::exists(out)) throw std::runtime_error("the file exists already: name another one, or remove it");
    const fs::path folder = fs::absolute(out).parent_path();
    if (!fs::is_directory(folder)) throw std::runtime_error("there is no folder " + folder.string());
  });
  if (!refusal.empty()) throw ConfigError({.what = "cannot export to " + out, .why = refusal});

  // Parallel HDF5 crashes if the disk becomes full while it writes, so the space is checked first.
  std::uintmax_t bytes = 1 << 20;
  for (const TensorEntry& tensor : reader.tensors())
    bytes += static_cast<std::uintmax_t>(tensor.shape[0] * width_of(tensor.shape)) * 4 + 1024;
  std::string failure = together(ranks, [&] {
    const std::uintmax_t available = fs::space(fs::absolute(out).parent_path()).available;
    if (ranks.rank == 0 && available < bytes)
      throw std::runtime_error(fmt::format("it needs about {} bytes, the disk has {}", bytes, available));
  });
  if (failure.empty()) {
    failure = together(ranks, [&] {
      const Hdf5Silence silence;
      Hdf5Handle file = create_shared(unfinished, world);
      write_state(file, reader.manifest(), ranks.rank == 0);
      for (const TensorEntry& tensor : reader.tensors()) write_tensor(file, tensor, reader, ranks);
      file.close();
    });
  }
  if (failure.empty()) {
    failure = together(ranks, [&] {
      if (ranks.rank != 0) return;
      File::edit(unfinished).sync();
      publish_file(unfinished, out);
    });
  }
  if (failure.empty()) return;
  std::error_code ignored;
  if (ranks.rank == 0) fs::remove(unfinished, ignored);
  throw Error({.what = "cannot export to " + out, .why = failure});
}

}  // namespace choir
