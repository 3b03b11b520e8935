#include "framework/data/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

namespace choir {
namespace {

[[noreturn]] void fail(const std::string& doing, const std::string& path, int code) {
  throw Error({.what = "cannot " + doing + " " + path,
               .why = std::strerror(code),
               .fix = code == ENOSPC || code == EDQUOT || code == EFBIG ? "free space there, or write elsewhere" : ""});
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

int open_or_fail(const std::string& doing, const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor < 0) fail(doing, path, errno);
  return descriptor;
}

}  // namespace

File File::open(const std::string& path) { return {path, open_or_fail("open", path, O_RDONLY)}; }
File File::edit(const std::string& path) { return {path, open_or_fail("open", path, O_RDWR)}; }
File File::create(const std::string& path) { return {path, open_or_fail("write", path, O_RDWR | O_CREAT | O_TRUNC)}; }

File File::nameless_beside(const std::string& path) {
  const std::string folder = folder_of(path);
  std::string name = folder + "/.choir-XXXXXX";
  const int descriptor = ::mkostemp(name.data(), O_CLOEXEC);
  if (descriptor < 0) fail("create a file in", folder, errno);
  ::unlink(name.c_str());
  return {name, descriptor};
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::uint64_t File::size() const {
  struct stat information = {};
  if (::fstat(descriptor_, &information) != 0) fail("examine", path_, errno);
  return static_cast<std::uint64_t>(information.st_size);
}

std::size_t File::read(std::uint64_t offset, std::span<char> bytes) const {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count =
        ::pread(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("read", path_, errno);
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return done;
}

void File::write(std::uint64_t offset, std::span<const char> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count =
        ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("write", path_, errno);
    done += static_cast<std::size_t>(count);
  }
}

void File::reserve(std::uint64_t bytes) {
  int code = EINTR;
  while (code == EINTR) code = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
  if (code != 0) fail("write", path_, code);
}

void File::sync() {
  if (::fsync(descriptor_) != 0) fail("write", path_, errno);
}

const void* File::map(std::uint64_t bytes) const {
  void* address = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (address == MAP_FAILED) fail("map", path_, errno);
  return address;
}

void File::unmap(const void* address, std::uint64_t bytes) { ::munmap(const_cast<void*>(address), bytes); }

void publish_file(const std::string& temporary, const std::string& path) {
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail("rename " + temporary + " to", path, errno);
  const std::string folder = folder_of(path);
  const int descriptor = open_or_fail("open", folder, O_RDONLY | O_DIRECTORY);
  ::fsync(descriptor);  // some file systems know no fsync of a folder; the file itself has been synced
  ::close(descriptor);
}

std::vector<Problem> check_readable(const std::string& key, const std::string& path) {
  namespace fs = std::filesystem;
  const std::string what = key + " = " + path + ": ";
  if (path.empty()) return {{.what = key + " is empty", .why = "it names the file to read"}};
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (!fs::exists(status)) {
    const std::string folder = folder_of(path);
    std::vector<std::string> names;
    for (fs::directory_iterator entry(folder, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
      names.push_back(entry->path().filename().string());
    }
    const std::string near = nearest(fs::path(path).filename().string(), names);
    return {
        {.what = what + (fs::is_directory(folder, ignored) ? "there is no such file" : "there is no folder " + folder),
         .fix = near.empty() ? "" : "did you mean " + (fs::path(path).parent_path() / near).string() + "?"}};
  }
  if (fs::is_directory(status)) return {{.what = what + "this is a folder", .fix = "name a file"}};
  if (!fs::is_regular_file(status)) {
    return {{.what = what + "this is no ordinary file",
             .why = "it is read more than once",
             .fix = "save it to a file first"}};
  }
  if (::access(path.c_str(), R_OK) != 0) return {{.what = what + "cannot be read", .why = std::strerror(errno)}};
  return {};
}

}  // namespace choir
