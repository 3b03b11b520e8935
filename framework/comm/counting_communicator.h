// The communicator of device `count`: moves nothing. The public verbs count the messages and allocate the workspace
// that MPI would need for tensors of a CPU, so that a memory plan includes it.
#pragma once

#include "framework/comm/communicator.h"
#include "framework/comm/reduction.h"

namespace choir {

class CountingCommunicator : public Communicator {
 public:
  CountingCommunicator(Group group, Device& device, CallRing& ring)
      : Communicator(std::move(group), device, device.communicate(), ring), is_mpi_(device.kind() == DeviceKind::cpu) {}

 protected:
  std::int64_t reduction_workspace_bytes(std::int64_t count, DType type) const override {
    return is_mpi_ ? choir::reduction_workspace_bytes(count, size(), type) : 0;  // NCCL has its own
  }
  void do_all_reduce(const Tensor&, Reduce, const Tensor&) override {}
  void do_all_gather(const Tensor&, const Tensor&) override {}
  void do_reduce_scatter(const Tensor&, const Tensor&, Reduce, const Tensor&) override {}
  void do_all_to_all(const Tensor&, const Tensor&) override {}
  void do_broadcast(const Tensor&, int) override {}
  void do_exchange(const std::vector<Message>&, const std::vector<Message>&) override {}
  void do_barrier() override {}

 private:
  bool is_mpi_;
};

}  // namespace choir
