#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_matmul.cpp"
#include "kernels/cpu/tile_matmul.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

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

bool is_exact(void (*multiply)(Cpu, const Matmul<bf16, float>&)) {
  constexpr std::int64_t m = 40, n = 48, k = 70;  // panels that are not full
  const auto a_at = [](std::int64_t i, std::int64_t p) { return static_cast<int>((3 * i + 5 * p) % 17) - 8; };
  const auto b_at = [](std::int64_t p, std::int64_t j) { return static_cast<int>((7 * p + 2 * j) % 13) - 6; };
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      std::vector<bf16> a(m * k), b(k * n);
      std::vector<float> c(m * n, std::numeric_limits<float>::quiet_NaN());
      for (std::int64_t p = 0; p < k; ++p) {
        for (std::int64_t i = 0; i < m; ++i)
          a[transpose_a ? p * m + i : i * k + p] = bf16(static_cast<float>(a_at(i, p)));
        for (std::int64_t j = 0; j < n; ++j)
          b[transpose_b ? j * k + p : p * n + j] = bf16(static_cast<float>(b_at(p, j)));
      }
      Matmul<bf16, float> args{.a = a.data(),
                               .b = b.data(),
                               .c = c.data(),
                               .m = m,
                               .n = n,
                               .k = k,
                               .a_stride = transpose_a ? m : k,
                               .b_stride = transpose_b ? k : n,
                               .c_stride = n,
                               .transpose_a = transpose_a,
                               .transpose_b = transpose_b};
      const auto bytes = static_cast<std::size_t>(tile_matmul_workspace_bytes(Cpu{}, args));
      const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes), &std::free);
      args.workspace = workspace.get();
      multiply(Cpu{}, args);
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          int sum = 0;
          for (std::int64_t p = 0; p < k; ++p) sum += a_at(i, p) * b_at(p, j);
          if (c[i * n + j] != static_cast<float>(sum)) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace choir::kernels::cpu
#endif
