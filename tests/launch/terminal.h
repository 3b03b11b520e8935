// An emulated terminal, and a program that runs in it: what a user would see.
//
// The emulator supports only the control sequences that Choir uses. Terminals differ in what happens to a line when
// they are made narrower; both kinds are emulated.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace choir::tests {

/// What happens to lines that are longer than the new width of a terminal.
enum class Narrowing {
  wrap,  ///< wraps them again and keeps the cursor at its character: VTE, kitty, iTerm2, Windows Terminal, tmux
  cut,   ///< cuts them off: xterm, the console of Linux, screen
};

class Terminal {
 public:
  Terminal(int columns, int rows, Narrowing narrowing);

  /// Shows what a program has written.
  void write(std::string_view bytes);
  void resize(int columns);

  int columns() const { return columns_; }
  /// The rows that are visible, from the top, without the spaces at their ends.
  std::vector<std::string> screen() const;
  /// All lines, those that have scrolled out included: rows that were wrapped are joined.
  std::vector<std::string> lines() const;
  /// Control sequences that the emulator does not support, in order; "" if there were none.
  const std::string& unknown() const { return unknown_; }

 private:
  struct Row {
    std::string cells;
    bool wrapped = false;  // the next row is the rest of this line
  };
  Row blank() const { return {std::string(static_cast<std::size_t>(columns_), ' '), false}; }
  Row& row() { return rows_[row_]; }
  std::size_t top() const;
  void put(char character);
  void line_feed();
  void reverse_index();
  void control(char command);
  void rewrap(int columns);

  int columns_, height_;
  Narrowing narrowing_;
  std::vector<Row> rows_;  // what has scrolled out, then the screen
  std::size_t row_ = 0;
  int column_ = 0;
  bool pending_ = false;  // a character is in the last column: the next one goes to the next row
  bool wrap_ = true;
  std::string sequence_;  // of an escape sequence that has begun
  std::string unknown_;
};

/// A shell command on a pseudo-terminal that a Terminal shows.
class TerminalSession {
 public:
  TerminalSession(const std::string& command, Terminal terminal);
  ~TerminalSession();  ///< ends the command if it still runs
  TerminalSession(const TerminalSession&) = delete;
  TerminalSession& operator=(const TerminalSession&) = delete;

  /// Shows what the command writes until `condition` is true. False if the command ends before, or after a minute.
  bool show_until(const std::function<bool()>& condition);
  /// Makes the terminal wider or narrower, and notifies the command as terminals do.
  void resize(int columns);
  void send(int signal) const;
  /// Shows what is left and returns the exit code, or 128 + signal.
  int finish();

  const Terminal& terminal() const { return terminal_; }
  const std::string& written() const { return written_; }  ///< all that the command has written

 private:
  Terminal terminal_;
  std::string written_;
  int controller_ = -1;  // the emulator's side of the pseudo-terminal
  pid_t child_ = 0;
};

}  // namespace choir::tests
