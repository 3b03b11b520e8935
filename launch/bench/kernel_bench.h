// choir bench kernels: the speed of each operation of a training step, compared with the peak of the device.
#pragma once

#include <string>

#include "launch/bench/train_bench.h"

namespace choir {

/// The peak rates of the device.
struct Peak {
  double flops_per_second = 0;  ///< of matrix products in the run's precision
  double bytes_per_second = 0;  ///< of its memory
  std::string source;           ///< "measured", or how it was worked out
};

/// For a GPU: computed from clock, multiprocessors and bus width as the driver reports them. For a CPU: measured, as
/// train_bench.h says.
Peak peak_of(const Config&, const Device&, const TrainBench&);

/// A line for each operation: time of a call, FLOP/s, bytes/s, and the share of the peak that bounds it (the larger of
/// the two). What fits in a cache can exceed the memory's peak.
std::string describe_kernels(const TrainBench&, const Peak&);

}  // namespace choir
