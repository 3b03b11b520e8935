// One portable HDF5 file from a checkpoint, written by all ranks through parallel HDF5.
#pragma once

#include <mpi.h>

#include <string>

namespace choir {

/// Collective over `world`. Verifies the checkpoint in folder `path` and writes its tensors and state to the HDF5 file
/// `out`, in the form of checkpoint.h5 but with the elements inside (contiguous, no filters); every rank writes an
/// equal share of each tensor. `out` appears when it is complete. Calls HDF5 and MPI in the caller's thread; no other
/// thread may call them meanwhile. Throws on every rank: ConfigError if the checkpoint is damaged or `out` exists,
/// Error if the disk has no room.
void export_checkpoint(const std::string& path, const std::string& out, MPI_Comm world);

}  // namespace choir
