// Matrix products through cuBLASLt. NVIDIA, "cuBLAS library", chapter 3.
//
// Epilogues by cuBLASLt's names: GELU_AUX(_BIAS), DGELU and BGRADB, since a is cuBLASLt's B. BGRADB with the weight
// gradient gives the bias gradient in the type of that product's D, f32. DGELU_BGRAD would give it earlier, with the
// input gradient, but in bf16 if D is bf16: gradients are f32 in Choir.
//
// Products of 8 bits (kernels/fp8.h): the documentation asks for A transposed and B not, which are a row-major b^T and
// a; for addresses, leading dimensions and k at multiples of 16; and, with a vector of scales for each factor, for
// compute capability 9.0. Sums are promoted to f32 as often as the library can: FAST_ACCUM stays off.
#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/fp8.h"

namespace choir::kernels {
namespace cuda {
namespace {

/// The largest power of two that divides the address, 256 at most.
std::uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256;
  return static_cast<std::uint32_t>(bits & -bits);
}

template <class In, class Out>
MatmulShape shape_of(const Matmul<In, Out>& args) {
  const auto alignment = [&]<class T>(const T* address, std::int64_t batch_stride) {
    if (args.epilogue != Epilogue::none) return epilogue_alignment;
    return args.batch == 1 ? alignment_of(address)
                           : std::min(alignment_of(address), alignment_of(address + batch_stride));
  };
  return {.m = args.m,
          .n = args.n,
          .k = args.k,
          .a_stride = args.a_stride,
          .b_stride = args.b_stride,
          .c_stride = args.c_stride,
          .before_stride = args.before_stride,
          .batch = args.batch,
          .a_batch_stride = args.a_batch_stride,
          .b_batch_stride = args.b_batch_stride,
          .c_batch_stride = args.c_batch_stride,
          .a_alignment = alignment(args.a, args.a_batch_stride),
          .b_alignment = alignment(args.b, args.b_batch_stride),
          .c_alignment = alignment(args.c, args.c_batch_stride),
          .bf16_in = std::is_same_v<In, bf16>,
          .bf16_out = std::is_same_v<Out, bf16>,
          .transpose_a = args.transpose_a,
          .transpose_b = args.transpose_b,
          .bias = args.bias != nullptr,
          .accumulate = args.accumulate,
          .epilogue = args.epilogue};
}

MatmulShape shape_of(const ScaledMatmul& args) {
  return {.m = args.m,
          .n = args.n,
          .k = args.k,
          .a_stride = args.k,
          .b_stride = args.k,
          .c_stride = args.n,
          .before_stride = 0,
          .batch = 1,
          .a_alignment = epilogue_alignment,
          .b_alignment = epilogue_alignment,
          .c_alignment = epilogue_alignment,
          .bf16_in = false,
          .bf16_out = true,
          .transpose_a = false,
          .transpose_b = true,
          .bias = args.bias != nullptr,
          .accumulate = false,
          .epilogue = Epilogue::none,
          .codes = true};
}

}  // namespace
}  // namespace cuda

template <class In, class Out>
std::int64_t matmul_workspace_bytes(Cuda, const Matmul<In, Out>& args) {
  if (args.m == 0 || args.n == 0) return 0;
  const bool sums = args.epilogue == Epilogue::bias_gradient;
  return cuda::product_workspace_bytes + (sums ? args.m * std::int64_t{sizeof(float)} : 0);
}

template <class In, class Out>
bool matmul_fuses(Cuda device, const Matmul<In, Out>& args) {
  if (args.epilogue == Epilogue::none) return true;
  const cuda::MatmulShape shape = cuda::shape_of(args);
  if (!cuda::within_rules(shape) || args.m == 0 || args.n == 0 || args.k == 0) return false;
  if (device.matmul_plans == nullptr) return true;  // device `count` without a GPU: what the documentation promises
  return cuda::find_plan(device.matmul_plans->state(), shape).answer == CUBLAS_STATUS_SUCCESS;
}

template <class In, class Out>
void matmul(Cuda device, const Matmul<In, Out>& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const cuda::MatmulShape shape = cuda::shape_of(args);
  if (!cuda::within_rules(shape))
    throw cuda::Failure("cublasLtMatmul for " + cuda::text_of(shape),
                        "the epilogue is not supported for this shape; call matmul_fuses() first");
  if (args.epilogue != Epilogue::none)
    for (const void* operand : {static_cast<const void*>(args.a), static_cast<const void*>(args.b),
                                static_cast<const void*>(args.c), static_cast<const void*>(args.before)})
      if (reinterpret_cast<std::uintptr_t>(operand) % cuda::epilogue_alignment != 0)
        throw cuda::Failure("cublasLtMatmul for " + cuda::text_of(shape),
                            "a product with an epilogue needs its operands at multiples of 16 bytes");
  cuda::MatmulPlans::State& plans = device.matmul_plans->state();
  const cuda::Plan& plan = cuda::find_plan(plans, shape);
  cuda::check_library(plan.answer, "cublasLtMatmulAlgoGetHeuristic", &shape);
  cuda::multiply(device, plans.handle, plan, shape, args);
}

std::int64_t scaled_matmul_workspace_bytes(Cuda, const ScaledMatmul& args) {
  if (args.m == 0 || args.n == 0) return 0;
  const std::int64_t numbers = cuda::multiplies_codes(args) ? 0 : (args.m + args.n) * args.k;
  return cuda::product_workspace_bytes + numbers * std::int64_t{sizeof(bf16)};
}

void scaled_matmul(Cuda device, const ScaledMatmul& args) {
  if (args.m == 0 || args.n == 0) return;
  if (!cuda::multiplies_codes(args)) {
    auto* const a = reinterpret_cast<bf16*>(static_cast<char*>(args.workspace) + cuda::product_workspace_bytes);
    bf16* const b = a + args.m * args.k;  // k is a multiple of 16: b is aligned as a
    Matmul<bf16, bf16> product = widened(args, a, b);
    cuda::dequantise(device, args.a, args.a_scales, a, args.m, args.k);
    cuda::dequantise(device, args.b, args.b_scales, b, args.n, args.k);
    product.workspace = args.workspace;
    matmul(device, product);
    return;
  }
  const cuda::MatmulShape shape = cuda::shape_of(args);
  cuda::MatmulPlans::State& plans = device.matmul_plans->state();
  const cuda::Plan& plan = cuda::find_plan(plans, shape);
  cuda::check_library(plan.answer, "cublasLtMatmulAlgoGetHeuristic", &shape);
  const auto set_address = [&](cublasLtMatmulDescAttributes_t attribute, const void* address) {
    cuda::set(plan.operation, attribute, address, shape);
  };
  if (args.bias != nullptr) set_address(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
  set_address(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, args.b_scales);
  set_address(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, args.a_scales);
  const float one = 1, zero = 0;
  cuda::check_library(cublasLtMatmul(plans.handle, plan.operation, &one, args.b, plan.left, args.a, plan.right, &zero,
                                     args.c, plan.result, args.c, plan.result, &plan.algorithm, args.workspace,
                                     static_cast<std::size_t>(cuda::product_workspace_bytes), device.stream),
                      "cublasLtMatmul", &shape);
}

template std::int64_t matmul_workspace_bytes<float, float>(Cuda, const Matmul<float, float>&);
template std::int64_t matmul_workspace_bytes<bf16, bf16>(Cuda, const Matmul<bf16, bf16>&);
template std::int64_t matmul_workspace_bytes<bf16, float>(Cuda, const Matmul<bf16, float>&);
template bool matmul_fuses<float, float>(Cuda, const Matmul<float, float>&);
template bool matmul_fuses<bf16, bf16>(Cuda, const Matmul<bf16, bf16>&);
template bool matmul_fuses<bf16, float>(Cuda, const Matmul<bf16, float>&);
template void matmul<float, float>(Cuda, const Matmul<float, float>&);
template void matmul<bf16, bf16>(Cuda, const Matmul<bf16, bf16>&);
template void matmul<bf16, float>(Cuda, const Matmul<bf16, float>&);

}  // namespace choir::kernels
