// A rank's end of a communicator of the double of NCCL, and the calls on it: collectives and groups of messages.
//
// A call is polled while it is at the head of its stream; each poll moves what is ready between the arena's mailboxes
// and a result that is finally written to device memory. Data of any size is moved in pieces.
#pragma once

#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simgpu/memory_checker.h"
#include "tests/simgpu/nccl_arena.h"

namespace choir::simgpu {

struct Endpoint {
  std::string id;    ///< of the communicator, unique in the machine
  std::string name;  ///< for findings: commName of its configuration
  int rank = 0, ranks = 1, device = 0;
  bool blocking = true;
  std::unique_ptr<Arena> arena;

  std::atomic<bool> aborted = false;
  std::atomic<ncclResult_t> error = ncclSuccess;
  std::atomic<ncclResult_t> late_error = ncclSuccess;  ///< becomes `error` while the program waits for the GPU

  // Used by the thread that makes the calls,
  std::atomic<std::int64_t> calls = 0, collectives = 0, splits = 0;
  std::vector<std::int64_t> sends, receives;  ///< by the other rank
  // and by the simulator's thread.
  std::atomic<std::int64_t> finished = 0;
  std::int64_t pieces = 0;  ///< of collectives, exchanged so far: the same number on all ranks
  bool mismatched = false;  ///< reported once: every call after the first mismatch is a mismatch too

  void report(const std::string& what);  ///< a finding "collective mismatch", the first time
};

std::int64_t bytes_of(ncclDataType_t type);  ///< of an element; 0 if the double does not know the type

class NcclCall {
 public:
  NcclCall(std::shared_ptr<Endpoint> endpoint, bool arrives);
  virtual ~NcclCall() = default;

  /// Never blocks; true when the result is complete. Calls on one communicator run one after the other.
  bool ready();
  void run();

  virtual std::vector<Access> accesses() const = 0;

 protected:
  struct Part {  ///< of the result: written to device memory at the end
    void* to;
    std::vector<std::byte> bytes;
  };

  virtual bool advance() = 0;

  Endpoint& endpoint() const { return *endpoint_; }
  Arena& arena() const { return *endpoint_->arena; }
  std::vector<Part> results_;

 private:
  std::shared_ptr<Endpoint> endpoint_;
  LaunchTicket ticket_;
  std::int64_t number_;
  bool arrives_, ended_ = false;
};

enum class Verb : std::uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, reduce };
const char* name_of(Verb verb);  ///< "ncclAllReduce"

struct CollectiveArguments {
  Verb verb;
  const void* in;
  void* out;
  std::int64_t count;  ///< as NCCL counts: elements of the smaller buffer
  ncclDataType_t type;
  ncclRedOp_t reduction = ncclSum;
  int root = 0;
};

class Collective : public NcclCall {
 public:
  Collective(std::shared_ptr<Endpoint> endpoint, bool arrives, const CollectiveArguments& arguments,
             const std::string& label);
  std::vector<Access> accesses() const override;

 private:
  bool advance() override;
  std::int64_t blocks() const;
  std::int64_t piece() const;
  bool deposit();
  bool all_have_deposited();
  void compare();
  void collect();

  CollectiveArguments arguments_;
  CallSignature signature_;
  std::int64_t number_;    // among the collectives of the communicator, from 1
  std::int64_t done_ = 0;  // elements
  bool deposited_ = false, compared_ = false, fits_ = true, gone_ = false;
};

struct MessageArguments {
  bool send;
  void* data;
  std::int64_t count;
  ncclDataType_t type;
  int peer;
  std::string label{};  ///< the innermost open range: equal at both ends
};

/// Sends and receives of one ncclGroup. A send ends when its receiver has received all of it: no program can rely on
/// buffering.
class Messages : public NcclCall {
 public:
  Messages(std::shared_ptr<Endpoint> endpoint, bool arrives, const std::vector<MessageArguments>& messages);
  std::vector<Access> accesses() const override;

 private:
  struct Transfer {
    MessageArguments arguments;
    CallSignature signature;
    std::int64_t bytes = 0, moved = 0;
    std::size_t result = 0;  // of a receive: where in the results
    bool begun = false, fits = true, done = false;
  };
  bool advance() override;
  void note_launch(const MessageArguments& message);
  void send(Transfer& transfer);
  void receive(Transfer& transfer);
  bool peer_is_gone(const Transfer& transfer) const;
  void end_without_peer(Transfer& transfer);

  std::vector<Transfer> transfers_;
};

}  // namespace choir::simgpu
