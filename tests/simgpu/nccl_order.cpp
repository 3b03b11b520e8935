#include "tests/simgpu/nccl_order.h"

#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "tests/simgpu/nccl_calls.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu {
namespace {

/// Of this process.
struct State {
  std::mutex mutex;
  std::vector<std::weak_ptr<Endpoint>> endpoints;
  std::map<int, std::set<std::int64_t>> waiting;  // tickets, by device
  std::int64_t tickets = 0;
};

State& state() {
  static State state;
  return state;
}

std::uint64_t hash_of(const Endpoint& endpoint) { return std::hash<std::string>()(endpoint.id); }

/// Of a LaunchLog, const or not.
template <class Log>
auto& record_of(Log& log, std::int64_t number) {
  return log.records[number % LaunchLog::window];
}

/// The other communicators of the GPU.
std::vector<std::shared_ptr<Endpoint>> others_of(const Endpoint& endpoint) {
  const std::lock_guard lock(state().mutex);
  std::vector<std::shared_ptr<Endpoint>> others;
  std::erase_if(state().endpoints, [](const auto& each) { return each.expired(); });
  for (const auto& each : state().endpoints)
    if (std::shared_ptr<Endpoint> other = each.lock())
      if (other.get() != &endpoint && other->device == endpoint.device) others.push_back(std::move(other));
  return others;
}

}  // namespace

void register_endpoint(const std::shared_ptr<Endpoint>& endpoint) {
  const std::lock_guard lock(state().mutex);
  state().endpoints.push_back(endpoint);
}

void write_launch(const Endpoint& endpoint, LaunchLog& log, std::int64_t number) {
  LaunchRecord& record = record_of(log, number);
  record.number = 0;
  record.communicators = 0;
  for (const auto& other : others_of(endpoint))
    if (record.communicators < LaunchRecord::most_communicators)
      record.counts[record.communicators++] = {hash_of(*other), other->collectives};
  record.number = number;
}

void compare_launch(const Endpoint& endpoint, const LaunchLog& own, const LaunchLog& others, int other,
                    std::int64_t number, const std::string& call) {
  const LaunchRecord& mine = record_of(own, number);
  const LaunchRecord& theirs = record_of(others, number);
  if (theirs.number != number) return;
  for (const auto& communicator : others_of(endpoint)) {
    const auto count_in = [&](const LaunchRecord& record) -> std::int64_t {
      for (int i = 0; i < record.communicators; ++i)
        if (record.counts[i].communicator == hash_of(*communicator)) return record.counts[i].collectives;
      return -1;  // not shared
    };
    const std::int64_t here = count_in(mine), there = count_in(theirs);
    if (here < 0 || there < 0 || here == there || theirs.number != number) continue;
    add_finding({"launch order", call + " of " + endpoint.name + ": before it rank " + std::to_string(endpoint.rank) +
                                     " has launched " + std::to_string(here) + " collectives of " + communicator->name +
                                     ", rank " + std::to_string(other) + " " + std::to_string(there)});
  }
}

LaunchTicket::LaunchTicket(int device) : device_(device) {
  const std::lock_guard lock(state().mutex);
  number_ = ++state().tickets;
  state().waiting[device].insert(number_);
}

bool LaunchTicket::is_first() const {
  const std::lock_guard lock(state().mutex);
  const std::set<std::int64_t>& waiting = state().waiting[device_];
  return !waiting.empty() && *waiting.begin() == number_;
}

void LaunchTicket::end() {
  const std::lock_guard lock(state().mutex);
  state().waiting[device_].erase(number_);
}

}  // namespace choir::simgpu
