// One launch in the interpreter: its threads, their registers, shared and local memory; run block by block.
#pragma once

#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/simgpu/memory_checker_state.h"
#include "tests/simgpu/ptx.h"
#include "tests/simgpu/ptx_program.h"

namespace choir::simgpu::ptx {

/// Thrown where a kernel cannot go on; the finding is in the result already.
struct Stopped {};

class Grid {
 public:
  Grid(const Program& program, const Kernel& kernel, const Launch& launch, MemoryChecker::State& checker);
  LaunchResult run();

 private:
  enum class State : std::uint8_t { running, at_block_barrier, at_warp_operation, exited };
  struct Copy {
    std::int64_t to;  // offset in shared memory
    const unsigned char* from;
    std::int64_t bytes;
  };
  struct Thread {
    std::int32_t pc = 0;
    State state = State::running;
    std::uint32_t mask = 0;                 // of the warp operation it waits at
    std::vector<std::vector<Copy>> copies;  // groups of cp.async, the last one open
  };
  static constexpr int warp = 32;
  struct WarpState {
    std::uint32_t alive = 0;    // lanes that exist and have not exited
    std::uint32_t waiting = 0;  // lanes at a warp operation
  };

  // ptx_block.cpp: blocks, barriers, messages
  void run_block(Extent block);
  void start_threads(Extent block);
  bool release_block_barrier();
  [[noreturn]] void stop_deadlock();
  void add_finding(const char* kind, const Instruction& in, int thread, const std::string& what);
  [[noreturn]] void stop(const char* kind, const Instruction& in, int thread, const std::string& what);
  std::string thread_text(int thread) const;

  // ptx_memory.cpp: every access of memory
  unsigned char* resolve(const Instruction& in, Space space, std::uint64_t address, std::int64_t bytes, AccessKind kind,
                         int thread);
  unsigned char* resolve_shared(const Instruction& in, std::int64_t offset, std::int64_t bytes, AccessKind kind,
                                int thread);
  unsigned char* resolve_global(const Instruction& in, std::uint64_t address, std::int64_t bytes, AccessKind kind,
                                int thread);
  void report(const Problem& problem, const Instruction& in, std::uint64_t address, const char* memory,
              std::int64_t bytes, AccessKind kind, int thread);
  void load(const Instruction& in, int thread);
  void store(const Instruction& in, int thread);
  void atomic(const Instruction& in, int thread);
  void copy_async(const Instruction& in, int thread);
  void land_copies(const Instruction& in, Thread& thread, int index, std::int64_t groups_left);
  bool in_module_variable(std::uint64_t address, std::int64_t bytes) const;

  // ptx_thread.cpp: what a thread does by itself
  void run_thread(int index);
  void exit_thread(int index);
  void compute(const Instruction& in, std::uint64_t* registers, int thread);

  // ptx_warp.cpp: what the lanes of a warp do together
  void arrive_at_warp_operation(const Instruction& in, int index);
  void run_warp_operation(const Instruction& in, int first_thread, std::uint32_t mask);
  void shuffle(const Instruction& in, int first_thread, std::uint32_t mask);
  void vote(const Instruction& in, int first_thread, std::uint32_t mask);
  void match(const Instruction& in, int first_thread, std::uint32_t mask);
  void warp_reduce(const Instruction& in, int first_thread, std::uint32_t mask);
  void load_matrix(const Instruction& in, int first_thread);
  void mma(const Instruction& in, int first_thread);
  void wmma_move(const Instruction& in, int first_thread);
  void wmma_mma(const Instruction& in, int first_thread);

  std::uint64_t* registers_of(int thread) {
    return registers_.data() + static_cast<std::size_t>(thread) * static_cast<std::size_t>(kernel_.num_registers);
  }
  std::uint64_t value(const Operand& o, int thread) {
    return o.reg >= 0 ? registers_of(thread)[o.reg] : static_cast<std::uint64_t>(o.value);
  }
  const Operand& part(const Operand& vector, int i) const {
    return kernel_.vectors[static_cast<std::size_t>(vector.value + i)];
  }
  bool predicate(const Operand& o, const std::uint64_t* registers) const {
    const std::uint64_t bits = o.reg >= 0 ? registers[o.reg] : static_cast<std::uint64_t>(o.value);
    return ((bits & 1) != 0) != o.negated;
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
  std::vector<std::uint64_t> registers_;
  std::vector<int> order_;
  std::unique_ptr<unsigned char[]> shared_storage_;
  unsigned char* shared_ = nullptr;  // aligned
  std::int64_t shared_bytes_;
  ShadowPages shared_shadow_;
  std::vector<unsigned char> local_;
  Extent block_;
  int exited_ = 0;
};

}  // namespace choir::simgpu::ptx
