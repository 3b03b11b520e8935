#include "framework/train/progress.h"

#include <fmt/format.h>

#include <chrono>

namespace choir {

std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(seconds + 0.5);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

std::string format(const StepReport& r) {
  const bool share_known = r.share_of_peak > 0 && r.share_of_peak <= 1;
  const std::string share = share_known ? fmt::format("  {:.0f} % of peak", 100 * r.share_of_peak) : "";
  return fmt::format("step {}/{}  loss {:.4f}  rate {:.2e}  norm {:.3f}  {:.0f} tok/s{}  {:.2f} GB  {} left", r.step,
                     r.steps, r.loss, r.rate, r.gradient_norm, r.tokens_per_second, share,
                     static_cast<double>(r.memory_bytes) / 1e9, format_duration(r.seconds_left));
}

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Progress::Progress(std::FILE* out, bool shown, bool live) : out_(out), shown_(shown), live_(live) {}

Progress::~Progress() {
  if (unfinished_) std::fputc('\n', out_);
}

void Progress::clear_line() {
  if (unfinished_) std::fputs("\r\033[K", out_);
  unfinished_ = false;
}

void Progress::step(const StepReport& report) {
  constexpr double every_live = 0.1, every_plain = 5;  // seconds
  if (!shown_) return;
  const double time = now();
  const bool last = report.step == report.steps;
  if (!last && time - last_ < (live_ ? every_live : every_plain)) return;
  last_ = time;
  clear_line();
  std::fputs(format(report).c_str(), out_);
  if (live_ && !last)
    unfinished_ = true;
  else
    std::fputc('\n', out_);
  std::fflush(out_);
}

void Progress::say(const std::string& text) {
  if (!shown_) return;
  clear_line();
  std::fputs((text + "\n").c_str(), out_);
  std::fflush(out_);
}

}  // namespace choir
