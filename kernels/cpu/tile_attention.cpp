#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_attention.cpp"
#include "kernels/cpu/tile_attention.h"

#include <stdexcept>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/tile_attention_kernel.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class Unit>
void forward(const AttentionForward<bf16>& args, cpu::Part groups, void* workspace) {
  tile_forward_part<Unit>(args, groups, workspace);
}
template <class Unit>
void backward(const AttentionBackward<bf16>& args, cpu::Part groups, void* workspace) {
  tile_backward_part<Unit>(args, groups, workspace);
}

}  // namespace

void tile_attention_forward(Cpu cpu, const AttentionForward<bf16>& args) {
  const bool tiles = cpu.unit == CpuUnit::tiles;
  cpu::run_tile_attention<cpu::TileForwardMemory>(cpu, args,
                                                  tiles ? forward<TileInstructions> : forward<PairInstructions>);
}
void tile_attention_backward(Cpu cpu, const AttentionBackward<bf16>& args) {
  const bool tiles = cpu.unit == CpuUnit::tiles;
  cpu::run_tile_attention<cpu::TileBackwardMemory>(cpu, args,
                                                   tiles ? backward<TileInstructions> : backward<PairInstructions>);
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace choir::kernels::cpu {

#if HWY_TARGETS & HWY_AVX3
void tile_attention_forward(Cpu cpu, const AttentionForward<bf16>& args) { N_AVX3::tile_attention_forward(cpu, args); }
void tile_attention_backward(Cpu cpu, const AttentionBackward<bf16>& args) {
  N_AVX3::tile_attention_backward(cpu, args);
}
#else
void tile_attention_forward(Cpu, const AttentionForward<bf16>&) {
  throw std::runtime_error("attention: this program was not built for bf16 instructions");
}
void tile_attention_backward(Cpu, const AttentionBackward<bf16>&) {
  throw std::runtime_error("attention: this program was not built for bf16 instructions");
}
#endif

}  // namespace choir::kernels::cpu
#endif
