// One rank drives one GPU: the check that no two ranks drive the same one.
#pragma once

#include <string>

#include "launch/process.h"

namespace choir {

/// Collective over all ranks; `bus` is the PCI address of this rank's GPU. Throws ConfigError on every rank if two
/// ranks of one host drive the same GPU.
void check_distinct_gpus(const MpiProcess&, const std::string& bus);

}  // namespace choir
