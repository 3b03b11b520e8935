// A POSIX file that closes itself, and whose failures are Errors with the path and the system's reason.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "framework/core/error.h"

namespace choir {

/// Equal stamps of an open file: it was not written to in between, up to the time resolution of its file system.
struct FileStamp {
  std::uint64_t bytes = 0;
  std::int64_t seconds = 0, nanoseconds = 0;  ///< of the last change of its contents

  bool operator==(const FileStamp&) const = default;
};

class File {
 public:
  static File open(const std::string& path);             ///< for reading
  static File edit(const std::string& path);             ///< an existing file, for reading and writing
  static File create(const std::string& path);           ///< a new or emptied file, for reading and writing
  static File create_new(const std::string& path);       ///< a file that must not exist yet, for reading and writing
  static File nameless_beside(const std::string& path);  ///< for reading and writing; removed when it is closed
  File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  /// A path to this open file, even if another file has its name now; valid while it is open.
  std::string descriptor_path() const;
  std::uint64_t size() const;
  FileStamp stamp() const;
  /// True if the file has no name any more: it was removed or replaced.
  bool is_nameless() const;
  /// Waits for the lock on the file and holds it until it is closed or the process ends, however it ends. On a file
  /// system without locks it returns at once.
  void lock();
  /// Bytes read: fewer than asked only at the end of the file.
  std::size_t read(std::uint64_t offset, std::span<char> bytes) const;
  void write(std::uint64_t offset, std::span<const char> bytes);
  /// Grows the file to `bytes` and reserves that space on the disk.
  void reserve(std::uint64_t bytes);
  /// Returns when all that was written is on the disk.
  void sync();

 private:
  File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

/// Renames `temporary` to `path`, replacing a file of that name, and returns when the change is on the disk.
void publish_file(const std::string& temporary, const std::string& path);

/// A new file beside `path`, with a name of its own and locked, until it is published under `path`. If it is not
/// published, the destructor removes it. After a kill it stays, unlocked, for remove_stale_temporaries().
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  File& file() { return file_; }
  /// Renames the file to `path`, replacing a file of that name. Call sync() first.
  void publish();

 private:
  std::string path_;
  File file_;
};

/// Removes the temporary files for `path` that no process is writing any more, and returns their paths.
std::vector<std::string> remove_stale_temporaries(const std::string& path);

/// Why `path` cannot be read as a file; `key` is how the user named it ("data.path"). If it does not exist, the problem
/// names the nearest file in the folder.
std::vector<Problem> check_readable(const std::string& key, const std::string& path);

}  // namespace choir
