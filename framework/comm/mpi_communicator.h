// Collectives on host memory over MPI: blocks are moved by non-blocking sends and receives, and reduced here
// (reduction.h), so that nothing depends on the MPI's own reductions.
#pragma once

#include <mpi.h>

#include <vector>

#include "framework/comm/communicator.h"

namespace choir {

class MpiCommunicator : public Communicator {
 public:
  /// Takes over `comm`, whose ranks are those of `group` in order, and frees it in the end.
  MpiCommunicator(MPI_Comm comm, Group group, Device& device, CallRing& ring);
  /// Returns when all calls have run.
  ~MpiCommunicator() override;

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
  /// Bytes in memory that are sent to a rank or received from one.
  struct Block {
    char* data;
    std::int64_t bytes;
    int peer;
    int tag = 0;
  };

  /// All sends and receives at once; returns when all have ended. Fails if a message is not as long as expected.
  void transfer(const std::vector<Block>& sends, const std::vector<Block>& receives);

  /// Receives this rank's part of `parts` (one per rank) from all others into `arrived` (one per rank, own unused),
  /// reduces with its own in rank order, and writes to `out`.
  void reduce_own(const std::vector<Block>& parts, char* arrived, char* out, DType type, Reduce op);

  MPI_Comm comm_;
};

}  // namespace choir
