// HDF5 with owners and errors: identifiers that close themselves, failures as exceptions with HDF5's own messages.
//
// HDF5 keeps its state in the library and is not thread-safe: only one thread of a process may use this at a time.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "framework/data/file.h"

namespace choir {

/// HDF5's message: "H5Dopen2: object 'tokens' doesn't exist". The caller turns it into ConfigError or Error.
class Hdf5Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// During its lifetime HDF5 prints nothing; the destructor restores the previous setting.
class Hdf5Silence {
 public:
  Hdf5Silence();
  ~Hdf5Silence();
  Hdf5Silence(const Hdf5Silence&) = delete;
  Hdf5Silence& operator=(const Hdf5Silence&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

/// Returns `result`, or throws Hdf5Failure with the innermost reason if it is negative.
hid_t hdf5_check(hid_t result, const char* call);

/// An identifier that closes itself.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);
  /// Throws Hdf5Failure if `id` is negative: `call` has failed.
  Hdf5Handle(hid_t id, Close close_call, const char* call) : id_(hdf5_check(id, call)), close_(close_call) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;
  ~Hdf5Handle() {
    if (id_ >= 0) close_(id_);
  }

  operator hid_t() const { return id_; }
  /// Closes now and throws Hdf5Failure if that fails: for what has been written.
  void close() { hdf5_check(close_(std::exchange(id_, -1)), "close"); }

 private:
  hid_t id_;
  Close close_;
};

/// Opens for reading, without locks (file systems of clusters often do not support them).
Hdf5Handle open_hdf5(const std::string& path);
/// The same for the open file `file`, even if another file has its name now.
Hdf5Handle open_hdf5(const File& file);
/// Creates or empties. HDF5 does not use the first `user_block_bytes` (0, or a power of 2 from 512); every object
/// begins at a multiple of 8 bytes. `room_bytes`, at least the size of the whole file, are reserved on the disk before
/// HDF5 opens the file, so that HDF5 does not write to a full disk: after a close that fails, 1.10 crashes at the exit
/// of the process. Closing releases the space that was not used. Throws Error if the disk does not have the space.
Hdf5Handle create_hdf5(const std::string& path, hsize_t user_block_bytes, std::uint64_t room_bytes);

void write_attribute(hid_t object, const char* name, std::int64_t value);
void write_attribute(hid_t object, const char* name, const std::string& value);
std::int64_t read_integer_attribute(hid_t object, const char* name);
/// Fixed length, at most 4096 bytes.
std::string read_string_attribute(hid_t object, const char* name);

/// Texts as the bytes of one dataset: a line each.
std::string text_of_lines(const std::vector<std::string>& lines);
std::vector<std::string> lines_of(std::span<const char> text);

/// One-dimensional, contiguous, allocated at once, without fill values and dates; its bytes begin at
/// hdf5_extent(...).offset.
/// `type` is the type in the file: H5T_STD_U16LE and the like.
Hdf5Handle create_dataset(hid_t parent, const char* name, hid_t type, hsize_t count);
/// The same with its elements, `count` of `memory_type`.
void write_dataset(hid_t parent, const char* name, hid_t type, hid_t memory_type, const void* elements, hsize_t count);
Hdf5Handle open_dataset(hid_t parent, const char* name);

/// The place of the elements of a one-dimensional contiguous dataset in its file.
struct Hdf5Extent {
  std::uint64_t offset = 0;  ///< from the start of the file; 0 if there are no elements
  std::uint64_t count = 0;   ///< elements
  std::uint64_t element_bytes = 0;

  std::uint64_t bytes() const { return count * element_bytes; }
  std::uint64_t end() const { return offset + bytes(); }
};

/// Throws Hdf5Failure if the dataset is not one-dimensional, contiguous and of little-endian integers, or does not
/// lie within the first `file_bytes` of the file.
Hdf5Extent hdf5_extent(hid_t dataset, std::uint64_t file_bytes);

/// All elements, as `memory_type`, which is T. The dataset lies within the file, as above, which bounds the memory.
template <class T>
std::vector<T> read_dataset(hid_t parent, const char* name, hid_t memory_type, std::uint64_t file_bytes) {
  const Hdf5Handle dataset = open_dataset(parent, name);
  std::vector<T> elements(hdf5_extent(dataset, file_bytes).count);
  if (!elements.empty())
    hdf5_check(H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, elements.data()), "H5Dread");
  return elements;
}

}  // namespace choir
