#include "framework/train/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace choir {
namespace {

// From the cursor to the end of the screen: the live line, and its rest on lower rows if a resize has wrapped it.
constexpr char clear_live_line[] = "\r\033[J";
// A line drawn for an earlier width must not wrap either.
constexpr char wrap_off[] = "\033[?7l", wrap_on[] = "\033[?7h";
// From a place in the live line to its first column, with a line end as the last character: up and down again. On the
// first row of the screen, up (reverse index) moves the rows down instead.
constexpr char to_first_column[] = "\r\033M\n";

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

static std::string dropped_text(double dropped) {
  if (dropped < 0) return "";
  return fmt::format("{:.1f} % dropped{}", 100 * dropped,
                     dropped > many_dropped ? fmt::format(" (more than {:.0f} %)", 100 * many_dropped) : "");
}

std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(seconds + 0.5);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

std::string format(const StepReport& r, std::size_t width) {
  struct Part {
    int dropped;  // 1 is dropped first
    std::string text;
  };
  std::vector<Part> parts = {
      {9, fmt::format("step {}/{}", r.step, r.steps)},
      {8, fmt::format("loss {:.4f}", r.loss)},
      {3, fmt::format("rate {:.2e}", r.rate)},
      {4, fmt::format("norm {:.3f}", r.gradient_norm)},
      {5, dropped_text(r.dropped)},
      {6, fmt::format("{:.0f} tok/s", r.tokens_per_second)},
      {2, r.share_of_peak > 0 && r.share_of_peak <= 1 ? fmt::format("{:.0f} % of peak", 100 * r.share_of_peak) : ""},
      {1, fmt::format("{:.2f} GB", static_cast<double>(r.memory_bytes) / 1e9)},
      {7, fmt::format("{} left", format_duration(r.seconds_left))},
  };
  std::erase_if(parts, [](const Part& part) { return part.text.empty(); });
  const auto line = [&] {
    std::string text = parts.front().text;
    for (std::size_t i = 1; i < parts.size(); ++i) text += "  " + parts[i].text;
    return text;
  };
  while (parts.size() > 1 && line().size() > width) parts.erase(std::ranges::min_element(parts, {}, &Part::dropped));
  return line().substr(0, width);
}

Progress::Progress(std::FILE* out, bool shown, std::function<int()> columns)
    : out_(out), shown_(shown), columns_(std::move(columns)) {}

Progress::~Progress() {
  if (unfinished_) std::fputc('\n', out_);
}

void Progress::step(const StepReport& report) {
  constexpr double every_live = 0.1, every_plain = 5;  // seconds
  if (!shown_) return;
  const double time = now();
  const bool last = report.step == report.steps;
  if (!last && time - last_ < (columns_ ? every_live : every_plain)) return;
  last_ = time;
  std::string text = format(report, std::string::npos) + "\n";
  if (columns_) {
    // One column stays free: after a character in the last one, the place of the cursor depends on the terminal.
    const auto width = static_cast<std::size_t>(std::max(1, columns_() - 1));
    text = clear_live_line + (wrap_off + format(report, width)) + wrap_on + (last ? "\n" : to_first_column);
  }
  unfinished_ = columns_ && !last;
  std::fputs(text.c_str(), out_);
  std::fflush(out_);
}

void Progress::say(const std::string& text) {
  if (!shown_) return;
  if (unfinished_) {
    std::fputs(clear_live_line, out_);
    unfinished_ = false;
    last_ = 0;  // the next step draws the line again
  }
  std::fputs((text + "\n").c_str(), out_);
  std::fflush(out_);
}

}  // namespace choir
