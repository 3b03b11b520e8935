// Expert parallelism: the ranks of the expert axis have other rows and share the experts (Lepikhin et al. 2020, arXiv
// 2006.16668). A rank sends the rows of each expert to the rank that holds it, and gets the results back.
//
// The shapes do not depend on the choices: each rank has a block of slots for every expert (kernels/experts.h), in
// which empty slots are zero.
#pragma once

#include "framework/comm/context.h"
#include "kernels/experts.h"

namespace choir {

/// slots [places * n, D] of this rank's rows -> [experts held * ranks * n, D]: for each expert held, those of all
/// ranks. Collective over the expert axis.
Tensor dispatch(const Tensor& slots, const kernels::ExpertPlaces&, Context&, const char* label);
/// The way back. Places without an expert are zero.
Tensor collect(const Tensor& results, const kernels::ExpertPlaces&, Context&, const char* label);

/// counts [n] of this rank -> [ranks * n], of all ranks of the context axis. Collective over it.
Tensor gather_counts(const Tensor& counts, Context&, const char* label);

}  // namespace choir
