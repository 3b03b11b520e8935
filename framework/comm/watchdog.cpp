#include "framework/comm/watchdog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

namespace choir {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// Straight to the descriptor: the thread that hangs may hold the lock of stderr.
void write_to_stderr(const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return;
    if (n > 0) done += static_cast<std::size_t>(n);
  }
}

}  // namespace

Watchdog::Watchdog(const CallRing& ring, std::string logs_folder, double seconds,
                   std::vector<Communicator*> communicators, std::function<std::string()> overdue)
    : ring_(ring),
      logs_folder_(std::move(logs_folder)),
      seconds_(seconds),
      communicators_(std::move(communicators)),
      overdue_(std::move(overdue)),
      last_step_(now()) {}

Watchdog::~Watchdog() { stop(); }

void Watchdog::start() {
  last_step_ = now();
  limited_ = true;
  start_without_limit();
}

void Watchdog::start_without_limit() {
  if (thread_.joinable()) return;
  stop_ = false;
  thread_ = std::thread([this] { watch(); });
}

void Watchdog::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  limited_ = false;
}

void Watchdog::begin_step() {
  last_step_ = now();
  in_step_ = true;
}

void Watchdog::end_step() {
  in_step_ = false;
  last_step_ = now();
}

bool Watchdog::hangs() const {
  return limited_ && (ring_.in_call() || in_step_) &&
         now() - std::max<double>(ring_.last_activity(), last_step_) > seconds_;
}

void Watchdog::watch() {
  const auto period = std::chrono::duration<double>(std::clamp(seconds_ / 20, 0.01, 1.0));
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [this] { return stop_; })) {
    if (const std::string words = problem(); !words.empty()) report_and_exit(words);
    if (hangs())
      report_and_exit(
          fmt::format("no collective call and no step has begun or ended for {:g} s (train.timeout)", seconds_));
  }
}

std::string Watchdog::problem() const {
  for (Communicator* communicator : communicators_)
    if (std::string words = communicator->problem(); !words.empty()) return words;
  return overdue_ ? overdue_() : std::string();
}

void Watchdog::report_and_exit(const std::string& why) const {
  // All ranks detect the hang at about the same time. The first to lock the folder reports it for all, and holds the
  // lock until it ends. On a file system without locks each rank reports it.
  const int folder = open(logs_folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool another_speaks = folder >= 0 && flock(folder, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  const std::string calls = limited_ ? describe_call_rings(logs_folder_) : "";  // else those of an earlier job
  if (!another_speaks) write_to_stderr(fmt::format("{}\n{}ending the job\n", why, calls));
  std::this_thread::sleep_for(std::chrono::seconds(2));  // mpirun passes the text on; it ends the job when we exit
  // After the report, so that it finds the calls as they are: an abort ends them. A library that has failed may not
  // return from its abort.
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::seconds(10));
    _exit(1);
  }).detach();
  for (Communicator* communicator : communicators_) communicator->abort();
  _exit(1);
}

}  // namespace choir
