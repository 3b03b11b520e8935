// One order of all NCCL calls of a GPU, on all of its communicators.
//
// NCCL's kernels wait for those of other GPUs while they occupy processors of their own. If two ranks that share two
// communicators launch on them in different orders, or if progress needs two kernels at once, a job can hang on one
// system and run on another. The double makes both certain: a rank writes down, for each collective or message, how
// many collectives of its other communicators it launched before, and the ranks compare; and a GPU executes one NCCL
// call at a time, in the order of their launches.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace choir::simgpu {

struct Endpoint;

/// What a rank had launched before one of its calls. In shared memory.
struct LaunchRecord {
  static constexpr int most_communicators = 12;
  struct Count {
    std::uint64_t communicator;  ///< a hash of its id
    std::int64_t collectives;
  };
  std::atomic<std::int64_t> number;  ///< of the call, from 1; 0 while the record is written
  std::int32_t communicators;
  Count counts[most_communicators];
};

/// The last calls of one kind of one rank. A rank that is far ahead of another overwrites what was not compared.
struct LaunchLog {
  static constexpr int window = 64;
  LaunchRecord records[window];
};

/// Makes the calls of `endpoint` known to those of the other communicators of its GPU.
void register_endpoint(const std::shared_ptr<Endpoint>& endpoint);

/// Writes down what the GPU of `endpoint` has launched before call `number`.
void write_launch(const Endpoint& endpoint, LaunchLog& log, std::int64_t number);

/// A finding "launch order" if this rank and rank `other` of the communicator have launched different numbers of
/// collectives on another communicator, which they share too, before call `number`, called `call`. Nothing if `other`
/// has not launched the call yet: it compares then.
void compare_launch(const Endpoint& endpoint, const LaunchLog& own, const LaunchLog& others, int other,
                    std::int64_t number, const std::string& call);

/// The place of a call among all NCCL calls of a GPU. Its turn comes when all earlier ones are gone.
class LaunchTicket {
 public:
  explicit LaunchTicket(int device);
  ~LaunchTicket() { end(); }
  LaunchTicket(const LaunchTicket&) = delete;
  LaunchTicket& operator=(const LaunchTicket&) = delete;

  bool is_first() const;
  void end();

 private:
  int device_;
  std::int64_t number_;
};

}  // namespace choir::simgpu
