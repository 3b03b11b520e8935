#include "framework/checkpoint/durable.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "framework/core/error.h"
#include "framework/data/digest.h"
#include "framework/data/file.h"

namespace choir {
namespace {

[[noreturn]] void fail(const std::string& what, int code) {
  const bool full = code == ENOSPC || code == EDQUOT || code == EFBIG;
  throw Error({.what = what, .why = std::strerror(code), .fix = full ? "free space there, or write elsewhere" : ""});
}

// A new empty file. Its disk space is reserved if the file system supports it, so that a full disk is an error at once.
File create_file(const std::string& path, std::int64_t bytes) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("cannot create " + path, errno);
  const bool claimed = bytes == 0 || ::fallocate(descriptor, 0, 0, bytes) == 0;
  const int reason = errno;
  ::close(descriptor);
  if (!claimed && reason != EOPNOTSUPP && reason != ENOSYS)
    fail(fmt::format("cannot reserve {} bytes for {}", bytes, path), reason);
  return File::edit(path);
}

// Calls visit(offset, bytes) for the gaps between `elements` in a file of `size` bytes, in blocks.
template <class Visit>
void for_each_gap(const std::vector<ByteRange>& elements, std::int64_t size, Visit&& visit) {
  constexpr std::int64_t block = std::int64_t{1} << 20;
  std::vector<char> buffer;
  std::int64_t at = 0;
  const auto gap = [&](std::int64_t end) {
    for (; at < end; at += block) {
      buffer.resize(static_cast<std::size_t>(std::min(block, end - at)));
      visit(at, buffer);
    }
  };
  for (const ByteRange& range : elements) {
    gap(range.offset);
    at = range.offset + range.bytes;
  }
  gap(size);
}

void read_exactly(const File& file, std::int64_t offset, std::span<char> bytes) {
  const std::size_t got = file.read(static_cast<std::uint64_t>(offset), bytes);
  if (got < bytes.size())
    throw Error({.what = fmt::format("{} ends at byte {}", file.path(), offset + static_cast<std::int64_t>(got)),
                 .why = fmt::format("{} bytes more were expected", bytes.size() - got)});
}

}  // namespace

MemoryFile::MemoryFile() : descriptor_(memfd_create("choir", MFD_CLOEXEC)) {
  if (descriptor_ < 0) fail("cannot create a file in memory", errno);
}

MemoryFile::~MemoryFile() { ::close(descriptor_); }

std::string MemoryFile::path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

Hdf5Handle MemoryFile::create_hdf5() const {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_fapl_stdio(access), "H5Pset_fapl_stdio");  // the default driver wants a name on a disk
  return {H5Fcreate(path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose, "H5Fcreate"};
}

void MemoryFile::check_limit(std::int64_t bytes) const {
  if (::ftruncate(descriptor_, bytes) != 0 || ::ftruncate(descriptor_, 0) != 0)
    fail(fmt::format("cannot make a file of {} bytes", bytes), errno);
}

FileEntry write_image(const std::string& folder, const std::string& name, const MemoryFile& image,
                      const std::vector<ElementBytes>& elements) {
  const File layout = File::open(image.path());
  const auto size = static_cast<std::int64_t>(layout.size());
  const std::string path = folder + "/" + name;
  File file = create_file(path, size);
  std::vector<ByteRange> ranges;
  for (const ElementBytes& e : elements) {
    file.write(static_cast<std::uint64_t>(e.offset), e.bytes);
    ranges.push_back({e.offset, static_cast<std::int64_t>(e.bytes.size())});
  }
  Digest digest;
  for_each_gap(ranges, size, [&](std::int64_t offset, std::span<char> bytes) {
    read_exactly(layout, offset, bytes);
    digest.add(std::string_view(bytes.data(), bytes.size()));
    file.write(static_cast<std::uint64_t>(offset), bytes);
  });
  file.sync();
  return {name, size, digest.text()};
}

std::string digest_outside(const std::string& path, const std::vector<ByteRange>& elements) {
  const File file = File::open(path);
  Digest digest;
  for_each_gap(elements, static_cast<std::int64_t>(file.size()), [&](std::int64_t offset, std::span<char> bytes) {
    read_exactly(file, offset, bytes);
    digest.add(std::string_view(bytes.data(), bytes.size()));
  });
  return digest.text();
}

std::string read_text(const std::string& path) {
  const File file = File::open(path);
  std::string text(file.size(), '\0');
  read_exactly(file, 0, text);
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  File file = create_file(path, static_cast<std::int64_t>(text.size()));
  file.write(0, text);
  file.sync();
}

void sync_folder(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail("cannot open " + path, errno);
  const bool synced = ::fsync(descriptor) == 0 || errno == EINVAL;  // EINVAL: this file system has no need to
  const int reason = errno;
  ::close(descriptor);
  if (!synced) fail("cannot sync " + path, reason);
}

std::string rename_over(const std::string& from, const std::string& to) {
  const auto rename = [](const std::string& a, const std::string& b, unsigned flags) {
    return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), flags) == 0;
  };
  struct stat status = {};
  if (::lstat(to.c_str(), &status) != 0) {
    if (!rename(from, to, 0)) fail("cannot rename " + from + " to " + to, errno);
    return "";
  }
  if (rename(from, to, RENAME_EXCHANGE)) return from;
  const std::string aside = to + ".del";
  if (!rename(to, aside, 0) || !rename(from, to, 0)) fail("cannot rename " + from + " to " + to, errno);
  return aside;
}

}  // namespace choir
