// Collectives among the ranks of one mesh axis: seven verbs, tensors in and out, a label on every call.
//
// The public verbs are the front door: they check types and size relations, write the call ring and the ledger, and are
// no-ops (a copy where `out` is other memory) with one rank. What moves the bytes is behind them: MPI on host memory,
// NCCL on GPUs, nothing at all on device `count`.
//
// Order. Work given to a verb runs after everything enqueued on `stream` before, and before everything enqueued on it
// later. Verbs return when the work is enqueued; immediate CPU streams have then also run it. Every rank of the axis
// makes the same calls in the same order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/comm/call_ring.h"
#include "framework/core/device.h"
#include "framework/core/tensor.h"

namespace choir {

enum class Reduce : std::uint8_t { sum, max };

/// One message of exchange(): a contiguous tensor to or from a rank of the axis.
struct Message {
  Tensor tensor;
  int peer;
};

class Communicator {
 public:
  /// `axis` names the mesh axis in messages; `device` and `ring` outlive the communicator.
  Communicator(std::string axis, int rank, int size, Device& device, CallRing& ring);
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& axis() const { return axis_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Every rank ends with the reduction of all ranks' `tensor`, with the same bits everywhere. In place; contiguous.
  /// f32 and f64 reduce in their own type; bf16 adds in f32 in rank order and rounds once; i32 too (max and sum).
  void all_reduce(const Tensor& tensor, Reduce op, Stream& stream, const char* label);

  /// Every rank ends with all ranks' `in`, in rank order. out.count() == size() * in.count().
  /// In place where `in` is this rank's block of `out`.
  void all_gather(const Tensor& in, const Tensor& out, Stream& stream, const char* label);

  /// Reduces `in` over the ranks and leaves the i-th of size() equal blocks on rank i.
  /// in.count() == size() * out.count(). In place where `out` is this rank's block of `in`.
  void reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, Stream& stream, const char* label);

  /// Block i of `in` goes to rank i; block i of `out` comes from rank i. in.count() == out.count(), divisible by size().
  /// Not in place.
  void all_to_all(const Tensor& in, const Tensor& out, Stream& stream, const char* label);

  /// Every rank ends with root's `tensor`. In place.
  void broadcast(const Tensor& tensor, int root, Stream& stream, const char* label);

  /// All sends and receives at once, as one call: no order among them, so no deadlock. Sizes agree pairwise.
  void exchange(const std::vector<Message>& sends, const std::vector<Message>& receives, Stream& stream,
                const char* label);

  /// No rank passes before all have come. Blocks the stream, not the caller.
  void barrier(Stream& stream, const char* label);

 protected:
  virtual void do_all_reduce(const Tensor& tensor, Reduce op) = 0;
  virtual void do_all_gather(const Tensor& in, const Tensor& out) = 0;
  virtual void do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op) = 0;
  virtual void do_all_to_all(const Tensor& in, const Tensor& out) = 0;
  virtual void do_broadcast(const Tensor& tensor, int root) = 0;
  virtual void do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) = 0;
  virtual void do_barrier() = 0;

  Device& device() { return device_; }

 private:
  std::string axis_;
  int rank_, size_;
  Device& device_;
  CallRing& ring_;
};

}  // namespace choir
