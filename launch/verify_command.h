// `choir verify`, with the mesh as an argument: tests pass one that makes mistakes.
#pragma once

#include <functional>

#include "launch/process.h"

namespace choir {

/// make_mesh() of framework/comm/mesh.h, or what stands for it.
using MakeMesh = std::function<Mesh(MPI_Comm world, const MeshShape&, Device&, CallRing&)>;

/// Proves the layout of `asked` on all ranks and prints what does not hold. Returns the exit code: 0, or 1 if something
/// does not hold. Throws ConfigError if the layout does not fit the ranks. Collective.
int verify(const Config& asked, MpiProcess&, const MakeMesh& make);

}  // namespace choir
