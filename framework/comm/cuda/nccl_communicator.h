// Collectives between GPUs over NCCL, enqueued on the device's high-priority communication stream.
//
// NCCL differs from MPI: NCCL chooses the order of a sum, bf16 is rounded at each hop, and the maximum of a number and
// NaN is the number. As with MPI, all ranks get the same bits.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "framework/comm/communicator.h"

struct ncclComm;  // ncclComm_t points to one; NCCL's header stays in the .cpp

namespace choir {

class NcclCommunicator : public Communicator {
 public:
  /// Takes ownership of `comm`, a blocking communicator whose ranks are those of `group` in order; null if the group
  /// has one rank. `device` is a CUDA device, current on this thread.
  NcclCommunicator(ncclComm* comm, Group group, Device& device, CallRing& ring);
  /// Waits until all calls have ended; aborts them if NCCL reports an error or the stack is being unwound.
  ~NcclCommunicator() override;

  /// NCCL's message about an error that occurred after a call had returned; empty if there is none.
  std::string problem() override;
  void abort() override;

 protected:
  std::int64_t reduction_workspace_bytes(std::int64_t count, DType type) const override;
  void do_all_reduce(const Tensor& tensor, Reduce op, const Tensor& workspace) override;
  void do_all_gather(const Tensor& in, const Tensor& out) override;
  void do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, const Tensor& workspace) override;
  void do_all_to_all(const Tensor& in, const Tensor& out) override;
  void do_broadcast(const Tensor& tensor, int root) override;
  void do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) override;
  void do_barrier() override;

 private:
  /// Elements in device memory that go to a rank or come from one.
  struct Block {
    void* data;
    std::size_t count;
    DType type;
    int peer;
    std::string name = {};  ///< of the message; empty: the name of the call
  };

  void transfer(const std::vector<Block>& sends, const std::vector<Block>& receives);
  void check(int result, const char* call);
  ncclComm* comm();  // throws Failure if it was aborted

  std::atomic<ncclComm*> comm_;
  std::mutex end_of_comm_;  // held to abort, destroy and query errors; not held by verbs, so that an abort can end them
  int gpu_ = 0;
  // One f32 that barriers sum: NCCL has no barrier. Allocated once, so that a barrier allocates nothing, and by CUDA,
  // like NCCL's own buffers: the device's allocator contains only what the plan counts.
  void* token_ = nullptr;
};

}  // namespace choir
