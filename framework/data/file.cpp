#include "framework/data/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <string_view>

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

struct stat information_of(int descriptor, const std::string& path) {
  struct stat information = {};
  if (::fstat(descriptor, &information) != 0) fail("examine", path, errno);
  return information;
}

// The name of a temporary file: "NAME.choir-" + 16 hexadecimal digits + ".tmp".
constexpr std::string_view temporary_infix = ".choir-", temporary_suffix = ".tmp";

bool is_temporary_name(std::string_view name, std::string_view of) {
  if (!name.starts_with(of)) return false;
  name.remove_prefix(of.size());
  if (!name.starts_with(temporary_infix) || !name.ends_with(temporary_suffix)) return false;
  name = name.substr(temporary_infix.size(), name.size() - temporary_infix.size() - temporary_suffix.size());
  return name.size() == 16 && name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Creates and locks the file. Between the two, another process may have removed it as a stale one.
File create_temporary(const std::string& path) {
  std::random_device random;
  for (;;) {
    File file = File::create_new(
        fmt::format("{}{}{:08x}{:08x}{}", path, temporary_infix, random(), random(), temporary_suffix));
    file.lock();
    if (!file.is_nameless()) return file;
  }
}

}  // namespace

File File::open(const std::string& path) { return {path, open_or_fail("open", path, O_RDONLY)}; }
File File::edit(const std::string& path) { return {path, open_or_fail("open", path, O_RDWR)}; }
File File::create(const std::string& path) { return {path, open_or_fail("write", path, O_RDWR | O_CREAT | O_TRUNC)}; }
File File::create_new(const std::string& path) {
  return {path, open_or_fail("create", path, O_RDWR | O_CREAT | O_EXCL)};
}

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

std::string File::descriptor_path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

std::uint64_t File::size() const { return stamp().bytes; }

FileStamp File::stamp() const {
  const struct stat information = information_of(descriptor_, path_);
  return {static_cast<std::uint64_t>(information.st_size), information.st_mtim.tv_sec, information.st_mtim.tv_nsec};
}

bool File::is_nameless() const { return information_of(descriptor_, path_).st_nlink == 0; }

void File::lock() {
  while (::flock(descriptor_, LOCK_EX) != 0 && errno == EINTR) {
  }
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

void publish_file(const std::string& temporary, const std::string& path) {
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail("rename " + temporary + " to", path, errno);
  const std::string folder = folder_of(path);
  const int descriptor = open_or_fail("open", folder, O_RDONLY | O_DIRECTORY);
  ::fsync(descriptor);  // some file systems cannot sync a folder; the file itself has been synced
  ::close(descriptor);
}

TemporaryFile::TemporaryFile(const std::string& path) : path_(path), file_(create_temporary(path)) {}

TemporaryFile::~TemporaryFile() { ::unlink(file_.path().c_str()); }

void TemporaryFile::publish() { publish_file(file_.path(), path_); }

std::vector<std::string> remove_stale_temporaries(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<std::string> removed;
  std::error_code error;
  for (fs::directory_iterator entry(folder_of(path), error), end; !error && entry != end; entry.increment(error)) {
    if (!is_temporary_name(entry->path().filename().string(), fs::path(path).filename().string())) continue;
    const std::string name = entry->path().string();
    const int descriptor = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) continue;
    // Removed while the lock is held: a process that has just created the file waits for the lock, and then sees it.
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0 && ::unlink(name.c_str()) == 0) removed.push_back(name);
    ::close(descriptor);
  }
  std::ranges::sort(removed);
  return removed;
}

std::vector<Problem> check_readable(const std::string& key, const std::string& path) {
  namespace fs = std::filesystem;
  const std::string what = key + " = " + path + ": ";
  if (path.empty()) return {{.what = key + " is empty", .why = "it names the file to read"}};
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (const fs::path target = fs::read_symlink(path, ignored); !target.empty() && !fs::exists(status)) {
    return {{.what = what + "this is a link to " + target.string() + ", which is not there",
             .fix = "correct the link, or name the file itself"}};
  }
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
    return {{.what = what + "this is not an ordinary file",
             .why = "it is read more than once",
             .fix = "save it to a file first"}};
  }
  if (::access(path.c_str(), R_OK) != 0) return {{.what = what + "cannot be read", .why = std::strerror(errno)}};
  return {};
}

}  // namespace choir
