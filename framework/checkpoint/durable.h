// Durable files and folders: created once, synced, and renamed into place.
//
// HDF5 never writes to a disk here. If a write fails, closing the file leaves a dangling identifier in the library and
// the process ends with a segmentation fault (1.10.8, 64 KiB of disk left): a full disk would end the run. So HDF5 lays
// a file out in memory, with the elements as a hole, and the bytes are written to the disk by write(), which reports
// errors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/hdf5_file.h"

namespace choir {

/// Memory with a path, to be written as if it were a file. Holes take no memory.
class MemoryFile {
 public:
  MemoryFile();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const;        ///< while it lives
  Hdf5Handle create_hdf5() const;  ///< an empty HDF5 file in it
  /// Throws Error if a file of `bytes` bytes is not allowed (ulimit -f), before HDF5 fails because of it.
  void check_limit(std::int64_t bytes) const;

 private:
  int descriptor_;
};

/// Elements of a tensor that lie at `offset` of a file.
struct ElementBytes {
  std::int64_t offset = 0;
  std::span<const char> bytes;
};

/// One file of a checkpoint as the manifest lists it.
struct FileEntry {
  std::string name;
  std::int64_t bytes = 0;
  std::string digest;  ///< of all bytes that are not elements of tensors
};

/// Creates `folder`/`name` with the contents of `image`, but for `elements` (ascending, apart), and syncs it.
FileEntry write_image(const std::string& folder, const std::string& name, const MemoryFile& image,
                      const std::vector<ElementBytes>& elements);

/// The digest of the bytes of a file that lie outside of `elements` (offset, bytes; ascending, apart).
struct ByteRange {
  std::int64_t offset = 0, bytes = 0;
};
std::string digest_outside(const std::string& path, const std::vector<ByteRange>& elements);

std::string read_text(const std::string& path);
/// Creates, writes and syncs.
void write_text(const std::string& path, const std::string& text);

/// Syncs the names inside a folder.
void sync_folder(const std::string& path);

/// Renames the folder `from` to `to`. If `to` exists, the two are exchanged, atomically if the file system supports it,
/// and the path that the old `to` now has is returned; otherwise "".
std::string rename_over(const std::string& from, const std::string& to);

}  // namespace choir
