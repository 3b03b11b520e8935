// Collectives among the ranks of one mesh axis: seven verbs, tensors in and out, a label on every call.
//
// The public verbs check types and size relations and write the call ring and the ledger. With one rank they are
// no-ops, or a copy if `out` is other memory. The protected do_... functions move the bytes: MPI on host memory, NCCL
// on GPUs. On device `count` they do nothing.
//
// Order. Work given to a verb runs after everything enqueued on `stream` before, and before everything enqueued on it
// later. Verbs return when the work is enqueued; immediate CPU streams have then also run it. Every rank of the axis
// makes the same calls in the same order. The work itself runs on stream(): on the CPU that of all communicators, so
// that one thread per rank makes every call of MPI; on a GPU each has one of its own. Tensors are held until it has run
// or, on a GPU, until another stream waits for it, so that memory comes back at the same place in every step. The
// communicator outlives the work.
//
// Errors. Tensors are contiguous, of equal types, and obey the size relation; anything else throws Error with axis,
// label and sizes before anything is sent. A failure of the library throws Error from the verb or, if streams are
// threaded, from the next synchronize() of stream().
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "framework/comm/call_ring.h"
#include "framework/comm/pending_calls.h"
#include "framework/core/device.h"
#include "framework/core/tensor.h"

namespace choir {

enum class Reduce : std::uint8_t { sum, max };

/// One message of exchange(): a contiguous tensor to or from a rank of the axis.
struct Message {
  Tensor tensor;
  int peer;
  int tag = 0;         ///< equal at both ends: with MPI a message is received only if its tag is the expected one
  std::string name{};  ///< equal at both ends, for profilers: NCCL has no tags
};

/// The ranks of one communicator: world ranks first, first + stride, ...; `rank` is the index of this one among them.
struct Group {
  std::string axis;  ///< names the mesh axis in messages
  int first = 0, stride = 1, size = 1;
  int rank = 0;
  std::vector<int> members() const;  ///< ascending
};

class Communicator {
 public:
  /// `device`, its `stream` for the work, and `ring` outlive the communicator.
  Communicator(Group group, Device& device, Stream& stream, CallRing& ring)
      : group_(std::move(group)), device_(device), stream_(stream), ring_(ring), pending_(ring) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& axis() const { return group_.axis; }
  int rank() const { return group_.rank; }
  int size() const { return group_.size; }
  Device& device() { return device_; }
  Stream& stream() { return stream_; }

  /// Every rank ends with the reduction of all ranks' `tensor`, with the same bits everywhere. In place; contiguous.
  /// MPI adds in rank order: f32, f64 and i32 in their own type, bf16 in f32, rounded once; u8 has max only. The
  /// maximum of anything and NaN is NaN.
  void all_reduce(const Tensor& tensor, Reduce op, Stream& stream, const char* label);

  /// Every rank ends with all ranks' `in`, in rank order. out.count() == size() * in.count().
  /// In place if `in` is this rank's block of `out`.
  void all_gather(const Tensor& in, const Tensor& out, Stream& stream, const char* label);

  /// Reduces `in` over the ranks, as all_reduce does, and leaves the i-th of size() equal blocks on rank i.
  /// in.count() == size() * out.count(). In place if `out` is this rank's block of `in`.
  void reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, Stream& stream, const char* label);

  /// Block i of `in` goes to rank i; block i of `out` comes from rank i. in.count() == out.count(), divisible by
  /// size(). Not in place.
  void all_to_all(const Tensor& in, const Tensor& out, Stream& stream, const char* label);

  /// Every rank ends with root's `tensor`. In place.
  void broadcast(const Tensor& tensor, int root, Stream& stream, const char* label);

  /// All sends and receives at once, as one call: no order among them, so no deadlock. Sizes agree pairwise; several
  /// messages between two ranks have the same order and the same tags at both ends.
  void exchange(const std::vector<Message>& sends, const std::vector<Message>& receives, Stream& stream,
                const char* label);

  /// The number of the last call. With waited_for(), releases the tensors of calls that the compute stream did not wait
  /// for earlier than the next call on the compute stream would: it waits for call `call` now.
  std::uint64_t last_call() const { return calls_; }
  void waited_for(std::uint64_t call);

  /// No rank continues before all ranks have called it. Blocks the stream, not the caller.
  void barrier(Stream& stream, const char* label);

  /// The library's message about what has failed since: a rank that died, the network. Empty: nothing. Also writes to
  /// the ring which calls a GPU has ended. From any thread.
  virtual std::string problem();
  /// Ends the calls that wait for other ranks; their results are lost, and no call may follow. From any thread.
  virtual void abort() {}

 protected:
  /// What do_... throws if the library failed, with the library's message; the public verb adds verb, axis and label.
  struct Failure {
    std::string what;
  };

  /// Bytes of workspace for a reduction to `count` elements on each rank (all_reduce: its share, rounded up).
  virtual std::int64_t reduction_workspace_bytes(std::int64_t count, DType type) const = 0;

  // With two ranks or more; arguments are checked. `workspace` is at least what was asked for, 64-byte aligned.
  virtual void do_all_reduce(const Tensor& tensor, Reduce op, const Tensor& workspace) = 0;
  virtual void do_all_gather(const Tensor& in, const Tensor& out) = 0;
  virtual void do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, const Tensor& workspace) = 0;
  virtual void do_all_to_all(const Tensor& in, const Tensor& out) = 0;
  virtual void do_broadcast(const Tensor& tensor, int root) = 0;
  virtual void do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) = 0;
  virtual void do_barrier() = 0;

 private:
  struct Site;  // verb and label of one call, for messages

  void run(const Site& site, std::int64_t bytes, Stream& stream, std::function<void()> work);
  void run(const Call& call, Stream& stream, std::function<void()> work);
  void enqueue(const Call& call, Stream& stream, const std::function<void()>& work);
  Call call_of(const Site& site, std::int64_t bytes) const;
  void count_messages(const std::vector<Message>& sends, const std::vector<Message>& receives, Call& call);
  std::uint64_t begin(const Call& call, const std::function<void()>& work);
  void copy(const Tensor& from, const Tensor& to, Stream& stream);
  Tensor workspace(std::int64_t count, DType type);

  Group group_;
  Device& device_;
  Stream& stream_;
  CallRing& ring_;
  PendingCalls pending_;  // on a GPU
  struct Held {
    std::uint64_t call;
    std::function<void()> work;
  };
  std::deque<Held> held_;    // work of a GPU for which no other stream waits yet, with its tensors
  std::uint64_t calls_ = 0;  // of either kind
  std::uint64_t calls_of_all_ = 0, calls_of_pairs_ = 0;
  std::vector<Call::Peer> messages_;  // so far, by rank of the axis
};

}  // namespace choir
