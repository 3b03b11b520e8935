// An interpreter of the PTX that nvcc emits: every thread of every block runs, in an order that the seed determines.
//
// With seed 0 blocks and warps run in their order, else in a random one. A warp runs until all of its lanes wait, those
// at the same instruction together; but if seed % 32 is 1, in the first few blocks that run, each lane runs alone until
// it waits, in an order that does not depend on warps. (It takes thirty times as long.)
//
// It runs what was compiled, so it puts no constraint on the sources. An unknown instruction is an error that names the
// line. PTX ISA 9.0, the part that nvcc generates from Choir's kernels for sm_80, sm_90 and sm_100.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/simgpu/memory_checker.h"

namespace choir::simgpu {

struct Extent {
  std::uint32_t x = 1, y = 1, z = 1;
};

struct Launch {
  Extent grid, block;
  std::int64_t dynamic_shared_bytes = 0;
  std::span<const std::byte> parameters;  ///< packed in order of declaration, natural alignment
  unsigned seed = 0;                      ///< the order of threads and blocks
  bool check = true;                      ///< false: no shadow memory, faster
};

struct LaunchResult {
  std::int64_t instructions = 0;
  std::int64_t bytes_read = 0, bytes_written = 0;  ///< of global memory, each access counted
  std::vector<Access> accesses;                    ///< of global memory: merged intervals, a bounded number of them
  std::vector<Finding> findings;                   ///< each mistake once for each source line and kind
};

class PtxModule {
 public:
  /// Throws std::runtime_error "ptx line N: ..." on anything that is not understood.
  explicit PtxModule(std::string_view ptx);
  ~PtxModule();

  std::string target() const;                ///< "sm_90"
  std::vector<std::string> kernels() const;  ///< mangled names
  bool has(const std::string& mangled) const;
  /// Byte offset and size of each parameter of a kernel, in the order of cudaLaunchKernel's array of pointers.
  std::vector<std::pair<std::int64_t, std::int64_t>> parameters(const std::string& mangled) const;
  std::int64_t static_shared_bytes(const std::string& mangled) const;
  int max_threads_per_block(const std::string& mangled) const;  ///< __launch_bounds__, else 1024

  /// Runs the whole grid before it returns. Device pointers are host pointers. What stops a kernel (a trap, an access
  /// outside all memory, a deadlock of its threads) is the last finding.
  LaunchResult launch(const std::string& mangled, const Launch&, MemoryChecker&);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace choir::simgpu
