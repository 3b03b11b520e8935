#include "framework/data/hdf5_file.h"

#include <algorithm>
#include <vector>

namespace choir {
namespace {

// H5Ewalk2 downwards starts at the innermost call, which has the reason.
herr_t innermost(unsigned position, const H5E_error2_t* error, void* text) {
  if (position == 0 && error->desc) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

Hdf5Handle scalar() { return {H5Screate(H5S_SCALAR), H5Sclose, "H5Screate"}; }

Hdf5Handle string_type(std::size_t bytes) {
  Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy");
  hdf5_check(H5Tset_size(type, bytes), "H5Tset_size");
  return type;
}

Hdf5Handle access_list() {
  Hdf5Handle list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_file_locking(list, false, true), "H5Pset_file_locking");
  return list;
}

// The bytes of an HDF5 file without objects, its user block left out; made in memory.
std::vector<char> empty_hdf5(hsize_t user_block_bytes) {
  const Hdf5Handle access = access_list(), creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_fapl_core(access, 1 << 12, false), "H5Pset_fapl_core");
  hdf5_check(H5Pset_alignment(access, 1, 8), "H5Pset_alignment");
  hdf5_check(H5Pset_userblock(creation, user_block_bytes), "H5Pset_userblock");
  hdf5_check(H5Pset_obj_track_times(creation, false), "H5Pset_obj_track_times");
  const Hdf5Handle file(H5Fcreate("in memory", H5F_ACC_TRUNC, creation, access), H5Fclose, "H5Fcreate");
  hdf5_check(H5Fflush(file, H5F_SCOPE_LOCAL), "H5Fflush");
  std::vector<char> bytes(
      static_cast<std::size_t>(hdf5_check(H5Fget_file_image(file, nullptr, 0), "H5Fget_file_image")));
  hdf5_check(H5Fget_file_image(file, bytes.data(), bytes.size()), "H5Fget_file_image");
  return bytes;
}

void write(hid_t object, const char* name, hid_t file_type, hid_t memory_type, const void* value) {
  const Hdf5Handle attribute(H5Acreate2(object, name, file_type, scalar(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                             "H5Acreate2");
  hdf5_check(H5Awrite(attribute, memory_type, value), "H5Awrite");
}

// An attribute of one value of the given class, and its type.
std::pair<Hdf5Handle, Hdf5Handle> open_attribute(hid_t object, const char* name, H5T_class_t expected) {
  Hdf5Handle attribute(H5Aopen(object, name, H5P_DEFAULT), H5Aclose, "H5Aopen");
  Hdf5Handle type(H5Aget_type(attribute), H5Tclose, "H5Aget_type");
  const Hdf5Handle space(H5Aget_space(attribute), H5Sclose, "H5Aget_space");
  if (H5Tget_class(type) != expected || H5Sget_simple_extent_npoints(space) != 1) {
    throw Hdf5Failure(std::string("attribute '") + name + "' is of another type");
  }
  return {std::move(attribute), std::move(type)};
}

}  // namespace

Hdf5Silence::Hdf5Silence() {
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}
Hdf5Silence::~Hdf5Silence() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

hid_t hdf5_check(hid_t result, const char* call) {
  if (result >= 0) return result;
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &reason);
  throw Hdf5Failure(std::string(call) + ": " + (reason.empty() ? "failed without a reason" : reason));
}

Hdf5Handle open_hdf5(const std::string& path) {
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY, access_list()), H5Fclose, "H5Fopen"};
}

Hdf5Handle open_hdf5(const File& file) {
  const Hdf5Handle access = access_list();
  hdf5_check(H5Pset_fapl_stdio(access), "H5Pset_fapl_stdio");  // the default driver looks for the file's name
  return {H5Fopen(file.descriptor_path().c_str(), H5F_ACC_RDONLY, access), H5Fclose, "H5Fopen"};
}

Hdf5Handle create_hdf5(const std::string& path, hsize_t user_block_bytes, std::uint64_t room_bytes) {
  File file = File::create(path);
  file.reserve(room_bytes);
  file.write(user_block_bytes, empty_hdf5(user_block_bytes));
  const Hdf5Handle access = access_list();
  hdf5_check(H5Pset_alignment(access, 1, 8), "H5Pset_alignment");
  return {H5Fopen(path.c_str(), H5F_ACC_RDWR, access), H5Fclose, "H5Fopen"};
}

void write_attribute(hid_t object, const char* name, std::int64_t value) {
  write(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  const Hdf5Handle type = string_type(value.size() + 1);
  write(object, name, type, type, value.c_str());
}

std::int64_t read_integer_attribute(hid_t object, const char* name) {
  const auto [attribute, type] = open_attribute(object, name, H5T_INTEGER);
  std::int64_t value = 0;
  hdf5_check(H5Aread(attribute, H5T_NATIVE_INT64, &value), "H5Aread");
  return value;
}

std::string read_string_attribute(hid_t object, const char* name) {
  const auto [attribute, type] = open_attribute(object, name, H5T_STRING);
  const std::size_t bytes = H5Tget_size(type);
  if (H5Tis_variable_str(type) != 0 || bytes == 0 || bytes > 4096) {
    throw Hdf5Failure(std::string("attribute '") + name + "' is of another type");
  }
  std::string value(bytes, '\0');
  hdf5_check(H5Aread(attribute, type, value.data()), "H5Aread");
  value.resize(value.find('\0') == std::string::npos ? bytes : value.find('\0'));
  return value;
}

Hdf5Handle create_dataset(hid_t parent, const char* name, hid_t type, hsize_t count) {
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "H5Screate_simple");
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
  hdf5_check(H5Pset_layout(creation, H5D_CONTIGUOUS), "H5Pset_layout");
  hdf5_check(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time");
  hdf5_check(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), "H5Pset_fill_time");
  hdf5_check(H5Pset_obj_track_times(creation, false), "H5Pset_obj_track_times");
  return {H5Dcreate2(parent, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose, "H5Dcreate2"};
}

void write_dataset(hid_t parent, const char* name, hid_t type, hid_t memory_type, const void* elements, hsize_t count) {
  const Hdf5Handle dataset = create_dataset(parent, name, type, count);
  if (count > 0) hdf5_check(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, elements), "H5Dwrite");
}

Hdf5Handle open_dataset(hid_t parent, const char* name) {
  return {H5Dopen2(parent, name, H5P_DEFAULT), H5Dclose, "H5Dopen2"};
}

Hdf5Extent hdf5_extent(hid_t dataset, std::uint64_t file_bytes) {
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "H5Dget_space");
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose, "H5Dget_type");
  const Hdf5Handle creation(H5Dget_create_plist(dataset), H5Pclose, "H5Dget_create_plist");
  if (H5Sget_simple_extent_ndims(space) != 1) throw Hdf5Failure("dataset is not one-dimensional");
  if (H5Pget_layout(creation) != H5D_CONTIGUOUS) throw Hdf5Failure("dataset is not contiguous");
  const std::size_t element_bytes = H5Tget_size(type);
  if (H5Tget_class(type) != H5T_INTEGER || (element_bytes > 1 && H5Tget_order(type) != H5T_ORDER_LE)) {
    throw Hdf5Failure("dataset is not of little-endian integers");
  }
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  hdf5_check(count, "H5Sget_simple_extent_npoints");
  Hdf5Extent extent{.count = static_cast<std::uint64_t>(count), .element_bytes = element_bytes};
  if (count == 0) return extent;
  extent.offset = H5Dget_offset(dataset);
  if (extent.count > file_bytes / element_bytes || extent.offset == HADDR_UNDEF ||
      extent.offset > file_bytes - extent.bytes()) {
    throw Hdf5Failure("dataset of " + std::to_string(extent.count) + " elements does not lie within the file");
  }
  return extent;
}

std::string text_of_lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + '\n';
  return text;
}

std::vector<std::string> lines_of(std::span<const char> text) {
  std::vector<std::string> lines;
  for (auto begin = text.begin(); begin != text.end();) {
    const auto end = std::find(begin, text.end(), '\n');
    lines.emplace_back(begin, end);
    begin = end == text.end() ? end : end + 1;
  }
  return lines;
}

}  // namespace choir
