#include "tests/launch/terminal.h"

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace choir::tests {
namespace {

std::string without_spaces_at_the_end(const std::string& text) {
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

winsize size_of(const Terminal& terminal, int rows) {
  return {.ws_row = static_cast<unsigned short>(rows),
          .ws_col = static_cast<unsigned short>(terminal.columns()),
          .ws_xpixel = 0,
          .ws_ypixel = 0};
}

constexpr int session_rows = 24;

}  // namespace

Terminal::Terminal(int columns, int rows, Narrowing narrowing)
    : columns_(columns), height_(rows), narrowing_(narrowing), rows_{blank()} {}

std::size_t Terminal::top() const {
  const auto height = static_cast<std::size_t>(height_);
  return rows_.size() > height ? rows_.size() - height : 0;
}

void Terminal::write(std::string_view bytes) {
  for (const char byte : bytes) {
    if (!sequence_.empty()) {
      sequence_ += byte;
      if (sequence_.size() == 2 && byte == '[') continue;
      if (sequence_.size() > 2 && (std::isdigit(static_cast<unsigned char>(byte)) != 0 || byte == ';' || byte == '?'))
        continue;
      control(byte);
      sequence_.clear();
    } else if (byte == '\033') {
      sequence_ = byte;
    } else if (byte == '\r') {
      column_ = 0;
      pending_ = false;
    } else if (byte == '\n') {
      line_feed();
    } else {
      put(byte);
    }
  }
}

void Terminal::put(char character) {
  if (pending_) {
    row().wrapped = true;
    line_feed();
    column_ = 0;
  }
  row().cells[static_cast<std::size_t>(column_)] = character;
  if (column_ + 1 < columns_)
    ++column_;
  else
    pending_ = wrap_;
}

void Terminal::line_feed() {
  pending_ = false;
  if (++row_ == rows_.size()) rows_.push_back(blank());
}

void Terminal::reverse_index() {
  pending_ = false;
  if (row_ > top()) {
    --row_;
    return;
  }
  rows_.insert(rows_.begin() + static_cast<std::ptrdiff_t>(row_), blank());
  if (rows_.size() > row_ + static_cast<std::size_t>(height_)) rows_.pop_back();
}

void Terminal::control(char command) {
  const std::string arguments = sequence_.size() > 2 ? sequence_.substr(2, sequence_.size() - 3) : "";
  if (command == 'J' && arguments.empty()) {
    std::fill(row().cells.begin() + column_, row().cells.end(), ' ');
    row().wrapped = false;
    for (std::size_t below = row_ + 1; below < rows_.size(); ++below) rows_[below] = blank();
    pending_ = false;
  } else if (command == 'K' && arguments.empty()) {
    std::fill(row().cells.begin() + column_, row().cells.end(), ' ');
    row().wrapped = false;
    pending_ = false;
  } else if ((command == 'l' || command == 'h') && arguments == "?7") {
    wrap_ = command == 'h';
    pending_ = false;
  } else if (sequence_ == "\033M") {
    reverse_index();
  } else {
    unknown_ += "ESC" + sequence_.substr(1) + " ";
  }
}

void Terminal::resize(int columns) {
  if (narrowing_ == Narrowing::wrap) {
    rewrap(columns);
    return;
  }
  for (Row& each : rows_) {
    each.cells.resize(static_cast<std::size_t>(columns), ' ');
    each.wrapped = false;  // each row is a separate line from now on
  }
  columns_ = columns;
  column_ = std::min(column_, columns - 1);
  pending_ = false;
}

void Terminal::rewrap(int columns) {
  const std::vector<Row> old = std::exchange(rows_, {});
  const std::size_t old_row = std::exchange(row_, 0);
  const auto old_columns = static_cast<std::size_t>(std::exchange(columns_, columns));
  const auto width = static_cast<std::size_t>(columns);
  for (std::size_t first = 0, end = 0; first < old.size(); first = end) {
    std::string line;
    bool has_cursor = false;
    std::size_t cursor = 0;  // the number of the line's characters before the cursor
    for (end = first; end == first || old[end - 1].wrapped; ++end) {
      if (end == old_row) {
        has_cursor = true;
        cursor = (end - first) * old_columns + static_cast<std::size_t>(column_) + (pending_ ? 1 : 0);
      }
      line += old[end].cells;
      if (end + 1 == old.size()) {
        ++end;
        break;
      }
    }
    line = without_spaces_at_the_end(line);
    const std::size_t first_new = rows_.size();
    for (std::size_t at = 0; at == 0 || at < line.size() || (has_cursor && at < cursor); at += width) {
      Row piece = blank();
      if (at < line.size()) line.copy(piece.cells.data(), width, at);
      piece.wrapped = at + width < line.size();
      rows_.push_back(std::move(piece));
    }
    if (!has_cursor) continue;
    pending_ = cursor > 0 && cursor % width == 0 && cursor >= line.size();  // the next row has no character yet
    row_ = first_new + (pending_ ? cursor - 1 : cursor) / width;
    column_ = static_cast<int>(pending_ ? width - 1 : cursor % width);
  }
  // Empty rows below the cursor are not history.
  while (rows_.size() > row_ + 1 && without_spaces_at_the_end(rows_.back().cells).empty()) rows_.pop_back();
}

std::vector<std::string> Terminal::screen() const {
  std::vector<std::string> rows;
  for (std::size_t i = top(); i < rows_.size(); ++i) rows.push_back(without_spaces_at_the_end(rows_[i].cells));
  return rows;
}

std::vector<std::string> Terminal::lines() const {
  std::vector<std::string> lines;
  std::string line;
  for (const Row& each : rows_) {
    line += each.cells;
    if (each.wrapped) continue;
    lines.push_back(without_spaces_at_the_end(line));
    line.clear();
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

TerminalSession::TerminalSession(const std::string& command, Terminal terminal) : terminal_(std::move(terminal)) {
  winsize size = size_of(terminal_, session_rows);
  child_ = forkpty(&controller_, nullptr, nullptr, &size);
  if (child_ == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
}

TerminalSession::~TerminalSession() {
  close(controller_);  // hangs up, like closing a window
  if (child_ == 0) return;
  kill(-child_, SIGKILL);
  waitpid(child_, nullptr, 0);
}

bool TerminalSession::show_until(const std::function<bool()>& condition) {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::minutes(1);
  std::array<char, 4096> buffer;
  while (!condition()) {
    if (Clock::now() > limit) return false;
    pollfd readable{.fd = controller_, .events = POLLIN, .revents = 0};
    if (poll(&readable, 1, 100) < 1) continue;
    const ssize_t bytes = read(controller_, buffer.data(), buffer.size());
    if (bytes <= 0) return false;  // EIO: the last process has closed the terminal
    written_.append(buffer.data(), static_cast<std::size_t>(bytes));
    terminal_.write({buffer.data(), static_cast<std::size_t>(bytes)});
  }
  return true;
}

void TerminalSession::resize(int columns) {
  terminal_.resize(columns);
  const winsize size = size_of(terminal_, session_rows);
  ioctl(controller_, TIOCSWINSZ, &size);
}

void TerminalSession::send(int signal) const { kill(child_, signal); }

int TerminalSession::finish() {
  show_until([] { return false; });
  int status = 0;
  waitpid(std::exchange(child_, 0), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace choir::tests
