// The live line on a terminal of any width, resized during a run: what the user sees.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>

#include "framework/train/progress.h"
#include "tests/launch/runs.h"
#include "tests/launch/terminal.h"

namespace choir::tests {
namespace {

const std::regex counter("step \\d+/\\d+");

std::size_t counters(const std::vector<std::string>& lines) {
  std::size_t n = 0;
  for (const std::string& line : lines)
    n += static_cast<std::size_t>(
        std::distance(std::sregex_iterator(line.begin(), line.end(), counter), std::sregex_iterator()));
  return n;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "|" + line + "\n";
  return text;
}

/// Expects exactly one live line: the last line, on one row, with one column left.
void expect_one_live_line(const Terminal& terminal) {
  std::vector<std::string> rows = terminal.screen();
  while (!rows.empty() && rows.back().empty()) rows.pop_back();
  ASSERT_FALSE(rows.empty());
  EXPECT_TRUE(std::regex_search(rows.back(), counter, std::regex_constants::match_continuous)) << joined(rows);
  EXPECT_LT(rows.back().size(), static_cast<std::size_t>(terminal.columns())) << joined(rows);
  EXPECT_EQ(counters(terminal.lines()), 1u) << joined(terminal.lines());
}

/// A C stream whose output is passed to a terminal.
class Sink {
 public:
  Sink() : stream_(open_memstream(&text_, &size_)) {}
  ~Sink() {
    std::fclose(stream_);
    std::free(text_);
  }
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  std::FILE* stream() { return stream_; }
  /// What was written since the last call.
  std::string take() {
    std::fflush(stream_);
    const std::string text(text_ + taken_, size_ - taken_);
    taken_ = size_;
    return text;
  }

 private:
  char* text_ = nullptr;
  std::size_t size_ = 0, taken_ = 0;
  std::FILE* stream_;
};

StepReport step_report(std::int64_t step) {
  return {.step = step,
          .steps = 600,
          .loss = 4.123,
          .rate = 1.9e-3,
          .gradient_norm = 0.81,
          .tokens_per_second = 12345,
          .share_of_peak = 0.71,
          .memory_bytes = 600'000'000,
          .seconds_left = 65};
}

TEST(LiveLine, LeavesNothingBehindWhenTheWidthChangesBetweenAllTwoOf40To200Columns) {
  for (const Narrowing narrowing : {Narrowing::wrap, Narrowing::cut})
    for (int before = 40; before <= 200; before += 5)
      for (int after = 40; after <= 200; after += 7) {
        Terminal terminal(before, 6, narrowing);
        Sink sink;
        Progress progress(sink.stream(), true, [&] { return terminal.columns(); });
        progress.say("above");
        progress.step(step_report(12));
        terminal.write(sink.take());
        expect_one_live_line(terminal);
        terminal.resize(after);
        progress.say("between");
        progress.step(step_report(13));
        terminal.write(sink.take());
        expect_one_live_line(terminal);
        EXPECT_EQ(terminal.lines().size(), 3u) << joined(terminal.lines());
        EXPECT_EQ(terminal.lines()[0] + terminal.lines()[1], "abovebetween") << joined(terminal.lines());
        EXPECT_EQ(terminal.unknown(), "");
        if (HasFailure()) FAIL() << "from " << before << " to " << after << " columns";
      }
}

TEST(LiveLine, DrawnForAnOlderWidthDoesNotWrap) {
  Terminal terminal(120, 6, Narrowing::wrap);
  Sink sink;
  Progress progress(sink.stream(), true, [] { return 120; });
  progress.say("above");
  progress.step(step_report(12));
  terminal.resize(40);  // after the line was drawn and before it is shown
  terminal.write(sink.take());
  progress.say("said");
  terminal.write(sink.take());
  EXPECT_EQ(terminal.lines(), (std::vector<std::string>{"above", "said"}));
}

TEST(LiveLine, IsOneLineOnAnEmptyScreenToo) {
  Terminal terminal(80, 6, Narrowing::wrap);
  Sink sink;
  Progress progress(sink.stream(), true, [] { return 80; });
  for (int step = 12; step < 15; ++step) {
    progress.step(step_report(step));
    terminal.write(sink.take());
    EXPECT_EQ(counters(terminal.lines()), 1u) << joined(terminal.lines());
  }
  progress.say("said");
  terminal.write(sink.take());
  EXPECT_EQ(terminal.lines(), (std::vector<std::string>{"", "said"}));
  EXPECT_EQ(terminal.unknown(), "");
}

// The two checks above detect a line that is drawn as if every terminal were wide.
TEST(Terminal, ShowsTheRowsThatALineBeyondItsWidthLeavesBehind) {
  Terminal terminal(40, 6, Narrowing::wrap);
  for (int step = 12; step < 14; ++step) terminal.write("\r\033[K" + format(step_report(step), std::string::npos));
  EXPECT_EQ(counters(terminal.lines()), 2u) << joined(terminal.lines());
  EXPECT_EQ(terminal.screen().size(), 5u) << joined(terminal.screen());
}

TEST(Terminal, WrapsAgainOrCutsWhenItIsMadeNarrower) {
  for (const Narrowing narrowing : {Narrowing::wrap, Narrowing::cut}) {
    const bool wraps = narrowing == Narrowing::wrap;
    Terminal terminal(10, 3, narrowing);
    terminal.write("first\r\nabcdefghij\rA");  // no wrap yet: the next character would be on the next row
    EXPECT_EQ(terminal.screen(), (std::vector<std::string>{"first", "Abcdefghij"}));
    terminal.resize(4);
    EXPECT_EQ(terminal.lines(),
              wraps ? (std::vector<std::string>{"first", "Abcdefghij"}) : (std::vector<std::string>{"firs", "Abcd"}));
    EXPECT_EQ(terminal.screen(),
              wraps ? (std::vector<std::string>{"Abcd", "efgh", "ij"}) : (std::vector<std::string>{"firs", "Abcd"}));
    terminal.write("B");
    terminal.resize(10);
    EXPECT_EQ(terminal.lines(),
              wraps ? (std::vector<std::string>{"first", "ABcdefghij"}) : (std::vector<std::string>{"firs", "ABcd"}));
    terminal.write("\r\033[Jend\r\n\033[31mx");
    EXPECT_EQ(terminal.lines().back(), "x");
    EXPECT_EQ(terminal.lines()[1], "end");
    EXPECT_EQ(terminal.unknown(), "ESC[31m ");
  }
}

/// The number of live lines that the program has written so far, complete or not.
std::size_t drawn(const TerminalSession& session) { return counters({session.written()}); }

/// Resizes the terminal while a run draws, and checks it after each change.
void resize_while_running(TerminalSession& session) {
  const auto look = [&] {
    // Lines that begin after a change are drawn for the new width; one or two may have begun before. A line is complete
    // when its line end is written. An evaluation removes it until the next step.
    const std::size_t before = drawn(session);
    const auto& terminal = session.terminal();
    EXPECT_TRUE(session.show_until([&] {
      return drawn(session) >= before + 3 && session.written().ends_with('\n') && counters(terminal.screen()) > 0;
    })) << joined(terminal.screen());
    expect_one_live_line(terminal);
    EXPECT_EQ(terminal.unknown(), "");
  };
  look();
  for (const int columns : {97, 40, 200, 80, 120, 41, 96, 98}) {
    session.resize(columns);
    look();
    if (testing::Test::HasFailure()) FAIL() << "after a change to " << columns << " columns";
  }
  for (int columns = 200; columns >= 40; columns -= 9) {  // as if the user drags the edge of a window
    ASSERT_TRUE(session.show_until([&] { return session.written().ends_with('\n'); }));
    session.resize(columns);
  }
  look();
}

/// The lines after the one that contains `words`.
std::vector<std::string> from(const std::vector<std::string>& lines, const std::string& words) {
  const auto first = std::find_if(lines.begin(), lines.end(),
                                  [&](const std::string& line) { return line.find(words) != std::string::npos; });
  return {first, lines.end()};
}

std::size_t count(const std::vector<std::string>& lines, const std::string& words) {
  return static_cast<std::size_t>(std::count_if(
      lines.begin(), lines.end(), [&](const std::string& line) { return line.find(words) != std::string::npos; }));
}

const std::string endless = "train.steps=1000000 train.evaluate_every=100 checkpoint.every=0 train.log_every=100000 ";

TEST(LiveLine, FitsTheTerminalDuringARunAndIsRemovedAtItsEnd) {
  const Workshop shop;
  for (const Narrowing narrowing : {Narrowing::wrap, Narrowing::cut}) {
    const std::string run = narrowing == Narrowing::wrap ? "wrap" : "cut";
    TerminalSession session("export TERM=xterm; " + shop.train_command_alone(run, endless),
                            Terminal(40, 24, narrowing));
    resize_while_running(session);
    if (HasFailure()) return;
    session.resize(200);
    EXPECT_TRUE(session.show_until([&] { return session.written().find("held-out loss") != std::string::npos; }));
    session.send(SIGINT);
    EXPECT_EQ(session.finish(), 130) << session.written();

    // Only the lines of the log are left, all of them, in order.
    const std::vector<std::string> lines = from(session.terminal().lines(), "parameters; ");
    ASSERT_FALSE(lines.empty());
    EXPECT_EQ(counters(lines), 0u) << joined(lines);
    std::ifstream log(shop.path(run) + "/logs/rank-0.log");
    std::vector<std::string> said;
    for (std::string line; std::getline(log, line);) said.push_back(line);
    auto next = said.begin();
    for (const std::string& line : lines) {
      while (next != said.end() && (line.empty() || next->find(line) == std::string::npos)) ++next;
      ASSERT_TRUE(next != said.end()) << "'" << line << "' is not in the log\n" << joined(lines);
    }
    for (const char* words : {"held-out loss", "stopped after step"})
      EXPECT_EQ(count(lines, words), count(said, words)) << joined(lines);
    EXPECT_GT(count(said, "held-out loss"), 0u);

    // mpirun of Open MPI 5 shows a line when it ends, so each live line must.
    std::istringstream parts(session.written());
    for (std::string part; std::getline(parts, part);) EXPECT_LE(counters({part}), 1u) << part;

    // Whatever else runs on this machine.
    const std::regex share("(\\d+) % of peak");
    const std::string& written = session.written();
    for (std::sregex_iterator each(written.begin(), written.end(), share), end; each != end; ++each)
      EXPECT_LE(std::stoi((*each)[1]), 100) << each->str();
  }
}

TEST(LiveLine, UnderLaunchTrainFitsTheTerminalOfTheUserAndNotThatOfMpirun) {
  const Workshop shop;
  TerminalSession session("export TERM=xterm; CHOIR=" CHOIR_BINARY " RANKS=2 exec " CHOIR_SOURCE_DIR "/launch/train " +
                              shop.path("tiny.yaml") + " train.folder=" + shop.path("run") + " " + endless,
                          Terminal(40, 24, Narrowing::wrap));
  resize_while_running(session);
  if (HasFailure()) return;
  session.send(SIGINT);
  EXPECT_EQ(session.finish(), 130) << session.written();
  const std::vector<std::string> lines = session.terminal().lines();
  EXPECT_EQ(counters(lines), 0u) << joined(lines);
  EXPECT_EQ(count(lines, "stopped after step"), 1u) << joined(lines);
  // A message on stderr is not drawn over the live line.
  EXPECT_EQ(std::count(lines.begin(), lines.end(),
                       "launch/train: SIGINT: saving after this step, then ending; a second Ctrl-C ends at once"),
            1)
      << joined(lines);
}

TEST(LiveLine, IsForTerminalsThatRedrawALine) {
  const Workshop shop;
  const std::string steps = "train.steps=20 train.evaluate_sequences=1";
  for (const char* kind : {"export TERM=dumb; ", "unset TERM; "}) {
    TerminalSession session(kind + shop.train_command_alone("run", steps), Terminal(80, 24, Narrowing::wrap));
    EXPECT_EQ(session.finish(), 0) << session.written();
    EXPECT_EQ(session.written().find('\033'), std::string::npos) << session.written();
    EXPECT_NE(session.written().find("step 20/20  loss "), std::string::npos) << session.written();
    std::filesystem::remove_all(shop.path("run"));
  }
  // Under mpirun a rank has its own terminal, but the output goes to a file.
  TerminalSession session("export TERM=xterm; " + shop.train_command(1, "run", steps) + " > " + shop.path("out"),
                          Terminal(80, 24, Narrowing::wrap));
  EXPECT_EQ(session.finish(), 0) << session.written();
  std::ifstream out(shop.path("out"));
  const std::string text{std::istreambuf_iterator<char>(out), {}};
  EXPECT_EQ(text.find('\033'), std::string::npos) << text;
  EXPECT_NE(text.find("step 20/20  loss "), std::string::npos) << text;
}

}  // namespace
}  // namespace choir::tests
