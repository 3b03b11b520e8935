#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_attention.cpp"
#include "kernels/cpu/tile_attention.h"

#include <stdexcept>
#include <type_traits>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/tile_attention_kernel.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class Unit>
void forward(const AttentionForward<typename Unit::Element>& args, cpu::Part groups, void* workspace) {
  tile_forward_part<Unit>(args, groups, workspace);
}
template <class Unit>
void backward(const AttentionBackward<typename Unit::Element>& args, cpu::Part groups, void* workspace) {
  tile_backward_part<Unit>(args, groups, workspace);
}

}  // namespace

template <class T>
using Vectors = std::conditional_t<std::is_same_v<T, float>, FmaInstructions, PairInstructions>;

template <class T>
void tile_attention_forward(Cpu cpu, const AttentionForward<T>& args) {
  auto* compute = forward<Vectors<T>>;
  if constexpr (std::is_same_v<T, bf16>) {
    if (cpu.unit == CpuUnit::tiles) compute = forward<TileInstructions>;
  }
  cpu::run_tile_attention<cpu::TileForwardMemory<T>>(cpu, args, compute);
}
template <class T>
void tile_attention_backward(Cpu cpu, const AttentionBackward<T>& args) {
  auto* compute = backward<Vectors<T>>;
  if constexpr (std::is_same_v<T, bf16>) {
    if (cpu.unit == CpuUnit::tiles) compute = backward<TileInstructions>;
  }
  cpu::run_tile_attention<cpu::TileBackwardMemory<T>>(cpu, args, compute);
}
template void tile_attention_forward(Cpu, const AttentionForward<float>&);
template void tile_attention_forward(Cpu, const AttentionForward<bf16>&);
template void tile_attention_backward(Cpu, const AttentionBackward<float>&);
template void tile_attention_backward(Cpu, const AttentionBackward<bf16>&);

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace choir::kernels::cpu {

template <class T>
void tile_attention_forward([[maybe_unused]] Cpu cpu, [[maybe_unused]] const AttentionForward<T>& args) {
#if HWY_TARGETS & HWY_AVX3
  N_AVX3::tile_attention_forward(cpu, args);
#else
  throw std::runtime_error("attention: this program was not built for vectors of AVX-512");
#endif
}
template <class T>
void tile_attention_backward([[maybe_unused]] Cpu cpu, [[maybe_unused]] const AttentionBackward<T>& args) {
#if HWY_TARGETS & HWY_AVX3
  N_AVX3::tile_attention_backward(cpu, args);
#else
  throw std::runtime_error("attention: this program was not built for vectors of AVX-512");
#endif
}
template void tile_attention_forward(Cpu, const AttentionForward<float>&);
template void tile_attention_forward(Cpu, const AttentionForward<bf16>&);
template void tile_attention_backward(Cpu, const AttentionBackward<float>&);
template void tile_attention_backward(Cpu, const AttentionBackward<bf16>&);

}  // namespace choir::kernels::cpu
#endif
