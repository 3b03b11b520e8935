#include "framework/checkpoint/global_file.h"

#include <fmt/format.h>

#include <limits>

#include "framework/core/error.h"

namespace choir {

Hdf5Handle make_space(const Shape& shape) {
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  return {H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose, "H5Screate_simple"};
}

void select_extent(hid_t space, const Extent& extent) {
  hdf5_check(H5Sselect_none(space), "H5Sselect_none");
  for (const Region& box : boxes_of(extent)) {
    const hsize_t start[2] = {static_cast<hsize_t>(box.row_begin), static_cast<hsize_t>(box.column_begin)};
    const hsize_t block[2] = {static_cast<hsize_t>(box.rows()), static_cast<hsize_t>(box.columns())};
    const hsize_t count[2] = {1, 1};
    hdf5_check(H5Sselect_hyperslab(space, H5S_SELECT_OR, start, nullptr, count, block), "H5Sselect_hyperslab");
  }
}

void write_state(hid_t file, const Manifest& manifest, bool writes) {
  write_attribute(file, "step", manifest.step);
  const Hdf5Handle group(H5Gcreate2(file, "state", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, "H5Gcreate2");
  const Hdf5Handle scalar(H5Screate(H5S_SCALAR), H5Sclose, "H5Screate");
  for (const auto& [key, value] : manifest.state) {
    const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy");
    hdf5_check(H5Tset_size(type, value.size() + 1), "H5Tset_size");
    hdf5_check(H5Tset_cset(type, H5T_CSET_UTF8), "H5Tset_cset");
    const Hdf5Handle text(H5Dcreate2(group, key.c_str(), type, scalar, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose,
                          "H5Dcreate2");
    if (writes) hdf5_check(H5Dwrite(text, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value.c_str()), "H5Dwrite");
  }
}

FileEntry write_global_file(const std::string& folder, const Manifest& manifest) {
  const MemoryFile image;
  {
    const Hdf5Silence silence;
    std::size_t parts = 0, text = 0;
    for (const TensorEntry& tensor : manifest.tensors) parts += 1 + tensor.parts.size();
    for (const auto& [key, value] : manifest.state) text += key.size() + value.size();
    image.check_limit(static_cast<std::int64_t>(4096 + 1024 * parts + text));
    Hdf5Handle file = image.create_hdf5();
    write_state(file, manifest);
    const float fill = std::numeric_limits<float>::quiet_NaN();
    for (const TensorEntry& tensor : manifest.tensors) {
      const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
      hdf5_check(H5Pset_fill_value(creation, H5T_NATIVE_FLOAT, &fill), "H5Pset_fill_value");
      const Hdf5Handle space = make_space(tensor.shape);
      const std::vector<std::string> names = dataset_names(tensor);
      for (std::size_t i = 0; i < tensor.parts.size(); ++i) {
        const StoredPart& part = tensor.parts[i];
        const Hdf5Handle source = make_space({part.extent.count()});
        select_extent(space, part.extent);
        hdf5_check(H5Pset_virtual(creation, space, rank_file_name(part.rank).c_str(), names[i].c_str(), source),
                   "H5Pset_virtual");
      }
      hdf5_check(H5Sselect_all(space), "H5Sselect_all");
      const Hdf5Handle dataset(
          H5Dcreate2(file, tensor.name.c_str(), H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
          "H5Dcreate2");
    }
    file.close();
  }
  return write_image(folder, "checkpoint.h5", image, {});
}

void check_global_file(const std::string& path, const Manifest& manifest) {
  const Hdf5Silence silence;
  const Hdf5Handle file = open_hdf5(path);
  for (const TensorEntry& tensor : manifest.tensors) {
    const Hdf5Handle dataset(H5Dopen2(file, tensor.name.c_str(), H5P_DEFAULT), H5Dclose, "H5Dopen2");
    const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "H5Dget_space");
    if (H5Sextent_equal(space, make_space(tensor.shape)) <= 0)
      throw Error({.what = fmt::format("{}: tensor '{}' does not have the shape {}", path, tensor.name,
                                       to_string(tensor.shape))});
  }
}

}  // namespace choir
