// What `choir doctor` reports about a machine: one line for each thing that Choir uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace choir {

struct Check {
  enum class State : std::uint8_t {
    good,     ///< found, and it works
    limited,  ///< something is slower or not possible; `fix` says what and how to get it
    broken    ///< nothing works without it
  };
  State state = State::good;
  std::string name;  ///< "MPI"
  std::string text;  ///< what was found
  std::string fix;   ///< what to do about it
};

/// "AMD EPYC 9654 96-Core Processor"
std::string processor_name();

/// MPI, HDF5, the processor, and a test write in `folder`, which is created if it is missing.
std::vector<Check> host_checks(const std::string& folder);

/// Driver, GPUs, NCCL and cuDNN; each GPU multiplies two matrices. Only in builds with CUDA (launch/cuda).
std::vector<Check> gpu_checks();

/// One aligned line for each, its fix under it.
std::string describe(const std::vector<Check>&);

}  // namespace choir
