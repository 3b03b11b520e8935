// One launch in the interpreter: its threads, their registers, shared and local memory; run block by block.
//
// The lanes of a warp that are at the same instruction run it together: it is fetched and decoded once for all of them,
// and if they are the whole warp the loop over them vectorises. Kernels must not rely on that: lanes that diverge
// converge again when those furthest behind have caught up, and the checker orders two lanes by barriers alone.
#pragma once

#include <bit>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/simgpu/memory_checker_state.h"
#include "tests/simgpu/ptx.h"
#include "tests/simgpu/ptx_program.h"

// Compiled for several generations of the processor; the newest that the processor supports is used. Not with
// sanitizers: the thread sanitizer is not ready when the choice is made, and with the address sanitizer each takes
// minutes to compile.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define VECTORISED [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define VECTORISED
#endif

namespace choir::simgpu::ptx {

/// A set of lanes of a warp: lane i is bit i.
using Lanes = std::uint32_t;

/// body(lane) for each of `lanes`.
template <class Body>
void each_lane(Lanes lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) body(std::countr_zero(lanes));
}

/// The lanes in which a predicate is true.
inline Lanes lanes_that_hold(const std::uint64_t* predicates) {
  Lanes lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= static_cast<Lanes>(predicates[lane] & 1) << lane;
  return lanes;
}

/// Thrown if a kernel cannot go on; the finding is in the result already.
struct Stopped {};

class Grid {
 public:
  Grid(const Program& program, const Kernel& kernel, const Launch& launch, MemoryChecker::State& checker);
  LaunchResult run();

 private:
  struct Copy {
    std::int64_t to;  // offset in shared memory
    const unsigned char* from;
    std::int64_t bytes;
  };
  struct Thread {
    std::int32_t pc = 0;
    Lanes mask = 0;                         // of the warp operation that it waits at
    std::vector<std::vector<Copy>> copies;  // groups of cp.async, the last one open
  };
  static constexpr int warp = 32;
  struct WarpState {
    Lanes alive = 0;                                    // they exist and have not exited
    Lanes at_warp_operation = 0, at_block_barrier = 0;  // they wait
    Lanes running() const { return alive & ~at_warp_operation & ~at_block_barrier; }
  };
  /// What is scheduled as one: a warp or a lane.
  struct Turn {
    int warp_index;
    Lanes lanes;
  };

  // ptx_block.cpp: blocks, barriers, messages
  void make_turns(bool lanes_run_alone);
  void run_block(Extent block, bool lanes_run_alone);
  void start_threads(Extent block);
  bool release_block_barrier();
  [[noreturn]] void stop_deadlock();
  void add_finding(const char* kind, const Instruction& in, int thread, const std::string& what);
  [[noreturn]] void stop(const char* kind, const Instruction& in, int thread, const std::string& what);
  std::string thread_text(int thread) const;

  // ptx_memory.cpp: every access of memory
  unsigned char* resolve(const Instruction& in, Space space, std::uint64_t address, std::int64_t bytes, AccessKind kind,
                         int thread);
  bool is_in_shared(std::int64_t offset, std::int64_t bytes) const;
  unsigned char* resolve_shared(const Instruction& in, std::int64_t offset, std::int64_t bytes, AccessKind kind,
                                int thread);
  void resolve_shared_reads(const Instruction& in, int warp_index, Lanes lanes, std::int64_t size,
                            const unsigned char* bytes[warp]);
  unsigned char* resolve_global(const Instruction& in, std::uint64_t address, std::int64_t bytes, AccessKind kind,
                                int thread);
  void report(const Problem& problem, const Instruction& in, std::uint64_t address, const char* memory,
              std::int64_t bytes, AccessKind kind, int thread);
  void load(const Instruction& in, int warp_index, Lanes lanes);
  void store(const Instruction& in, int warp_index, Lanes lanes);
  void atomic(const Instruction& in, int thread);
  void copy_async(const Instruction& in, int thread);
  void land_copies(const Instruction& in, int thread, std::int64_t groups_left);
  bool in_module_variable(std::uint64_t address, std::int64_t bytes) const;

  // ptx_frequent.cpp: the frequent instructions of a whole warp
  std::int32_t run_frequent(int warp_index, std::int32_t pc);

  // ptx_thread.cpp: what each thread does by itself
  void run_turn(Turn turn);
  void run_together(int warp_index, Lanes active, std::int32_t pc, std::int32_t others);
  void run_alone(const Instruction& in, int warp_index, Lanes lanes);
  void move_to(int warp_index, Lanes lanes, std::int32_t pc);
  void compute(const Instruction& in, int warp_index, Lanes lanes);

  // ptx_warp.cpp: what the lanes of a warp do together
  bool runs_at_once(const Instruction& in, int warp_index, Lanes lanes);
  void finish_warp_operations(int warp_index, Lanes lanes);
  void run_warp_operation(const Instruction& in, int first_thread, Lanes mask);
  void shuffle(const Instruction& in, int first_thread, Lanes mask);
  void vote(const Instruction& in, int first_thread, Lanes mask);
  void match(const Instruction& in, int first_thread, Lanes mask);
  void warp_reduce(const Instruction& in, int first_thread, Lanes mask);
  void load_matrix(const Instruction& in, int first_thread);
  void mma(const Instruction& in, int first_thread);
  void wmma_move(const Instruction& in, int first_thread);
  void wmma_mma(const Instruction& in, int first_thread);

  /// One register of all lanes of a warp.
  std::uint64_t* row(std::int32_t reg, int warp_index) {
    return registers_.data() + (static_cast<std::size_t>(warp_index) * static_cast<std::size_t>(kernel_.num_registers) +
                                static_cast<std::size_t>(reg)) *
                                   warp;
  }
  std::uint64_t& value(std::int32_t reg, int thread) { return row(reg, thread / warp)[thread % warp]; }
  std::uint64_t& value(const Operand& o, int thread) { return value(o.reg, thread); }
  std::uint64_t address(const Operand& o, int thread) { return value(o, thread) + static_cast<std::uint64_t>(o.value); }
  bool predicate(const Operand& o, int thread) { return ((value(o, thread) & 1) != 0) != o.negated; }
  /// Operand i of a vector, or the operand itself if it is not a vector.
  const Operand& part(const Operand& o, int i) const {
    return o.count > 0 ? kernel_.vectors[static_cast<std::size_t>(o.value + i)] : o;
  }

  const Program& program_;
  const Kernel& kernel_;
  const Launch& launch_;
  MemoryChecker::State& checker_;
  LaunchResult result_;
  std::set<std::pair<std::string, std::int32_t>> reported_;  // kind, line of PTX

  int num_threads_;
  std::mt19937 random_;
  std::vector<Thread> threads_;
  std::vector<WarpState> warps_;
  std::vector<std::uint64_t> registers_;  // [warp][register][lane]
  std::vector<Turn> turns_;
  std::unique_ptr<unsigned char[]> shared_storage_;
  unsigned char* shared_ = nullptr;  // aligned
  std::int64_t shared_bytes_;
  ShadowPages shared_shadow_;
  std::vector<unsigned char> local_;
  Extent block_;
  int exited_ = 0;
};

}  // namespace choir::simgpu::ptx
