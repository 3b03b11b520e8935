#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_matmul.cpp"
#include "kernels/cpu/tile_matmul.h"

#include <stdexcept>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/tile_matmul_kernel.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class Out>
void compute(const Matmul<bf16, Out>& args, const TileMatmulPlan& plan, int index, void* workspace) {
  tile_matmul_part<TileInstructions>(args, plan, index, workspace);
}

}  // namespace

template <class Out>
void tile_matmul(Cpu cpu, const Matmul<bf16, Out>& args) {
  cpu::tile_matmul<Out>(cpu, args, compute<Out>);
}
template void tile_matmul(Cpu, const Matmul<bf16, bf16>&);
template void tile_matmul(Cpu, const Matmul<bf16, float>&);

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace choir::kernels::cpu {

template <class Out>
void tile_matmul([[maybe_unused]] Cpu cpu, [[maybe_unused]] const Matmul<bf16, Out>& args) {
#if HWY_TARGETS & HWY_AVX3
  N_AVX3::tile_matmul(cpu, args);
#else
  throw std::runtime_error("matmul: this program was not built for tiles");
#endif
}
template void tile_matmul(Cpu, const Matmul<bf16, bf16>&);
template void tile_matmul(Cpu, const Matmul<bf16, float>&);

}  // namespace choir::kernels::cpu
#endif
