#include "launch/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace choir {
namespace {

std::string output_of(pid_t process) { return "/proc/" + std::to_string(process) + "/fd/1"; }

/// What a link in /proc points to; "" if this process may not see it.
std::string target(const std::string& link) {
  std::error_code error;
  return std::filesystem::read_symlink(link, error).string();
}

/// 0 if there is none.
pid_t parent_of(pid_t process) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string word; status >> word;) {
    pid_t parent = 0;
    if (word == "PPid:" && status >> parent) return parent;
  }
  return 0;
}

/// The link in /proc to the output of the nearest ancestor whose output is not that of this process.
std::string output_of_mpirun() {
  const std::string own = target(output_of(getpid()));
  pid_t process = getppid();
  while (process > 1 && target(output_of(process)) == own) process = parent_of(process);
  return output_of(process);
}

int columns_of(int terminal) {
  winsize size{};
  return ioctl(terminal, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::function<int()> watched_columns() {
  const char* kind = std::getenv("TERM");
  if (isatty(STDOUT_FILENO) != 1 || kind == nullptr || std::string(kind) == "dumb") return {};
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return [] { return columns_of(STDOUT_FILENO); };

  const std::string link = output_of_mpirun(), name = target(link);
  if (!name.starts_with("/dev/pts/") && !name.starts_with("/dev/tty") && name != "/dev/console") return {};
  return [link] {
    const int terminal = open(link.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    const int columns = columns_of(terminal);
    if (terminal >= 0) close(terminal);
    return columns;
  };
}

}  // namespace choir
