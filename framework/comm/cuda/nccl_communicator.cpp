#include "framework/comm/cuda/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

#include "framework/comm/mesh.h"
#include "framework/core/error.h"
#include "kernels/cuda/failure.h"

namespace choir {
namespace {

ncclDataType_t nccl_type(DType type) {
  switch (type) {
    case DType::bf16:
      return ncclBfloat16;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::u8:
      return ncclUint8;
    case DType::f32:
      break;
  }
  return ncclFloat32;
}

ncclRedOp_t nccl_reduction(Reduce op) { return op == Reduce::sum ? ncclSum : ncclMax; }

std::size_t count_of(const Tensor& tensor) { return static_cast<std::size_t>(tensor.count()); }

/// "ncclAllReduce on GPU 1: unhandled cuda error (run with NCCL_DEBUG=INFO for details): Cuda failure 2 'out of
/// memory'"
std::string words_of(ncclResult_t result, const char* call, int gpu, ncclComm_t comm) {
  const char* last = ncclGetLastError(comm);
  const bool has_last = last != nullptr && *last != '\0';
  return fmt::format("{} on GPU {}: {}{}{}", call, gpu, ncclGetErrorString(result), has_last ? ": " : "",
                     has_last ? last : "");
}

}  // namespace

NcclCommunicator::NcclCommunicator(ncclComm_t comm, Group group, Device& device, CallRing& ring)
    : Communicator(std::move(group), device, comm == nullptr ? device.communicate() : device.add_communication_stream(),
                   ring),
      comm_(comm) {
  kernels::cuda::check(cudaGetDevice(&gpu_), "cudaGetDevice");
  if (comm == nullptr) return;
  kernels::cuda::check(cudaMalloc(&token_, sizeof(float)), "cudaMalloc (4 bytes for barriers)");
  kernels::cuda::check(cudaMemsetAsync(token_, 0, sizeof(float), stream().cuda()), "cudaMemsetAsync");
}

NcclCommunicator::~NcclCommunicator() {
  if (std::uncaught_exceptions() > 0 || !problem().empty()) abort();
  try {
    stream().synchronize();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "while closing the communicator of %s: %s\n", axis().c_str(), error.what());
    abort();
  }
  const std::lock_guard lock(end_of_comm_);
  if (const ncclComm_t comm = comm_.exchange(nullptr); comm != nullptr)
    if (const ncclResult_t result = ncclCommDestroy(comm); result != ncclSuccess)
      std::fprintf(stderr, "while closing the communicator of %s: %s\n", axis().c_str(),
                   words_of(result, "ncclCommDestroy", gpu_, nullptr).c_str());
  cudaFree(token_);
}

std::string NcclCommunicator::problem() {
  // The current device of another thread is GPU 0 by default; querying events there would create a context on it.
  if (const cudaError_t status = cudaSetDevice(gpu_); status != cudaSuccess)
    return fmt::format("cudaSetDevice({}): {}", gpu_, cudaGetErrorString(status));
  if (std::string words = Communicator::problem(); !words.empty()) return words;

  const std::lock_guard lock(end_of_comm_);
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return {};
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
  const ncclResult_t result = asked != ncclSuccess ? asked : state;
  if (result == ncclSuccess || result == ncclInProgress) return {};
  return fmt::format("rank {} of {}: {}", rank(), axis(), words_of(result, "NCCL", gpu_, comm));
}

void NcclCommunicator::abort() {
  const std::lock_guard lock(end_of_comm_);
  if (const ncclComm_t comm = comm_.exchange(nullptr); comm != nullptr) ncclCommAbort(comm);
}

ncclComm_t NcclCommunicator::comm() {
  const ncclComm_t comm = comm_;
  if (comm == nullptr) throw Failure{"the communicator has been aborted"};
  return comm;
}

void NcclCommunicator::check(int result, const char* call) {
  if (result != ncclSuccess) throw Failure{words_of(static_cast<ncclResult_t>(result), call, gpu_, comm_)};
}

std::int64_t NcclCommunicator::reduction_workspace_bytes(std::int64_t, DType) const { return 0; }

void NcclCommunicator::do_all_reduce(const Tensor& tensor, Reduce op, const Tensor&) {
  check(ncclAllReduce(tensor.raw(), tensor.raw(), count_of(tensor), nccl_type(tensor.dtype()), nccl_reduction(op),
                      comm(), stream().cuda()),
        "ncclAllReduce");
}

void NcclCommunicator::do_all_gather(const Tensor& in, const Tensor& out) {
  check(ncclAllGather(in.raw(), out.raw(), count_of(in), nccl_type(in.dtype()), comm(), stream().cuda()),
        "ncclAllGather");
}

void NcclCommunicator::do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, const Tensor&) {
  check(ncclReduceScatter(in.raw(), out.raw(), count_of(out), nccl_type(out.dtype()), nccl_reduction(op), comm(),
                          stream().cuda()),
        "ncclReduceScatter");
}

void NcclCommunicator::do_broadcast(const Tensor& tensor, int root) {
  check(ncclBroadcast(tensor.raw(), tensor.raw(), count_of(tensor), nccl_type(tensor.dtype()), root, comm(),
                      stream().cuda()),
        "ncclBroadcast");
}

void NcclCommunicator::do_all_to_all(const Tensor& in, const Tensor& out) {
  const std::size_t count = count_of(in) / static_cast<std::size_t>(size());
  const auto block = [&](const Tensor& tensor, int peer) {
    void* data = static_cast<char*>(tensor.raw()) + peer * (tensor.bytes() / size());
    return Block{data, count, tensor.dtype(), peer};
  };
  std::vector<Block> sends, receives;
  for (int peer = 0; peer < size(); ++peer) {
    sends.push_back(block(in, peer));
    receives.push_back(block(out, peer));
  }
  transfer(sends, receives);
}

void NcclCommunicator::do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) {
  const auto blocks_of = [](const std::vector<Message>& messages) {
    std::vector<Block> blocks;
    for (const Message& message : messages)
      blocks.push_back(
          {message.tensor.raw(), count_of(message.tensor), message.tensor.dtype(), message.peer, message.name});
    return blocks;
  };
  transfer(blocks_of(sends), blocks_of(receives));
}

/// One group: NCCL runs all messages at once, so that no order of them can deadlock.
void NcclCommunicator::transfer(const std::vector<Block>& sends, const std::vector<Block>& receives) {
  const ncclComm_t nccl = comm();
  const cudaStream_t cuda_stream = stream().cuda();
  check(ncclGroupStart(), "ncclGroupStart");
  ncclResult_t first = ncclSuccess;  // the first error; the group must be ended in any case
  const auto note = [&](ncclResult_t result) { first = first == ncclSuccess ? result : first; };
  const auto each_named = [&](const std::vector<Block>& blocks, const auto& call) {
    for (const Block& block : blocks) {
      std::optional<cuda::Range> range;
      if (!block.name.empty()) range.emplace(block.name.c_str());
      note(call(block.data, block.count, nccl_type(block.type), block.peer, nccl, cuda_stream));
    }
  };
  each_named(sends, ncclSend);
  each_named(receives, ncclRecv);
  const ncclResult_t end = ncclGroupEnd();
  check(first, "ncclSend or ncclRecv");
  check(end, "ncclGroupEnd");
}

void NcclCommunicator::do_barrier() {
  check(ncclAllReduce(token_, token_, 1, ncclFloat32, ncclSum, comm(), stream().cuda()), "ncclAllReduce");
}

namespace {

/// NCCL keeps the pointer.
const char* lasting_name(const std::string& axis) {
  for (const char* name : {"tensor", "context", "data", "shard", "replica", "expert", "pipeline"})
    if (axis == name) return name;
  return "world";
}

/// The communicator of all ranks, from which those of the axes are split.
///
/// It is non-blocking, so that a missing rank causes an error and not a hang. The communicators of the axes are
/// blocking: NCCL runs each call on a non-blocking one in a separate thread, and the caller would have to wait for
/// that thread before it records an event. Their calls only enqueue; the watchdog aborts those that hang.
class Root {
 public:
  Root(MPI_Comm world, int rank, int ranks, double timeout) : rank_(rank), timeout_(timeout) {
    kernels::cuda::check(cudaGetDevice(&gpu_), "cudaGetDevice");
    ncclUniqueId id = {};
    if (rank == 0) settle(ncclGetUniqueId(&id), "ncclGetUniqueId", "world");
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, world);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle(ncclCommInitRankConfig(&comm_, ranks, id, rank, &config), "ncclCommInitRankConfig", "world");
  }

  ~Root() {
    if (comm_ != nullptr) ncclCommAbort(comm_);
  }
  Root(const Root&) = delete;
  Root& operator=(const Root&) = delete;

  /// Collective over all ranks; each gets the communicator of its own group.
  ncclComm_t split(const Group& group) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
#if NCCL_VERSION_CODE >= 22700
    config.commName = lasting_name(group.axis);
#endif
    part_ = nullptr;
    settle(ncclCommSplit(comm_, group.first, group.rank, &part_, &config), "ncclCommSplit", group.axis);
    if (part_ == nullptr) fail(group.axis, "ncclCommSplit has ended without returning a communicator");
    return std::exchange(part_, nullptr);
  }

  void close() {
    settle(ncclCommFinalize(comm_), "ncclCommFinalize", "world");
    settle(ncclCommDestroy(std::exchange(comm_, nullptr)), "ncclCommDestroy", "world");
  }

 private:
  /// Waits until the call has succeeded. If it fails or takes too long: aborts, and throws Error.
  ///
  /// The result of a call does not say whether it has ended: on a non-blocking communicator ncclCommSplit returns
  /// ncclSuccess while a thread of NCCL still runs, and other calls return ncclInProgress. ncclCommGetAsyncError does.
  void settle(ncclResult_t result, const char* call, const std::string& axis) {
    using Clock = std::chrono::steady_clock;
    const auto limit = Clock::now() + std::chrono::duration<double>(timeout_);
    const auto is_well = [&] { return result == ncclSuccess || result == ncclInProgress; };
    while (comm_ != nullptr && is_well()) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
      result = asked == ncclSuccess ? state : asked;
      if (result != ncclInProgress || Clock::now() > limit) break;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (result == ncclSuccess) return;
    std::string words = words_of(result, call, gpu_, comm_);
    if (result == ncclInProgress) words += fmt::format(", and has not ended after {:g} s", timeout_);
    fail(axis, words);
  }

  [[noreturn]] void fail(const std::string& axis, const std::string& words) {
    if (const ncclComm_t comm = std::exchange(comm_, nullptr); comm != nullptr) ncclCommAbort(comm);
    throw Error({.what = fmt::format("rank {} cannot make NCCL's communicator of {}: {}", rank_, axis, words),
                 .why = "a rank is missing, or two GPUs cannot reach each other",
                 .fix = "set NCCL_DEBUG=INFO and run again: NCCL then prints how it tries to connect"});
  }

  int rank_, gpu_ = 0;
  double timeout_;
  ncclComm_t comm_ = nullptr;
  ncclComm_t part_ = nullptr;  // of a split: NCCL's thread writes it during the split; an abort ends the thread
};

}  // namespace

Mesh make_nccl_mesh(MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring, double timeout) {
  int rank = 0;
  MPI_Comm_rank(world, &rank);
  std::optional<Root> root;
  if (shape.ranks() > 1) root.emplace(world, rank, shape.ranks(), timeout);
  Mesh mesh = make_axes(rank, shape, [&](Group group) {  // an axis has one size on all ranks: all of them split or none
    const ncclComm_t comm = group.size > 1 ? root->split(group) : nullptr;
    return std::make_unique<NcclCommunicator>(comm, std::move(group), device, ring);
  });
  if (root) root->close();
  return mesh;
}

}  // namespace choir
