// The hosts of a hostfile, and the number of ranks that a run can use on those that are left.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/config/config.h"

namespace choir {

struct Host {
  std::string name;
  std::int64_t slots = 0;
  bool operator==(const Host&) const = default;
};

/// The hosts of mpirun's hostfile, each once: slots of several lines for one host add up. Throws ConfigError if the
/// file cannot be read, or if a line has no slots=N: then only mpirun knows how many ranks the host takes.
std::vector<Host> read_hostfile(const std::string& path);

/// True if both name the same host: a program may know a host by its full name or by the part before the first dot.
bool same_host(const std::string& a, const std::string& b);

/// `hosts` without those that `names` names.
std::vector<Host> without(const std::vector<Host>& hosts, const std::vector<std::string>& names);

/// The first hosts of `hosts` that have at least `ranks` slots together, in the order in which mpirun fills them.
std::vector<Host> first_with(const std::vector<Host>& hosts, std::int64_t ranks);

std::int64_t slots_of(const std::vector<Host>& hosts);

struct Fit {
  std::int64_t ranks = 0;        ///< 0: the configuration does not run on this number of ranks or fewer
  std::int64_t micro_batch = 0;  ///< parallel.micro_batch
  bool operator==(const Fit&) const = default;
};

/// The largest number of ranks, at most `most`, on which the configuration runs with its tensor, context, pipeline and
/// expert ranks: the data axis takes the rest. parallel.micro_batch is lowered if this number of ranks needs it.
Fit fit_ranks(const Config& config, std::int64_t most);

}  // namespace choir
