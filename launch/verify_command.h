// `choir verify`, with the mesh as an argument: tests pass one that makes mistakes.
#pragma once

#include <functional>

#include "launch/process.h"

namespace choir {

/// make_mesh() of framework/comm/mesh.h, or a replacement in tests.
using MakeMesh = std::function<Mesh(MPI_Comm world, const MeshShape&, Device&, CallRing&)>;

/// Checks the layout of `asked` on all ranks and prints each mismatch. Returns the exit code: 0, or 1 if there is a
/// mismatch. Throws ConfigError if the layout does not fit the ranks. Collective.
int verify(const Config& asked, MpiProcess&, const MakeMesh& make);

}  // namespace choir
