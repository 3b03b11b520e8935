// Errors that say what, why and how to fix.
//
//   ConfigError  the user can fix it: found before anything is allocated, all problems at once, exit code 2
//   Error        the machine or a library failed: exit code 1
//   SharedError  the same, if every rank throws it: it is printed once, and no rank has to be aborted
//   assert       our mistake; never for anything a user can cause
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

namespace choir {

/// One thing that is wrong. `what` holds the values and the key as the user wrote it.
struct Problem {
  std::string what;
  std::string why = {};
  std::string fix = {};
};

/// "what\n  why: ...\n  fix: ..." without a trailing newline.
std::string describe(const Problem& problem);
std::string describe(const std::vector<Problem>& problems);

class ConfigError : public std::runtime_error {
 public:
  explicit ConfigError(std::vector<Problem> problems)
      : std::runtime_error(describe(problems)), problems_(std::move(problems)) {}
  explicit ConfigError(Problem problem) : ConfigError(std::vector<Problem>{std::move(problem)}) {}
  const std::vector<Problem>& problems() const { return problems_; }

 private:
  std::vector<Problem> problems_;
};

class Error : public std::runtime_error {
 public:
  explicit Error(Problem problem, std::source_location at = std::source_location::current());
};

/// A failure of the machine that every rank of a run throws at the same place.
class SharedError : public std::runtime_error {
 public:
  explicit SharedError(const Problem& problem) : std::runtime_error(describe(problem)) {}
};

/// Throws ConfigError if `problems` is not empty.
void throw_if_any(const std::vector<Problem>& problems);

/// `word` as one word of a shell's command line: in quotes if it needs them.
std::string shell_word(const std::string& word);

/// The candidate nearest to `name` by edit distance, other than `name` itself; "" if more than half of `name` differs.
std::string nearest(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace choir
