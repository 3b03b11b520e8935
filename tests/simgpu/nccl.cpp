#include "tests/simgpu/nccl.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "tests/simgpu/nccl_calls.h"
#include "tests/simgpu/runtime.h"

using choir::simgpu::Arena;
using choir::simgpu::Collective;
using choir::simgpu::CollectiveArguments;
using choir::simgpu::Endpoint;
using choir::simgpu::MessageArguments;
using choir::simgpu::Messages;
using choir::simgpu::NcclCall;
using choir::simgpu::Verb;

struct ncclComm {
  /// A split under way: `color` and `key` are published, then everyone's are read, then the new ranks meet.
  struct Split {
    int color, key;
    std::int64_t number;
    ncclComm_t* result;
    bool blocking;
    std::string name;
    bool published = false;
    std::unique_ptr<ncclComm> made = nullptr;
  };

  std::shared_ptr<Endpoint> endpoint;
  std::optional<Split> split;
  bool finalized = false;
};

namespace {

using Arguments = std::variant<CollectiveArguments, MessageArguments>;

/// A call between ncclGroupStart and ncclGroupEnd.
struct GroupedCall {
  ncclComm_t communicator;
  cudaStream_t stream;
  Arguments arguments;
  std::string label;
};

/// What NCCL keeps for each thread, and the faults that a test asked for.
struct Caller {
  int group_depth = 0;
  std::vector<GroupedCall> group;
  int calls_until_absence = -1, calls_until_failure = -1;  // -1: never
  ncclResult_t failure = ncclSuccess;
};

Caller& caller() {
  thread_local Caller caller;
  return caller;
}

/// The words of ncclGetLastError, of the whole process.
struct LastError {
  std::mutex mutex;
  char words[256] = {};
};

LastError& last_error() {
  static LastError error;
  return error;
}

ncclResult_t refuse(ncclResult_t result, const std::string& words) {
  LastError& error = last_error();
  const std::lock_guard lock(error.mutex);
  std::snprintf(error.words, sizeof error.words, "%s", words.c_str());
  return result;
}

template <class Body>
ncclResult_t guarded(Body&& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return refuse(ncclSystemError, error.what());
  }
}

std::unique_ptr<ncclComm> make_communicator(const std::string& id, const std::string& name, int rank, int ranks,
                                            int device, bool blocking) {
  auto endpoint = std::make_shared<Endpoint>();
  endpoint->id = id;
  endpoint->name = name;
  endpoint->rank = rank;
  endpoint->ranks = ranks;
  endpoint->device = device;
  endpoint->blocking = blocking;
  endpoint->arena = std::make_unique<Arena>(id, ranks);
  auto communicator = std::make_unique<ncclComm>();
  communicator->endpoint = std::move(endpoint);
  return communicator;
}

/// One look at a split; true when it is done. Never blocks.
bool advance_split(ncclComm& parent) {
  ncclComm::Split& split = *parent.split;
  const Endpoint& endpoint = *parent.endpoint;
  const auto all = [&](auto&& predicate) {
    for (int r = 0; r < endpoint.ranks; ++r)
      if (!predicate(endpoint.arena->member(r))) return false;
    return true;
  };
  Arena::Member& own = endpoint.arena->member(endpoint.rank);
  if (!split.published) {
    if (!all([&](const Arena::Member& member) { return member.splits_read >= split.number - 1; })) return false;
    own.color = split.color;
    own.key = split.key;
    own.splits = split.number;
    split.published = true;
  }
  if (own.splits_read < split.number) {
    if (!all([&](const Arena::Member& member) { return member.splits >= split.number; })) return false;
    std::vector<std::pair<int, int>> members;  // (key, rank here) of the same color: the new order
    for (int r = 0; r < endpoint.ranks; ++r)
      if (const Arena::Member& member = endpoint.arena->member(r); member.color == split.color)
        members.emplace_back(member.key, r);
    own.splits_read = split.number;
    std::sort(members.begin(), members.end());
    const auto here = std::find(members.begin(), members.end(), std::pair(split.key, endpoint.rank));
    const std::string id = endpoint.id + "." + std::to_string(split.number) + "." + std::to_string(split.color);
    if (split.color != NCCL_SPLIT_NOCOLOR)
      split.made = make_communicator(id, split.name, static_cast<int>(here - members.begin()),
                                     static_cast<int>(members.size()), endpoint.device, split.blocking);
  }
  if (split.made && !split.made->endpoint->arena->complete()) return false;
  *split.result = split.made.release();  // null until here, as in NCCL
  parent.split.reset();
  return true;
}

/// What ncclCommGetAsyncError says; a look at a communicator is also what moves it on.
ncclResult_t state_of(ncclComm& communicator) {
  const Endpoint& endpoint = *communicator.endpoint;
  if (endpoint.error != ncclSuccess) return endpoint.error;
  for (int r = 0; r < endpoint.ranks; ++r)
    if (endpoint.arena->member(r).presence == Arena::aborted) {
      refuse(ncclRemoteError, "rank " + std::to_string(r) + " of " + endpoint.name + " has aborted");
      return ncclRemoteError;
    }
  if (!endpoint.arena->complete()) return ncclInProgress;
  if (communicator.split && !advance_split(communicator)) return ncclInProgress;
  if (communicator.finalized && endpoint.finished != endpoint.calls) return ncclInProgress;
  return ncclSuccess;
}

ncclResult_t wait_if_blocking(ncclComm& communicator) {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::seconds(60);
  ncclResult_t state = state_of(communicator);
  while (communicator.endpoint->blocking && state == ncclInProgress) {
    if (Clock::now() > limit) {
      choir::simgpu::add_finding({"hang", "not all ranks of " + communicator.endpoint->name +
                                              " have come to make or to split it, after 60 s"});
      return refuse(ncclSystemError, "not all ranks have come");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    state = state_of(communicator);
  }
  return state;
}

/// A fault that comes after some more calls; true in the call that it hits.
bool hits(int& calls_until) { return calls_until >= 0 && calls_until-- == 0; }

bool arrives(Endpoint& endpoint) {
  const bool absent = hits(caller().calls_until_absence);
  const bool failed = hits(caller().calls_until_failure);
  if (failed) {
    endpoint.error = caller().failure;
    refuse(caller().failure, "a fault that the test asked for");
  }
  return !absent && !failed;
}

void enqueue(cudaStream_t stream, const std::string& name, const std::string& label, std::shared_ptr<NcclCall> call) {
  choir::simgpu::Operation operation{.name = label.empty() ? name : name + " '" + label + "'",
                                     .accesses = call->accesses(),
                                     .ready = [call] { return call->ready(); },
                                     .run = [call] { call->run(); }};
  choir::simgpu::enqueue(stream, std::move(operation));
}

/// Everything that was called since the group began: each collective is an operation, all messages on one stream and
/// communicator are one.
ncclResult_t end_group() {
  const std::vector<GroupedCall> calls = std::exchange(caller().group, {});
  std::map<std::pair<ncclComm_t, cudaStream_t>, std::vector<MessageArguments>> messages;
  std::map<ncclComm_t, std::size_t> kinds;
  for (const GroupedCall& call : calls)
    if (kinds.emplace(call.communicator, call.arguments.index()).first->second != call.arguments.index())
      return refuse(ncclInvalidUsage, "collectives and messages of one communicator in one group");
  for (const GroupedCall& call : calls) {
    if (const auto* message = std::get_if<MessageArguments>(&call.arguments)) {
      messages[{call.communicator, call.stream}].push_back(*message);
      continue;
    }
    const auto& arguments = std::get<CollectiveArguments>(call.arguments);
    const auto& endpoint = call.communicator->endpoint;
    enqueue(call.stream, name_of(arguments.verb), call.label,
            std::make_shared<Collective>(endpoint, arrives(*endpoint), arguments, call.label));
  }
  for (const auto& [where, list] : messages) {
    const auto& endpoint = where.first->endpoint;
    const std::string& label = calls.front().label;
    enqueue(where.second, "ncclSend/ncclRecv", label,
            std::make_shared<Messages>(endpoint, arrives(*endpoint), list, label));
  }
  return ncclSuccess;
}

ncclResult_t call(ncclComm_t communicator, cudaStream_t stream, const Arguments& arguments) {
  if (communicator == nullptr) return refuse(ncclInvalidArgument, "the communicator is null");
  const Endpoint& endpoint = *communicator->endpoint;
  if (!endpoint.blocking)
    return refuse(ncclInvalidUsage,
                  "only blocking communicators have calls in the simulator: on others, NCCL starts "
                  "them from a thread of its own");
  if (endpoint.error != ncclSuccess) return endpoint.error;
  if (communicator->finalized) return refuse(ncclInvalidUsage, endpoint.name + " is finalized");
  const auto is_rank = [&](int rank) { return 0 <= rank && rank < endpoint.ranks; };
  const bool valid = std::visit(
      [&](const auto& a) {
        if (choir::simgpu::bytes_of(a.type) == 0) return false;
        if constexpr (std::is_same_v<decltype(a), const MessageArguments&>)
          return is_rank(a.peer);
        else
          return is_rank(a.root) && (a.reduction == ncclSum || a.reduction == ncclMax);
      },
      arguments);
  if (!valid)
    return refuse(ncclInvalidArgument,
                  "a rank that " + endpoint.name + " has not, or a type or reduction that the simulator has not");
  const std::vector<std::string> labels = choir::simgpu::open_ranges();
  caller().group.push_back({communicator, stream, arguments, labels.empty() ? "" : labels.back()});
  return caller().group_depth > 0 ? ncclSuccess : end_group();
}

ncclResult_t collective(Verb verb, const void* in, void* out, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t reduction, int root, ncclComm_t communicator, cudaStream_t stream) {
  return call(communicator, stream,
              CollectiveArguments{.verb = verb,
                                  .in = in,
                                  .out = out,
                                  .count = static_cast<std::int64_t>(count),
                                  .type = type,
                                  .reduction = reduction,
                                  .root = root});
}

}  // namespace

namespace choir::simgpu {

void never_arrive(int after) { caller().calls_until_absence = after; }

void fail_collective(ncclResult_t error, int after) {
  caller().failure = error;
  caller().calls_until_failure = after;
}

}  // namespace choir::simgpu

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "/choir-nccl-%08x%08x", random(), random());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* result, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return guarded([&] {
    *result = nullptr;
    if (rank < 0 || rank >= ranks)
      return refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(ranks));
    if (caller().group_depth > 0) return refuse(ncclInvalidUsage, "initialisation in a group is not simulated");
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return refuse(ncclUnhandledCudaError, "cudaGetDevice");
    const bool blocking = config == nullptr || config->blocking != 0;
    const std::string name = config == nullptr || config->commName == nullptr ? "communicator" : config->commName;
    *result = make_communicator(id.internal, name, rank, ranks, device, blocking).release();
    return wait_if_blocking(**result);
  });
}

ncclResult_t ncclCommInitRank(ncclComm_t* result, int ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(result, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t* result, ncclConfig_t* config) {
  return guarded([&] {
    *result = nullptr;
    if (parent == nullptr || parent->split || state_of(*parent) != ncclSuccess)
      return refuse(ncclInvalidArgument, "the communicator is not ready to be split");
    const Endpoint& endpoint = *parent->endpoint;
    const bool blocking = config == nullptr ? endpoint.blocking : config->blocking != 0;
    const std::string name = config == nullptr || config->commName == nullptr ? endpoint.name : config->commName;
    parent->split = ncclComm::Split{.color = color,
                                    .key = key,
                                    .number = ++parent->endpoint->splits,
                                    .result = result,
                                    .blocking = blocking,
                                    .name = name};
    return wait_if_blocking(*parent);
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  if (communicator == nullptr) return refuse(ncclInvalidArgument, "the communicator is null");
  return guarded([&] {
    *error = state_of(*communicator);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommCount(const ncclComm_t communicator, int* count) {
  *count = communicator->endpoint->ranks;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->endpoint->rank;
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t communicator, int* device) {
  *device = communicator->endpoint->device;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  if (communicator == nullptr || std::exchange(communicator->finalized, true))
    return refuse(ncclInvalidArgument, "the communicator is null or already finalized");
  return guarded([&] { return wait_if_blocking(*communicator); });
}

ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  if (communicator == nullptr) return ncclSuccess;
  const std::unique_ptr<ncclComm> owned(communicator);
  Endpoint& endpoint = *owned->endpoint;
  if (endpoint.finished != endpoint.calls)
    choir::simgpu::add_finding({"destroyed in use", endpoint.name + " on rank " + std::to_string(endpoint.rank) + ": " +
                                                        std::to_string(endpoint.calls - endpoint.finished) +
                                                        " calls have not ended"});
  endpoint.arena->member(endpoint.rank).presence = Arena::destroyed;
  return ncclSuccess;
}

/// Calls that wait end, with NaN as their results.
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  if (communicator == nullptr) return ncclSuccess;
  const std::unique_ptr<ncclComm> owned(communicator);
  owned->endpoint->arena->member(owned->endpoint->rank).presence = Arena::aborted;
  owned->endpoint->aborted = true;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++caller().group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (caller().group_depth == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  return --caller().group_depth > 0 ? ncclSuccess : end_group();
}

ncclResult_t ncclAllReduce(const void* in, void* out, std::size_t count, ncclDataType_t type, ncclRedOp_t reduction,
                           ncclComm_t communicator, cudaStream_t stream) {
  return collective(Verb::all_reduce, in, out, count, type, reduction, 0, communicator, stream);
}

ncclResult_t ncclReduceScatter(const void* in, void* out, std::size_t count, ncclDataType_t type, ncclRedOp_t reduction,
                               ncclComm_t communicator, cudaStream_t stream) {
  return collective(Verb::reduce_scatter, in, out, count, type, reduction, 0, communicator, stream);
}

ncclResult_t ncclAllGather(const void* in, void* out, std::size_t count, ncclDataType_t type, ncclComm_t communicator,
                           cudaStream_t stream) {
  return collective(Verb::all_gather, in, out, count, type, ncclSum, 0, communicator, stream);
}

ncclResult_t ncclBroadcast(const void* in, void* out, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t communicator, cudaStream_t stream) {
  return collective(Verb::broadcast, in, out, count, type, ncclSum, root, communicator, stream);
}

ncclResult_t ncclReduce(const void* in, void* out, std::size_t count, ncclDataType_t type, ncclRedOp_t reduction,
                        int root, ncclComm_t communicator, cudaStream_t stream) {
  return collective(Verb::reduce, in, out, count, type, reduction, root, communicator, stream);
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return call(communicator, stream,
              MessageArguments{true, const_cast<void*>(data), static_cast<std::int64_t>(count), type, peer});
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return call(communicator, stream, MessageArguments{false, data, static_cast<std::int64_t>(count), type, peer});
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
      return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument:
      return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
      return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t) { return last_error().words; }
