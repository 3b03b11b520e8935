// What a person sees of a run: one live line on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace choir {

struct StepReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0, rate = 0, gradient_norm = 0;
  double tokens_per_second = 0;
  double share_of_peak = 0;       ///< of this machine's matrix-product rate; 0: not known; above 1: not shown
  std::int64_t memory_bytes = 0;  ///< the allocator's peak on this rank
  double seconds_left = 0;
};

/// "step 120/600  loss 4.123  rate 1.9e-03  norm 0.81  12.3k tok/s  71 % of peak  0.6 GB  1:05 left"
std::string format(const StepReport&);
/// "1:05", "2:03:04"
std::string format_duration(double seconds);

class Progress {
 public:
  /// Writes to `out` where `shown` (rank 0); one `live` line for a terminal, else a line every few seconds.
  Progress(std::FILE* out, bool shown, bool live);
  ~Progress();

  void step(const StepReport&);
  /// A line that stays.
  void say(const std::string& text);

 private:
  void clear_line();
  std::FILE* out_;
  bool shown_, live_;
  bool unfinished_ = false;  // the live line is on the terminal, without a line end
  double last_ = 0;
};

}  // namespace choir
