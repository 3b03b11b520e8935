#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_matmul.cpp"
#include "kernels/cpu/vector_matmul.h"

#include <stdexcept>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/vector_matmul_kernel.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class In, class Out>
void compute(const Matmul<In, Out>& args, const cpu::VectorMatmulPlan& plan, int index, void* workspace) {
  using Unit = std::conditional_t<std::is_same_v<In, float>, FmaInstructions, PairInstructions>;
  vector_matmul_part<Unit>(args, plan, index, workspace);
}

}  // namespace

template <class In, class Out>
void vector_matmul(Cpu cpu, const Matmul<In, Out>& args) {
  cpu::vector_matmul<In, Out>(cpu, args, compute<In, Out>);
}
template void vector_matmul(Cpu, const Matmul<float, float>&);
template void vector_matmul(Cpu, const Matmul<bf16, bf16>&);
template void vector_matmul(Cpu, const Matmul<bf16, float>&);

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace choir::kernels::cpu {

template <class In, class Out>
void vector_matmul([[maybe_unused]] Cpu cpu, [[maybe_unused]] const Matmul<In, Out>& args) {
#if HWY_TARGETS & HWY_AVX3
  N_AVX3::vector_matmul(cpu, args);
#else
  throw std::runtime_error("matmul: this program was not built for vectors of AVX-512");
#endif
}
template void vector_matmul(Cpu, const Matmul<float, float>&);
template void vector_matmul(Cpu, const Matmul<bf16, bf16>&);
template void vector_matmul(Cpu, const Matmul<bf16, float>&);

}  // namespace choir::kernels::cpu
#endif
