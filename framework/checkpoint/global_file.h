// A checkpoint as one HDF5 file: every tensor under its global name and shape, the state under /state.
//
// checkpoint.h5 has no elements of its own: its virtual datasets refer to the rank files beside it. The fill value is
// NaN, so that the elements of a missing rank file are visibly wrong. (Reading many sources is slow unless the rank
// files are open already.)
#pragma once

#include <string>

#include "framework/checkpoint/manifest.h"

namespace choir {

/// A dataspace of `shape`; and the selection of an extent of it, in row-major order.
Hdf5Handle make_space(const Shape& shape);
void select_extent(hid_t space, const Extent& extent);

/// Attribute "step" of the file, and one string dataset /state/KEY for each entry of the state. If the ranks of a
/// communicator share the file, all call this, and one of them `writes` the strings.
void write_state(hid_t file, const Manifest& manifest, bool writes = true);

/// Creates and syncs `folder`/checkpoint.h5. Calls HDF5.
FileEntry write_global_file(const std::string& folder, const Manifest& manifest);

/// Opens every tensor of a checkpoint.h5; throws Error or Hdf5Failure if one is not as the manifest says.
void check_global_file(const std::string& path, const Manifest& manifest);

}  // namespace choir
