#include "tests/simgpu/nccl.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "tests/simgpu/nccl_calls.h"
#include "tests/simgpu/runtime.h"

using choir::simgpu::Access;
using choir::simgpu::Arena;
using choir::simgpu::Collective;
using choir::simgpu::CollectiveArguments;
using choir::simgpu::Endpoint;
using choir::simgpu::MessageArguments;
using choir::simgpu::Messages;
using choir::simgpu::NcclCall;
using choir::simgpu::Verb;

/// Work that continues after the call that began it. A non-blocking communicator does it in a thread; meanwhile only
/// ncclCommGetAsyncError and ncclCommAbort may use the communicator.
struct ncclComm {
  ~ncclComm() {
    stop = true;
    if (job.joinable()) job.join();
  }

  std::shared_ptr<Endpoint> endpoint;
  std::atomic<ncclResult_t> state = ncclSuccess;  ///< of the last job: ncclInProgress while it runs
  std::atomic<bool> asked = false;                ///< the state was queried since the job began
  std::atomic<bool> stop = false;                 ///< the job ends without a result
  std::thread job;
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

/// What NCCL keeps for each thread, and the faults that a test requested.
struct Caller {
  int group_depth = 0;
  std::vector<GroupedCall> group;
  ncclResult_t group_error = ncclSuccess;  ///< of the first call that was refused: none of the group is executed
  int calls_until_absence = -1, calls_until_failure = -1;  // -1: never
  ncclResult_t failure = ncclSuccess;
  bool failure_is_late = false;
};

Caller& caller() {
  thread_local Caller caller;
  return caller;
}

/// The text of ncclGetLastError, for the whole process.
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

struct Refused {
  ncclResult_t result;
  std::string words;
};

template <class Body>
ncclResult_t guarded(Body&& body) {
  try {
    return body();
  } catch (const Refused& refused) {
    return refuse(refused.result, refused.words);
  } catch (const std::exception& error) {
    return refuse(ncclSystemError, error.what());
  }
}

/// As NCCL with NCCL_DEBUG=INFO.
void inform(const std::string& words) {
  if (const char* level = std::getenv("NCCL_DEBUG"); level != nullptr && std::string(level) == "INFO")
    std::fprintf(stderr, "simulated NCCL INFO %s\n", words.c_str());
}

/// The fields that NCCL_CONFIG_INITIALIZER sets and this double checks.
bool is_valid(const ncclConfig_t& config) {
  constexpr unsigned magic = 0xcafebeef;
  return config.size >= sizeof(size_t) && config.magic == magic &&
         (config.blocking == NCCL_CONFIG_UNDEF_INT || config.blocking == 0 || config.blocking == 1);
}

/// Called when all ranks have joined. A GPU may have one rank only.
bool all_are_connected(const Endpoint& endpoint) {
  if (!endpoint.arena->complete()) return false;
  const Arena::Member& own = endpoint.arena->member(endpoint.rank);
  for (int other = 0; other < endpoint.ranks; ++other) {
    const Arena::Member& member = endpoint.arena->member(other);
    if (!member.has_bus) return false;
    if (other != endpoint.rank && std::strcmp(own.bus, member.bus) == 0)
      throw Refused{ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(endpoint.rank) + " and rank " +
                                          std::to_string(other) + " both on CUDA device " + own.bus};
  }
  return true;
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
  choir::simgpu::register_endpoint(endpoint);
  auto communicator = std::make_unique<ncclComm>();
  communicator->endpoint = std::move(endpoint);
  return communicator;
}

/// A split of `parent`: publishes color and key, then reads those of all ranks, then the new ranks meet. Each poll
/// advances it.
class Split {
 public:
  Split(Endpoint& parent, int color, int key, ncclComm_t* result, bool blocking, std::string name)
      : parent_(parent),
        color_(color),
        key_(key),
        number_(++parent.splits),
        result_(result),
        blocking_(blocking),
        name_(std::move(name)) {}

  /// True when it is done: *result is set then, and not before. Never blocks.
  bool advance() {
    Arena::Member& own = parent_.arena->member(parent_.rank);
    if (!published_) {
      if (!all([&](const Arena::Member& member) { return member.splits_read >= number_ - 1; })) return false;
      own.color = color_;
      own.key = key_;
      own.splits = number_;
      published_ = true;
    }
    if (own.splits_read < number_) {
      if (!all([&](const Arena::Member& member) { return member.splits >= number_; })) return false;
      make();
      own.splits_read = number_;
    }
    if (made_ && !made_->endpoint->arena->complete()) return false;
    *result_ = made_.release();
    return true;
  }

 private:
  template <class Predicate>
  bool all(Predicate&& predicate) const {
    for (int r = 0; r < parent_.ranks; ++r)
      if (!predicate(parent_.arena->member(r))) return false;
    return true;
  }

  void make() {
    if (color_ == NCCL_SPLIT_NOCOLOR) return;
    std::vector<std::pair<int, int>> members;  // (key, rank here) of the same color: the new order
    for (int r = 0; r < parent_.ranks; ++r)
      if (const Arena::Member& member = parent_.arena->member(r); member.color == color_)
        members.emplace_back(member.key, r);
    std::sort(members.begin(), members.end());
    const auto here = std::find(members.begin(), members.end(), std::pair(key_, parent_.rank));
    const std::string id = parent_.id + "." + std::to_string(number_) + "." + std::to_string(color_);
    made_ = make_communicator(id, name_, static_cast<int>(here - members.begin()), static_cast<int>(members.size()),
                              parent_.device, blocking_);
  }

  Endpoint& parent_;
  int color_, key_;
  std::int64_t number_;
  ncclComm_t* result_;
  bool blocking_;
  std::string name_;
  bool published_ = false;
  std::unique_ptr<ncclComm> made_;
};

/// The rank of `endpoint` that has aborted; -1 if none has.
int aborted_rank(const Endpoint& endpoint) {
  for (int r = 0; r < endpoint.ranks; ++r)
    if (endpoint.arena->member(r).presence == Arena::aborted) return r;
  return -1;
}

/// Polls a job until it is done. A rank that aborts ends it for all, which notice it only while they connect.
ncclResult_t finish(const ncclComm& communicator, const std::function<bool()>& advance) {
  using Clock = std::chrono::steady_clock;
  const Endpoint& endpoint = *communicator.endpoint;
  const auto limit = Clock::now() + std::chrono::seconds(60);
  return guarded([&] {
    while (!advance()) {
      if (communicator.stop) return ncclInternalError;
      if (const int gone = aborted_rank(endpoint); gone >= 0)
        return refuse(ncclRemoteError, "rank " + std::to_string(gone) + " of " + endpoint.name + " has aborted");
      if (endpoint.blocking && Clock::now() > limit) {
        choir::simgpu::add_finding(
            {"hang", "not all ranks of " + endpoint.name + " have come to make or to split it, after 60 s"});
        return refuse(ncclSystemError, "not all ranks have come");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return ncclSuccess;
  });
}

/// Does a job: at once on a blocking communicator. On others the result is ncclInProgress and a thread does the job,
/// which ends only after the state has been queried: a program that does not query it never sees it done.
ncclResult_t do_job(ncclComm& communicator, const std::function<bool()>& advance) {
  if (communicator.endpoint->blocking) return finish(communicator, advance);
  if (communicator.job.joinable()) communicator.job.join();  // the last one, which is done
  communicator.state = ncclInProgress;
  communicator.asked = false;
  communicator.job = std::thread([&communicator, advance] {
    communicator.state = finish(communicator, [&] { return communicator.asked && advance(); });
  });
  return ncclInProgress;
}

/// What ncclCommGetAsyncError reports.
ncclResult_t state_of(ncclComm& communicator) {
  communicator.asked = true;
  const ncclResult_t state = communicator.state;
  return state != ncclSuccess ? state : communicator.endpoint->error.load();
}

/// NCCL's own check before every use: it is an error of the caller if a job is under way.
ncclResult_t ensure_ready(ncclComm& communicator) {
  if (communicator.state == ncclInProgress)
    return refuse(ncclInvalidArgument,
                  "Attempt to use communicator before the previous operation returned ncclSuccess");
  return state_of(communicator);
}

/// Counts down to a fault; true in the call that must fail.
bool hits(int& calls_until) { return calls_until >= 0 && calls_until-- == 0; }

bool arrives(Endpoint& endpoint) {
  const bool absent = hits(caller().calls_until_absence);
  const bool failed = hits(caller().calls_until_failure);
  if (failed) {
    (caller().failure_is_late ? endpoint.late_error : endpoint.error) = caller().failure;
    refuse(caller().failure, "a fault that the test requested");
  }
  return !absent && !failed;
}

ncclResult_t enqueue(cudaStream_t stream, const std::string& name, const std::string& label,
                     std::shared_ptr<NcclCall> call) {
  choir::simgpu::Operation operation{.name = label.empty() ? name : name + " '" + label + "'",
                                     .accesses = call->accesses(),
                                     .ready = [call] { return call->ready(); },
                                     .run = [call] { call->run(); }};
  const cudaError_t status = choir::simgpu::enqueue(stream, std::move(operation));
  return status == cudaSuccess
             ? ncclSuccess
             : refuse(ncclUnhandledCudaError, std::string("Cuda failure '") + cudaGetErrorString(status) + "'");
}

bool overlap(const Access& a, const Access& b) {
  const auto *a_begin = static_cast<const char*>(a.begin), *b_begin = static_cast<const char*>(b.begin);
  return a.bytes > 0 && b.bytes > 0 && a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
}

/// What a call writes must not overlap anything else that it accesses, except as NCCL allows it ("in place").
void check_overlap(const std::string& name, const std::vector<Access>& accesses) {
  for (std::size_t i = 0; i < accesses.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if ((accesses[i].write || accesses[j].write) && overlap(accesses[i], accesses[j]))
        choir::simgpu::add_finding({"overlap", name + " writes to memory that it also reads or writes elsewhere"});
}

bool is_in_place(const Endpoint& endpoint, const CollectiveArguments& arguments) {
  const std::int64_t block = endpoint.rank * arguments.count * choir::simgpu::bytes_of(arguments.type);
  const auto *in = static_cast<const char*>(arguments.in), *out = static_cast<const char*>(arguments.out);
  switch (arguments.verb) {
    case Verb::all_gather:
      return in == out + block;
    case Verb::reduce_scatter:
      return out == in + block;
    default:
      return in == out;
  }
}

ncclResult_t enqueue_collective(const GroupedCall& call, const CollectiveArguments& arguments) {
  const auto& endpoint = call.communicator->endpoint;
  auto made = std::make_shared<Collective>(endpoint, arrives(*endpoint), arguments, call.label);
  if (!is_in_place(*endpoint, arguments)) check_overlap(name_of(arguments.verb), made->accesses());
  return enqueue(call.stream, name_of(arguments.verb), call.label, std::move(made));
}

std::string innermost_range() {
  const std::vector<std::string> ranges = choir::simgpu::open_ranges();
  return ranges.empty() ? "" : ranges.back();
}

/// Enqueues everything that was called since the group began: each collective is an operation, all messages on one
/// stream and communicator are one.
ncclResult_t end_group() {
  const std::vector<GroupedCall> calls = std::exchange(caller().group, {});
  if (const ncclResult_t error = std::exchange(caller().group_error, ncclSuccess); error != ncclSuccess) return error;
  std::map<std::pair<ncclComm_t, cudaStream_t>, std::vector<MessageArguments>> messages;
  std::map<ncclComm_t, std::size_t> kinds;
  for (const GroupedCall& call : calls)
    if (kinds.emplace(call.communicator, call.arguments.index()).first->second != call.arguments.index())
      return refuse(ncclInvalidUsage, "collectives and messages of one communicator in one group");
  ncclResult_t first = ncclSuccess;
  const auto note = [&](ncclResult_t result) { first = first == ncclSuccess ? result : first; };
  for (const GroupedCall& call : calls) {
    if (const auto* message = std::get_if<MessageArguments>(&call.arguments)) {
      auto& list = messages[{call.communicator, call.stream}];
      list.push_back(*message);
      list.back().label = call.label;
    } else if (const auto& collective = std::get<CollectiveArguments>(call.arguments); collective.count > 0) {
      note(enqueue_collective(call, collective));  // NCCL discards empty ones: no rank waits for another
    }
  }
  const std::string label = innermost_range();
  for (const auto& [where, list] : messages) {
    const auto& endpoint = where.first->endpoint;
    auto made = std::make_shared<Messages>(endpoint, arrives(*endpoint), list);
    check_overlap("ncclSend/ncclRecv", made->accesses());
    note(enqueue(where.second, "ncclSend/ncclRecv", label, std::move(made)));
  }
  return first;
}

/// Checks a call for everything that NCCL and this double refuse; ncclSuccess if it is valid.
ncclResult_t verdict(ncclComm_t communicator, const Arguments& arguments) {
  if (communicator == nullptr) return refuse(ncclInvalidArgument, "the communicator is null");
  if (const ncclResult_t ready = ensure_ready(*communicator); ready != ncclSuccess) return ready;
  const Endpoint& endpoint = *communicator->endpoint;
  if (!endpoint.blocking)
    return refuse(ncclInvalidUsage,
                  "only blocking communicators have calls in the simulator: on others, NCCL starts "
                  "them from a separate thread");
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
  return valid ? ncclSuccess
               : refuse(ncclInvalidArgument, "a rank that is not one of " + endpoint.name +
                                                 ", or a type or reduction that the simulator does not have");
}

ncclResult_t call(ncclComm_t communicator, cudaStream_t stream, const Arguments& arguments) {
  if (const ncclResult_t refused = verdict(communicator, arguments); refused != ncclSuccess) {
    if (caller().group_depth > 0 && caller().group_error == ncclSuccess) caller().group_error = refused;
    return refused;
  }
  caller().group.push_back({communicator, stream, arguments, innermost_range()});
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
  caller().failure_is_late = false;
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
    if (result == nullptr || config == nullptr) return refuse(ncclInvalidArgument, "a pointer is null");
    *result = nullptr;
    if (!is_valid(*config)) return refuse(ncclInvalidArgument, "the configuration is not valid");
    if (rank < 0 || rank >= ranks)
      return refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(ranks));
    if (caller().group_depth > 0) return refuse(ncclInvalidUsage, "initialisation in a group is not simulated");
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return refuse(ncclUnhandledCudaError, "cudaGetDevice");
    const std::string name = config->commName == nullptr ? "communicator" : config->commName;
    if (const int after = choir::simgpu::options().failing_collective; after >= 0) {
      choir::simgpu::fail_collective(ncclRemoteError, after);
      caller().failure_is_late = true;
    }
    *result = make_communicator(id.internal, name, rank, ranks, device, config->blocking != 0).release();
    Endpoint& endpoint = *(*result)->endpoint;
    Arena::Member& own = endpoint.arena->member(rank);
    cudaDeviceGetPCIBusId(own.bus, sizeof own.bus, device);
    own.has_bus = true;
    return do_job(**result, [&endpoint] { return all_are_connected(endpoint); });
  });
}

ncclResult_t ncclCommInitRank(ncclComm_t* result, int ranks, ncclUniqueId id, int rank) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  return ncclCommInitRankConfig(result, ranks, id, rank, &config);
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t* result, ncclConfig_t* config) {
  return guarded([&] {
    if (parent == nullptr || result == nullptr) return refuse(ncclInvalidArgument, "a pointer is null");
    if (const ncclResult_t ready = ensure_ready(*parent); ready != ncclSuccess) return ready;
    if (config != nullptr && !is_valid(*config)) return refuse(ncclInvalidArgument, "the configuration is not valid");
    *result = nullptr;
    Endpoint& endpoint = *parent->endpoint;
    const bool blocking = config == nullptr ? endpoint.blocking : config->blocking != 0;
    const std::string name = config == nullptr || config->commName == nullptr ? endpoint.name : config->commName;
    const auto split = std::make_shared<Split>(endpoint, color, key, result, blocking, name);
    const ncclResult_t state = do_job(*parent, [split] { return split->advance(); });
    return state == ncclInProgress ? ncclSuccess : state;  // unlike the calls that make and finalize communicators
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  if (communicator == nullptr) return refuse(ncclInvalidArgument, "the communicator is null");
  if (error == nullptr) return refuse(ncclInvalidArgument, "a pointer is null");
  *error = state_of(*communicator);
  return ncclSuccess;
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
  if (communicator == nullptr) return ncclSuccess;
  if (const ncclResult_t ready = ensure_ready(*communicator); ready != ncclSuccess) return ready;
  if (std::exchange(communicator->finalized, true))
    return refuse(ncclInvalidArgument, "the communicator is already finalized");
  const std::shared_ptr<Endpoint> endpoint = communicator->endpoint;
  return do_job(*communicator, [endpoint] { return endpoint->finished == endpoint->calls; });
}

/// A communicator with a job under way is not destroyed, and its memory leaks.
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  if (communicator == nullptr) return ncclSuccess;
  if (const ncclResult_t ready = ensure_ready(*communicator); ready != ncclSuccess) return ready;
  const std::unique_ptr<ncclComm> owned(communicator);
  Endpoint& endpoint = *owned->endpoint;
  if (endpoint.finished != endpoint.calls)
    choir::simgpu::add_finding({"destroyed in use", endpoint.name + " on rank " + std::to_string(endpoint.rank) + ": " +
                                                        std::to_string(endpoint.calls - endpoint.finished) +
                                                        " calls have not ended"});
  endpoint.arena->member(endpoint.rank).presence = Arena::destroyed;
  return ncclSuccess;
}

/// Waits until the job under way has ended. Calls that wait end, with NaN as their results.
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  if (communicator == nullptr) return ncclSuccess;
  const std::unique_ptr<ncclComm> owned(communicator);
  Endpoint& endpoint = *owned->endpoint;
  inform("rank " + std::to_string(endpoint.rank) + " of " + endpoint.name + " aborts");
  endpoint.arena->member(endpoint.rank).presence = Arena::aborted;
  endpoint.aborted = true;
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
