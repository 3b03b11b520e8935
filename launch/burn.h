// A burn before a run: each rank's processor cores or GPU repeat one product, all at the same time. Hardware that is
// slow under load, or that computes wrong bits now and then, is found before it costs a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/core/device.h"
#include "launch/doctor.h"

namespace choir {

struct Burn {
  std::string host;
  std::string processor;  ///< results are compared between ranks of the same: "NVIDIA H100", "AMD EPYC, 4 threads"
  double flops_per_second = 0;
  std::int64_t products = 0, wrong = 0;  ///< wrong: with other bits than the first one
  std::uint64_t digest = 0;              ///< of the first result
  std::string problem;                   ///< why there is none of this, or ""
};

/// Multiplies the same two matrices for `seconds`: of 1024 rows in f32 on a CPU, of 4096 in bf16 on a GPU.
Burn burn(Device&, double seconds);

/// By rank. Broken: a rank that has a problem, or whose products did not all have the same bits, or not those of most
/// ranks with such a processor. Limited: a rank at less than 0.8 of the median speed of these.
Check judge_burns(const std::vector<Burn>&);

}  // namespace choir
