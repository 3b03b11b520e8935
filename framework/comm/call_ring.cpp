#include "framework/comm/call_ring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "framework/core/error.h"

namespace choir {
namespace {

constexpr std::size_t ring_bytes = sizeof(RankState) + CallRing::length * sizeof(Call);

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::vector<Call> oldest_first(std::vector<Call> calls) {
  std::erase_if(calls, [](const Call& call) { return call.sequence == 0; });
  std::sort(calls.begin(), calls.end(), [](const Call& a, const Call& b) { return a.sequence < b.sequence; });
  return calls;
}

}  // namespace

CallRing::CallRing() : last_activity_(now()) {
  void* memory = mmap(nullptr, ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error({.what = fmt::format("no memory for the call ring: {}", std::strerror(errno))});
  state_ = new (memory) RankState;
  slots_ = reinterpret_cast<Call*>(state_ + 1);
}

void CallRing::keep_in(const std::string& path) {
  const auto fail = [&](const char* what, int error) {
    throw Error({.what = fmt::format("cannot {} the call ring {}: {}", what, path, std::strerror(error)),
                 .why = "each rank keeps its last collective calls there, so that a hang or a crash can be explained",
                 .fix = "make sure that the run folder can be written to and has room for 32 KB per rank"});
  };
  unlink(path.c_str());  // never cut a file short that an older process may still have mapped
  const int file = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
  if (file < 0) fail("create", errno);
  // Reserved, not only sized: a full disk is an error here, and would be a SIGBUS at some later call.
  const int reserved = posix_fallocate(file, 0, ring_bytes);
  void* memory = reserved == 0 ? mmap(nullptr, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  const int error = reserved != 0 ? reserved : errno;
  close(file);
  if (memory == MAP_FAILED) fail("map", error);
  const std::lock_guard lock(mutex_);
  std::memcpy(memory, state_, ring_bytes);
  munmap(state_, ring_bytes);
  state_ = static_cast<RankState*>(memory);
  slots_ = reinterpret_cast<Call*>(state_ + 1);
}

CallRing::~CallRing() { munmap(state_, ring_bytes); }

void CallRing::identify(std::uint64_t job, int rank, int ranks, const std::string& host) {
  const std::lock_guard lock(mutex_);
  state_->job = job;
  state_->rank = rank;
  state_->ranks = ranks;
  host.copy(state_->host, sizeof state_->host - 1);
}

void CallRing::set(Phase phase, std::int64_t step) {
  const std::lock_guard lock(mutex_);
  state_->phase = phase;
  state_->step = step;
}

std::uint64_t CallRing::begin(Call call) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t sequence = next_++;
  call.sequence = 0;
  call.started = now();
  call.ended = 0;
  Call& slot = slots_[(sequence - 1) % length];
  // Empty while it is written, so that a kill between two stores leaves no mixture of two calls.
  std::atomic_ref(slot.sequence).exchange(0, std::memory_order_acq_rel);
  slot = call;
  std::atomic_ref(slot.sequence).store(sequence, std::memory_order_release);
  ++running_;
  last_activity_ = call.started;
  return sequence;
}

void CallRing::end(std::uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  Call& slot = slots_[(sequence - 1) % length];
  const double time = now();
  if (slot.sequence == sequence) {  // else the host is a whole ring ahead of the GPU
    slot.ended = time;
    seconds_in_calls_ = seconds_in_calls_ + (time - slot.started);
  }
  last_activity_ = time;
  --running_;
}

std::vector<Call> CallRing::calls() const { return oldest_first({slots_, slots_ + length}); }

std::optional<Call> CallRing::current() const {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return {};
  const Call *running = nullptr, *last = nullptr;
  for (const Call* call = slots_; call != slots_ + length; ++call) {
    if (call->sequence == 0) continue;
    if (call->ended == 0 && (running == nullptr || call->sequence < running->sequence)) running = call;
    if (last == nullptr || call->sequence > last->sequence) last = call;
  }
  if (last == nullptr) return {};
  return running != nullptr ? *running : *last;
}

std::vector<Call> read_call_ring(const std::string& path, std::string& problem) {
  RankState state;
  return read_call_ring(path, problem, state);
}

std::vector<Call> read_call_ring(const std::string& path, std::string& problem, RankState& state) {
  problem.clear();
  state = {};
  std::vector<Call> calls(CallRing::length);
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    problem = fmt::format("cannot open {}: {}", path, std::strerror(errno));
    return {};
  }
  if (!file.read(reinterpret_cast<char*>(&state), sizeof state) ||
      !file.read(reinterpret_cast<char*>(calls.data()), ring_bytes - sizeof state) || file.peek() != EOF) {
    state = {};
    problem = fmt::format("{} is not a call ring: not {} bytes long", path, ring_bytes);
    return {};
  }
  state.host[sizeof state.host - 1] = 0;
  for (Call& call : calls) {  // texts end inside their fields, whatever is in the file
    call.verb[sizeof call.verb - 1] = call.axis[sizeof call.axis - 1] = call.label[sizeof call.label - 1] = 0;
    call.stride = std::max(call.stride, 1);
  }
  return oldest_first(std::move(calls));
}

std::string name_of(const Call& call) {
  return fmt::format("{} #{} of {} ({})", call.verb, call.number, call.axis, call.label);
}

namespace {

bool same_communicator(const Call& a, const Call& b) { return a.first == b.first && std::strcmp(a.axis, b.axis) == 0; }

struct Ring {
  RankState state;
  std::vector<Call> calls;  // oldest first
  std::string problem;

  /// The number of the last call of all ranks on the same communicator as `call`; 0 if the ring has none.
  std::uint64_t last_number(const Call& call) const {
    for (auto it = calls.rbegin(); it != calls.rend(); ++it)
      if (same_communicator(*it, call) && !it->of_pairs()) return it->number;
    return 0;
  }
  /// The messages to and from `rank` in all calls begun, those with the same axis as `call`.
  Call::Peer messages_with(int rank, const Call& call) const {
    for (auto it = calls.rbegin(); it != calls.rend(); ++it)
      if (std::strcmp(it->axis, call.axis) == 0)
        for (const Call::Peer& peer : it->peers)
          if (peer.rank == rank) return peer;
    return {.rank = rank};
  }
  /// The oldest call that has not ended: a GPU has not started those behind it.
  const Call* running() const {
    const auto found = std::find_if(calls.begin(), calls.end(), [](const Call& call) { return call.ended == 0; });
    return found == calls.end() ? nullptr : &*found;
  }
};

using Rings = std::map<int, Ring>;  // by world rank

bool is_member(const Call& call, int rank) {
  const int offset = rank - call.first;
  return offset >= 0 && offset % call.stride == 0 && offset / call.stride < call.ranks;
}

/// The messages of a call of pairs: ", with rank 2 (5 sent, 4 received)".
std::string peers_of(const Call& call) {
  std::string text;
  for (const Call::Peer& peer : call.peers)
    if (peer.rank >= 0)
      text += fmt::format(", with rank {} ({} sent, {} received)", peer.rank, peer.sent, peer.received);
  return text;
}

/// Whether `call` of `rank` waits for `other`, whose calls are in `ring`, to begin a call.
bool waits_for(const Call& call, int rank, int other, const Ring& ring) {
  if (!call.of_pairs()) return is_member(call, other) && ring.last_number(call) < call.number;
  const auto peer =
      std::find_if(std::begin(call.peers), std::end(call.peers), [&](const auto& p) { return p.rank == other; });
  if (peer == std::end(call.peers)) return false;
  const Call::Peer theirs = ring.messages_with(rank, call);
  return theirs.received < peer->sent || theirs.sent < peer->received;
}

std::string list_of(const std::vector<int>& ranks) {
  constexpr std::size_t most = 8;
  std::string text = ranks.size() == 1 ? "rank" : "ranks";
  for (std::size_t i = 0; i < std::min(ranks.size(), most); ++i)
    text += fmt::format("{} {}", i == 0 ? "" : ",", ranks[i]);
  return ranks.size() > most ? text + fmt::format(" and {} more", ranks.size() - most) : text;
}

/// For each rank that is waited for, the ranks that wait for it: rank r waits for the other ranks of its running call
/// that have not begun it.
std::map<int, std::vector<int>> find_waiters(const Rings& rings) {
  std::map<int, std::vector<int>> waiters;
  for (const auto& [rank, ring] : rings) {
    const Call* call = ring.running();
    if (call == nullptr) continue;
    for (const auto& [other, other_ring] : rings)
      if (other_ring.problem.empty() && waits_for(*call, rank, other, other_ring)) waiters[other].push_back(rank);
  }
  return waiters;
}

std::string describe_rank_behind(int rank, const std::vector<int>& waiters, const Rings& rings) {
  const std::vector<Call>& calls = rings.at(rank).calls;
  const Call none;
  const Call& last = calls.empty() ? none : calls.back();
  // Those that wait in the next call on the same communicator, if any, explain the most.
  const auto found = std::find_if(waiters.begin(), waiters.end(),
                                  [&](int waiter) { return same_communicator(*rings.at(waiter).running(), last); });
  const Call& wanted = *rings.at(found == waiters.end() ? waiters.front() : *found).running();
  std::vector<int> there;
  for (const int waiter : waiters)
    if (const Call* call = rings.at(waiter).running();
        call == &wanted || (same_communicator(*call, wanted) && !call->of_pairs() && !wanted.of_pairs()))
      there.push_back(waiter);

  const bool all_others = there.size() > 1 && static_cast<int>(there.size()) + 1 == wanted.ranks;
  const std::string who = all_others ? "the others" : list_of(there);
  if (calls.empty())
    return fmt::format("rank {} has made no call, {} {} at {}\n", rank, who, there.size() > 1 ? "are" : "is",
                       name_of(wanted));
  const bool comparable = same_communicator(last, wanted) && !last.of_pairs() && !wanted.of_pairs();
  const std::string where = comparable ? fmt::format("#{}", wanted.number) : name_of(wanted);
  return fmt::format("rank {} is {} {}, {} at {}\n", rank, last.ended == 0 ? "at" : "past", name_of(last), who, where);
}

std::string describe_ranks_behind(const Rings& rings) {
  const auto waiters = find_waiters(rings);
  std::set<int> waiting;
  for (const auto& [rank, by] : waiters) waiting.insert(by.begin(), by.end());
  std::string text;
  for (const auto& [rank, by] : waiters)
    if (!waiting.contains(rank)) text += describe_rank_behind(rank, by, rings);
  if (!text.empty()) return text;
  for (const auto& [rank, by] : waiters) text += describe_rank_behind(rank, by, rings);  // each waits for another
  if (!text.empty()) return text;
  const bool in_call =
      std::any_of(rings.begin(), rings.end(), [](const auto& entry) { return entry.second.running() != nullptr; });
  return in_call ? "no rank is behind: every rank that a running call needs has begun it\n" : "no rank is in a call\n";
}

std::string describe_last_calls(int rank, const Ring& ring, int count, double time) {
  if (!ring.problem.empty()) return fmt::format("rank {}: {}\n", rank, ring.problem);
  std::string text = fmt::format("rank {}:\n", rank);
  if (ring.state.ranks > 0)
    text += fmt::format("  on {}, {}\n", ring.state.host, describe(ring.state.phase, ring.state.step));
  if (ring.calls.empty()) return text + "  no calls\n";
  // A GPU is at its oldest call that has not ended; how far the host has gone ahead says little.
  const std::ptrdiff_t all = static_cast<std::ptrdiff_t>(ring.calls.size());
  const std::ptrdiff_t end = ring.running() ? ring.running() - ring.calls.data() + 1 : all;
  for (auto it = ring.calls.begin() + std::max<std::ptrdiff_t>(0, end - count); it != ring.calls.begin() + end; ++it)
    text += it->ended == 0 ? fmt::format("  {}, {} bytes{}, running for {:.1f} s\n", name_of(*it), it->bytes,
                                         peers_of(*it), time - it->started)
                           : fmt::format("  {}, {} bytes{}, took {:.4f} s, ended {:.1f} s ago\n", name_of(*it),
                                         it->bytes, peers_of(*it), it->ended - it->started, time - it->ended);
  if (end < all) text += fmt::format("  and {} enqueued behind it\n", all - end);
  return text;
}

}  // namespace

std::string describe_call_rings(const std::string& logs_folder, int count, std::optional<std::uint64_t> job) {
  Rings rings;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(logs_folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("rank-") || !name.ends_with(".calls")) continue;
    const char* begin = name.data() + 5;
    const char* end = name.data() + name.size() - 6;
    int rank = 0;
    const auto parsed = std::from_chars(begin, end, rank);
    if (parsed.ec != std::errc() || parsed.ptr != end) continue;
    Ring& ring = rings[rank];
    ring.calls = read_call_ring(entry.path().string(), ring.problem, ring.state);
  }
  const bool any_job = !job;
  if (!job && rings.contains(0) && rings[0].problem.empty()) job = rings[0].state.job;
  if (job) {
    int ranks = 0;
    for (const auto& [rank, ring] : rings)
      if (ring.problem.empty() && ring.state.job == *job) ranks = std::max(ranks, ring.state.ranks);
    std::erase_if(rings, [&](const auto& entry) {  // a ring that cannot be read may be of this job
      const auto& [rank, ring] = entry;
      return ring.problem.empty() ? ring.state.job != *job : ranks > 0 && rank >= ranks;
    });
  }
  if (rings.empty())
    return any_job
               ? fmt::format("no call rings (rank-N.calls) in {}{}\n", logs_folder, error ? ": " + error.message() : "")
               : "";
  const double time = now();
  std::string text = describe_ranks_behind(rings);
  for (const auto& [rank, ring] : rings) text += describe_last_calls(rank, ring, count, time);
  return text;
}

}  // namespace choir
