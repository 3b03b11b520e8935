// rank-N.h5: the elements that one rank owns, each piece a contiguous one-dimensional f32 dataset.
#pragma once

#include <string>
#include <vector>

#include "framework/checkpoint/manifest.h"

namespace choir {

/// Creates and syncs `folder`/rank-N.h5 and returns the report on it. Empty pieces are left out. `digests[i]` is
/// digest_of(pieces[i]). Calls HDF5. Throws Error or Hdf5Failure if that fails.
Manifest write_rank_file(const std::string& folder, int rank, const std::vector<Piece>& pieces,
                         const std::vector<std::uint64_t>& digests);

}  // namespace choir
