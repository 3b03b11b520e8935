#include "framework/comm/watchdog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <utility>

#include "framework/comm/awake_clock.h"
#include "framework/core/host.h"

namespace choir {
namespace {

using std::chrono::seconds;

constexpr double patience = 3;  // seconds until another rank must have spoken
constexpr seconds for_files(2), for_mpirun(2), for_all(10);
constexpr std::chrono::milliseconds for_rings(500);  // in which the rank that reports reads them

void write_all(int descriptor, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = write(descriptor, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return;
    if (n > 0) done += static_cast<std::size_t>(n);
  }
}

/// The result of `work`, or `otherwise` if it takes too long: then it goes on, on a thread that is not waited for.
std::string within(seconds time, std::function<std::string()> work, const std::string& otherwise) {
  auto promise = std::make_shared<std::promise<std::string>>();
  std::future<std::string> result = promise->get_future();
  std::thread([promise, work = std::move(work)] { promise->set_value(work()); }).detach();
  return result.wait_for(time) == std::future_status::ready ? result.get() : otherwise;
}

/// A tenth of the shortest limit, so that reports are exact enough, but at most a second.
double period_of(const WatchdogLimits& limits) {
  double period = 1;
  for (const double limit : {limits.start, limits.progress, limits.storage, limits.grace, limits.silence})
    if (limit > 0) period = std::min(period, limit / 10);
  return std::max(period, 0.01);
}

}  // namespace

Watchdog::Watchdog(const WatchdogLimits& limits, std::string logs_folder, int rank, std::function<double()> signalled,
                   std::function<std::string()> stopped)
    : limits_(limits),
      logs_folder_(std::move(logs_folder)),
      signalled_(std::move(signalled)),
      stopped_(std::move(stopped)),
      rank_(rank) {
  thread_ = std::thread([this] { watch_all(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
  joined_ = nullptr;
  heartbeat_.reset();
  while (ending_) pause();
}

std::string Watchdog::join(MPI_Comm world) {
  const HeartbeatRules::Limits limits{.silence = limits_.silence, .period = period_of(limits_), .patience = patience};
  heartbeat_ = std::make_unique<Heartbeat>(
      world, limits,
      Heartbeat::Calls{
          .fill = [this](Beat& beat) { fill(beat); },
          .end = [this](HeartbeatRules::Verdict verdict, const std::string& words) { end(verdict, words); },
          .note = [](const std::string& text) { write_all(STDERR_FILENO, "choir: " + text + "\n"); }});
  ring_.identify(heartbeat_->job(), heartbeat_->rank(), heartbeat_->ranks(), heartbeat_->host());
  joined_ = heartbeat_.get();
  std::string text;
  const auto say = [&](double limit, const std::string& words) {
    if (limit <= 0) text += (text.empty() ? "" : "; ") + words;
  };
  say(limits_.start, "train.start_timeout = 0: a start that hangs does not end by itself");
  say(limits_.progress, "train.timeout = 0: a step that hangs does not end by itself");
  say(limits_.storage, "checkpoint.timeout = 0: storage that hangs is not noticed");
  say(limits_.silence, "train.heartbeat = 0: a rank that is stopped is noticed by train.timeout only");
  if (!heartbeat_->problem().empty()) text += (text.empty() ? "" : "; ") + heartbeat_->problem();
  return text;
}

void Watchdog::begin(Phase phase, std::int64_t step) {
  step_ = step;
  phase_ = phase;
  ++phases_;
  ring_.set(phase, step);
}

void Watchdog::watch(std::vector<Communicator*> communicators, const Stream* storage) {
  const std::lock_guard lock(watched_mutex_);
  communicators_ = std::move(communicators);
  storage_ = storage;
}

std::string Watchdog::doing() const { return describe(phase_, step_); }

void Watchdog::fill(Beat& beat) const {
  beat.phase = phase_;
  beat.step = step_;
  const std::optional<Call> call = ring_.current();
  if (!call) return;
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  beat.in_call = call->ended == 0;
  beat.call_seconds = static_cast<float>(now - (beat.in_call ? call->started : call->ended));
  const auto end = fmt::format_to_n(beat.call, sizeof beat.call - 1, "{} #{} of {} ({})", call->verb, call->number,
                                    call->axis, call->label);
  *end.out = 0;
}

Watchdog::Limit Watchdog::limit() const {
  const Limit start{limits_.start, "train.start_timeout"}, progress{limits_.progress, "train.timeout"},
      storage{limits_.storage, "checkpoint.timeout"};
  switch (phase_) {
    case Phase::start:
    case Phase::load:
      return start;
    case Phase::record:
    case Phase::save:
      return ring_.in_call() ? progress : storage;
    case Phase::step:
    case Phase::evaluate:
    case Phase::end:
      break;
  }
  return progress;
}

void Watchdog::watch_all() {
  const double period = period_of(limits_);
  AwakeClock clock(2.5 * period);
  double noticed = -1;
  std::string words;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, std::chrono::duration<double>(period), [this] { return stop_; })) {
    const double now = clock.advance();
    if (noticed < 0) {
      words = fault(now);
      if (words.empty()) continue;
      noticed = now;
      if (Heartbeat* heartbeat = joined_; heartbeat == nullptr && stopped_)
        say(within(for_files, stopped_, ""));  // a host's ranks may be known to no rank that reports
      else if (heartbeat != nullptr && heartbeat->problem().empty())
        heartbeat->complain(words);
    }
    const Heartbeat* heartbeat = joined_;
    const bool agrees = heartbeat != nullptr && heartbeat->problem().empty();
    if (!agrees && (rank_ == 0 || now - noticed > patience))
      end(HeartbeatRules::Verdict::speak, fmt::format("{}\n  noticed by rank {}, {}\n", words, rank_, doing()));
  }
}

std::string Watchdog::problem() {
  const std::lock_guard lock(watched_mutex_);
  for (Communicator* communicator : communicators_)
    if (std::string words = communicator->problem(); !words.empty()) return words;
  return {};
}

/// Why the process must end now; "": it need not.
std::string Watchdog::fault(double now) {
  if (std::string words = problem(); !words.empty()) return words;
  const double signalled = signalled_ ? signalled_() : 0;
  if (limits_.grace > 0 && signalled > limits_.grace)
    return fmt::format(
        "a signal asked the run to stop {:g} s ago, and it has not ended (train.grace)\n"
        "  why: rank {} is {}\n"
        "  fix: the last checkpoint is whole, and --resume continues from it; a larger train.grace gives more time",
        limits_.grace, rank_, doing());
  const double idle = activity_.seconds(ring_.last_activity() + static_cast<double>(phases_), now);
  if (const Limit most = limit(); most.seconds > 0 && idle > most.seconds)
    return fmt::format("no collective call and no step has begun or ended for {:g} s ({})", most.seconds, most.key);
  std::uint64_t work = 0;
  {
    const std::lock_guard lock(watched_mutex_);
    if (storage_ != nullptr) work = storage_->running();
  }
  const double writes = storage_work_.seconds(static_cast<double>(work), now);
  if (work != 0 && limits_.storage > 0 && writes > limits_.storage)
    return fmt::format(
        "a write of a checkpoint on rank {} has not ended for {:g} s (checkpoint.timeout)\n"
        "  why: the storage of train.folder hangs, or is slower than that\n"
        "  fix: look at the file system; a larger checkpoint.timeout gives more time",
        rank_, limits_.storage);
  return {};
}

/// From any thread; only the first call has an effect.
void Watchdog::end(HeartbeatRules::Verdict verdict, const std::string& words) {
  if (ending_.exchange(true)) return;
  std::thread([this, verdict, words] {
    if (verdict == HeartbeatRules::Verdict::speak) report_and_exit(words);
    std::this_thread::sleep_for(for_rings);
    std::thread([this] { abort_communicators(); }).detach();
    std::this_thread::sleep_for(for_mpirun + seconds(4));  // most often it is mpirun that ends this process
    _exit(1);
  }).detach();
}

/// After the report, so that it finds the calls as they are: an abort ends them. A library that has failed may not
/// return from its abort.
void Watchdog::abort_communicators() {
  const std::lock_guard lock(watched_mutex_);
  for (Communicator* communicator : communicators_) communicator->abort();
}

std::string Watchdog::report(const std::string& words) const {
  const Heartbeat* heartbeat = joined_;
  const std::string calls =
      heartbeat == nullptr
          ? ""
          : within(
                for_files,
                [folder = logs_folder_, job = heartbeat->job()] { return describe_call_rings(folder, 3, job); },
                fmt::format("the calls in {} could not be read in {} s\n", logs_folder_, for_files.count()));
  return words + calls + "ending the job\n";
}

/// On the terminal and in hang.txt.
void Watchdog::say(const std::string& text) const {
  if (text.empty()) return;
  const std::string head = fmt::format("{} rank {}\n", utc_now(), rank_);
  std::thread([path = logs_folder_ + "/hang.txt", text = head + text] {  // storage may be what hangs
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0) return;
    write_all(file, text);
    close(file);
  })
      .detach();
  // Straight to the descriptor: the thread that hangs may hold the lock of stderr.
  write_all(STDERR_FILENO, text);
}

void Watchdog::report_and_exit(const std::string& words) {
  std::thread([] {  // an abort may not return, nor a write to a terminal
    std::this_thread::sleep_for(for_all);
    _exit(1);
  })
      .detach();
  say(report(words));
  std::this_thread::sleep_for(for_mpirun);  // mpirun passes the text on; it ends the job when this process exits
  abort_communicators();
  _exit(1);
}

}  // namespace choir
