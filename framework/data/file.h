// A POSIX file that closes itself, and whose failures are Errors with the path and the system's reason.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "framework/core/error.h"

namespace choir {

class File {
 public:
  static File open(const std::string& path);    ///< for reading
  static File edit(const std::string& path);    ///< an existing file, for reading and writing
  static File create(const std::string& path);  ///< a new or emptied file, for reading and writing
  static File nameless_beside(
      const std::string& path);  ///< for reading and writing; gone when closed, whatever happens
  File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  std::uint64_t size() const;
  /// Bytes read: fewer than asked only at the end of the file.
  std::size_t read(std::uint64_t offset, std::span<char> bytes) const;
  void write(std::uint64_t offset, std::span<const char> bytes);
  /// Grows to `bytes` and takes that room on the disk.
  void reserve(std::uint64_t bytes);
  /// Returns when all that was written is on the disk.
  void sync();
  /// The first `bytes` of the file, read-only, until unmap().
  const void* map(std::uint64_t bytes) const;
  static void unmap(const void* address, std::uint64_t bytes);

 private:
  File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

/// Gives `temporary` its name, replacing what had it, and returns when that is on the disk.
void publish_file(const std::string& temporary, const std::string& path);

/// What keeps `path` from being read as a file; `key` is how the user named it ("data.path"). Names the nearest file in
/// the folder where there is none.
std::vector<Problem> check_readable(const std::string& key, const std::string& path);

}  // namespace choir
