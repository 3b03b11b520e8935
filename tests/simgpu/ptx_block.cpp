#include "tests/simgpu/ptx_block.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

constexpr std::int64_t shared_alignment = 1024;

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                    std::free);
  if (status != 0) return name;
  const std::string whole = text.get();
  return whole.substr(0, whole.find('('));
}

std::string triple(Extent e) {
  std::string text = "(";
  text += std::to_string(e.x) + ", " + std::to_string(e.y) + ", " + std::to_string(e.z);
  return text + ")";
}

}  // namespace

Grid::Grid(const Program& program, const Kernel& kernel, const Launch& launch, MemoryChecker::State& checker)
    : program_(program),
      kernel_(kernel),
      launch_(launch),
      checker_(checker),
      num_threads_(static_cast<int>(launch.block.x * launch.block.y * launch.block.z)),
      random_(launch.seed),
      threads_(static_cast<std::size_t>(num_threads_)),
      warps_(static_cast<std::size_t>((num_threads_ + warp - 1) / warp)),
      registers_(warps_.size() * static_cast<std::size_t>(kernel.num_registers * warp)),
      shared_storage_(new unsigned char[static_cast<std::size_t>(dynamic_shared_begin + launch.dynamic_shared_bytes +
                                                                 shared_alignment)]),
      shared_bytes_(dynamic_shared_begin + launch.dynamic_shared_bytes),
      shared_shadow_(shared_bytes_),
      local_(static_cast<std::size_t>(num_threads_ * kernel.local_bytes)) {
  const auto begin = reinterpret_cast<std::uintptr_t>(shared_storage_.get());
  shared_ = shared_storage_.get() + (shared_alignment - begin % shared_alignment) % shared_alignment;
  for (int w = 0; w < static_cast<int>(warps_.size()); ++w)
    for (const auto& [constant, reg] : kernel.constants)
      std::fill_n(row(reg, w), warp, static_cast<std::uint64_t>(constant));
}

void Grid::make_turns(bool lanes_run_alone) {
  turns_.clear();
  for (int t = 0; t < num_threads_; t += lanes_run_alone ? 1 : warp)
    turns_.push_back({.warp_index = t / warp, .lanes = lanes_run_alone ? Lanes{1} << t % warp : ~Lanes{0}});
  if (launch_.seed != 0) std::shuffle(turns_.begin(), turns_.end(), random_);
}

/// Runs the blocks one after the other, in an order of the seed: CUDA does not define the order.
LaunchResult Grid::run() {
  checker_.begin_launch();
  const Extent grid = launch_.grid;
  const std::uint64_t count = std::uint64_t{grid.x} * grid.y * grid.z;
  std::vector<std::uint64_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (launch_.seed != 0) std::shuffle(blocks.begin(), blocks.end(), random_);
  int left_with_single_lanes = launch_.seed % 32 == 1 ? 4 : 0;
  try {
    for (const std::uint64_t b : blocks)
      run_block({static_cast<std::uint32_t>(b % grid.x), static_cast<std::uint32_t>(b / grid.x % grid.y),
                 static_cast<std::uint32_t>(b / grid.x / grid.y)},
                left_with_single_lanes-- > 0);
  } catch (const Stopped&) {
  }
  constexpr std::size_t intervals_per_allocation = 64;
  if (launch_.check) result_.accesses = checker_.take_accesses(intervals_per_allocation);
  return std::move(result_);
}

void Grid::start_threads(Extent block) {
  block_ = block;
  exited_ = 0;
  for (std::size_t w = 0; w < warps_.size(); ++w)
    warps_[w] = {.alive = static_cast<Lanes>(low_bits(std::min(warp, num_threads_ - static_cast<int>(w) * warp)))};
  const Extent size = launch_.block;
  for (int t = 0; t < num_threads_; ++t) {
    Thread& thread = threads_[static_cast<std::size_t>(t)];
    thread.pc = 0;
    thread.copies.clear();
    const auto r = [&](Special reg) -> std::uint64_t& { return value(reg, t); };
    const auto index = static_cast<std::uint32_t>(t);
    const std::uint32_t lane = index % warp;
    r(tid_x) = index % size.x;
    r(tid_y) = index / size.x % size.y;
    r(tid_z) = index / size.x / size.y;
    r(ntid_x) = size.x;
    r(ntid_y) = size.y;
    r(ntid_z) = size.z;
    r(ctaid_x) = block.x;
    r(ctaid_y) = block.y;
    r(ctaid_z) = block.z;
    r(nctaid_x) = launch_.grid.x;
    r(nctaid_y) = launch_.grid.y;
    r(nctaid_z) = launch_.grid.z;
    r(laneid) = lane;
    r(warpid) = index / warp;
    r(nwarpid) = (static_cast<std::uint32_t>(num_threads_) + warp - 1) / warp;
    r(lanemask_lt) = low_bits(static_cast<int>(lane));
    r(lanemask_le) = low_bits(static_cast<int>(lane + 1));
    r(lanemask_gt) = 0xffffffffu & ~low_bits(static_cast<int>(lane + 1));
    r(lanemask_ge) = 0xffffffffu & ~low_bits(static_cast<int>(lane));
    r(lanemask_eq) = std::uint64_t{1} << lane;
    r(smid) = 0;
    r(clock) = 0;
    r(dynamic_smem_size) = static_cast<std::uint64_t>(launch_.dynamic_shared_bytes);
  }
}

void Grid::run_block(Extent block, bool lanes_run_alone) {
  start_threads(block);
  if (launch_.check) checker_.begin_block(num_threads_);
  constexpr int nan_bits = 0xff;
  std::memset(shared_, nan_bits, static_cast<std::size_t>(kernel_.static_shared_bytes));
  std::memset(shared_ + dynamic_shared_begin, nan_bits, static_cast<std::size_t>(launch_.dynamic_shared_bytes));
  make_turns(lanes_run_alone);
  while (exited_ < num_threads_) {
    const std::int64_t before = result_.instructions;
    for (const Turn turn : turns_) run_turn(turn);
    if (!release_block_barrier() && result_.instructions == before) stop_deadlock();
  }
}

/// Releases the threads if all that have not exited wait at a block barrier.
bool Grid::release_block_barrier() {
  int waiting = 0;
  for (const WarpState& state : warps_) waiting += std::popcount(state.at_block_barrier);
  if (waiting == 0 || waiting != num_threads_ - exited_) return false;
  const auto each_waiting_thread = [&](auto&& body) {
    for (std::size_t w = 0; w < warps_.size(); ++w)
      each_lane(warps_[w].at_block_barrier, [&](int lane) { body(static_cast<int>(w) * warp + lane); });
  };
  std::int32_t pc = -1;
  each_waiting_thread([&](int t) {
    const Thread& thread = threads_[static_cast<std::size_t>(t)];
    const Instruction& in = kernel_.code[static_cast<std::size_t>(thread.pc)];
    if (pc >= 0 && thread.pc != pc)
      stop("divergent barrier", in, t,
           "waits here, other threads of the block at the barrier of " +
               program_.where(kernel_.code[static_cast<std::size_t>(pc)]));
    pc = thread.pc;
  });
  const Instruction& in = kernel_.code[static_cast<std::size_t>(pc)];
  if (exited_ > 0 && launch_.check)
    add_finding("divergent barrier", in, turns_[0].warp_index * warp + std::countr_zero(turns_[0].lanes),
                "(of the block) " + std::to_string(exited_) + " threads have ended without reaching this barrier");
  if (in.op == Op::block_vote) {
    int count = 0;
    const Operand& condition = in.operands[in.num_operands - 1];
    each_waiting_thread([&](int t) { count += predicate(condition, t); });
    const std::uint64_t outcome = in.mode == population_count ? static_cast<std::uint64_t>(count)
                                  : in.mode == any            ? count > 0
                                                              : count == waiting;
    each_waiting_thread([&](int t) { value(in.operands[0], t) = outcome; });
  }
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    move_to(static_cast<int>(w), warps_[w].at_block_barrier, pc + 1);
    warps_[w].at_block_barrier = 0;
  }
  if (launch_.check) checker_.block_barrier();
  return true;
}

void Grid::stop_deadlock() {
  std::string waiting;
  int listed = 0;
  int first = -1;
  for (int t = 0; t < num_threads_ && listed < 4; ++t) {
    const Thread& thread = threads_[static_cast<std::size_t>(t)];
    if ((warps_[static_cast<std::size_t>(t / warp)].alive >> t % warp & 1) == 0) continue;
    const bool new_place = first < 0 || thread.pc != threads_[static_cast<std::size_t>(first)].pc;
    if (first < 0) first = t;
    if (!new_place) continue;
    waiting += (listed++ > 0 ? "; thread " : "thread ") + std::to_string(t) + " waits at " +
               program_.where(kernel_.code[static_cast<std::size_t>(thread.pc)]);
  }
  stop("divergent barrier", kernel_.code[static_cast<std::size_t>(threads_[static_cast<std::size_t>(first)].pc)], first,
       "waits forever: " + waiting);
}

std::string Grid::thread_text(int thread) const {
  const auto index = static_cast<std::uint32_t>(thread);
  const Extent size = launch_.block;
  return triple({index % size.x, index / size.x % size.y, index / size.x / size.y});
}

void Grid::add_finding(const char* kind, const Instruction& in, int thread, const std::string& what) {
  if (!reported_.emplace(kind, in.source >= 0 ? in.source : -in.line).second) return;
  result_.findings.push_back({.kind = kind,
                              .text = demangled(kernel_.name) + ", block " + triple(block_) + ", thread " +
                                      thread_text(thread) + ", " + program_.where(in) + ": " + what});
}

void Grid::stop(const char* kind, const Instruction& in, int thread, const std::string& what) {
  add_finding(kind, in, thread, what);
  throw Stopped{};
}

}  // namespace choir::simgpu::ptx
