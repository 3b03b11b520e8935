// The progress of a run as a person sees it: one live line on a terminal, plain lines elsewhere.
//
// The live line never wraps. It is drawn with the fields that fit the terminal's width at that moment, and the cursor
// then returns to its first column: when the terminal becomes narrower, most terminals wrap the line again and keep the
// cursor at its first character, others cut it off. In both cases clearing from the cursor to the end of the screen
// removes all of it. All that is written ends with a line end: mpirun of Open MPI 5 holds back the rest of a line.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace choir {

struct StepReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0, rate = 0, gradient_norm = 0;
  double dropped = -1;  ///< share of the choices of experts or heads for which there was no room; negative: no choices
  double tokens_per_second = 0;
  double share_of_peak = 0;       ///< of this machine's matrix-product rate; 0: not known; above 1: not shown
  std::int64_t memory_bytes = 0;  ///< the allocator's peak on this rank
  double seconds_left = 0;
};

/// "step 120/600  loss 4.1230  rate 1.90e-03  norm 0.810  12345 tok/s  71 % of peak  0.60 GB  1:05 left", at most
/// `width` characters of it: fields are dropped in the order memory, share of peak, rate, norm, choices of experts
/// dropped (after the norm), tokens per second, time left, loss. If the step counter does not fit, its end is cut off.
std::string format(const StepReport&, std::size_t width);
/// More choices of experts dropped than this are a sign of a router out of balance: reports say so.
inline constexpr double many_dropped = 0.1;
/// "1:05", "2:03:04"
std::string format_duration(double seconds);

class Progress {
 public:
  /// Writes to `out` if `shown` (rank 0). `columns` returns the width of the terminal that shows `out` and is called
  /// for each live line; if it is empty, `out` is not a terminal and gets a whole line every few seconds.
  Progress(std::FILE* out, bool shown, std::function<int()> columns);
  ~Progress();

  void step(const StepReport&);
  /// A line that stays.
  void say(const std::string& text);

 private:
  std::FILE* out_;
  bool shown_;
  std::function<int()> columns_;
  bool unfinished_ = false;  // the live line is on the terminal, and the cursor in it
  double last_ = 0;          // when a step was last shown, in seconds
};

}  // namespace choir
