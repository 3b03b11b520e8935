// What cuBLASLt is asked for: shapes of products, the plan of each, and the algorithms chosen. For matmul.cpp, which
// computes products, and matmul_choices.cpp.
//
// cuBLASLt matrices are column-major, Choir's row-major. A row-major matrix is the transpose of a column-major one with
// the same bytes, so c = op(a) op(b) is computed as c^T = op(b)^T op(a)^T: the operands change places, nothing is
// copied, and the bias is one value for each row of c^T, which is how cuBLASLt adds it.
//
// A plan is the answer of cuBLASLt's heuristics for one shape and alignment, which can be a refusal. The algorithms add
// in a fixed order: the same plan gives the same bits.
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"

namespace choir::kernels::cuda {

/// Bytes of workspace that cuBLASLt may use: what NVIDIA recommends for Hopper and newer.
inline constexpr std::int64_t product_workspace_bytes = 32 << 20;

/// The alignment of the operands of a product with an epilogue, in bytes: what the documentation requires of AUX, and
/// enough for the widest access. So one plan serves matmul_fuses(), which does not know the addresses, and matmul().
inline constexpr std::uint32_t epilogue_alignment = 16;

/// Everything that a plan depends on.
struct MatmulShape {
  std::int64_t m, n, k, a_stride, b_stride, c_stride, before_stride;
  std::int64_t batch, a_batch_stride, b_batch_stride, c_batch_stride;
  std::uint32_t a_alignment, b_alignment, c_alignment;
  bool bf16_in, bf16_out, transpose_a, transpose_b, bias, accumulate;
  Epilogue epilogue;
  bool codes = false;  ///< a and b are codes of e4m3 with a scale for each row

  bool operator==(const MatmulShape&) const = default;
};

struct MatmulShapeHash {
  std::size_t operator()(const MatmulShape&) const;
};

/// For messages.
std::string text_of(const MatmulShape&);

/// Throws Failure, with the product if there is one, unless the call has succeeded.
void check_library(cublasStatus_t status, const char* call, const MatmulShape* shape = nullptr);

/// One of cuBLASLt's descriptors.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
class Descriptor {
 public:
  Descriptor() = default;
  ~Descriptor() {
    if (handle_) destroy(handle_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  Handle* address() { return &handle_; }
  operator Handle() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Operation = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

/// One call of cublasLtMatmul without its pointers; `left` and `right` are cuBLASLt's A and B: b and a. `answer` is the
/// status of the heuristics, which may find no algorithm.
struct Plan {
  Operation operation;
  Layout left, right, result;
  cublasStatus_t answer;
  cublasLtMatmulAlgo_t algorithm;
};

template <class Value>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const Value& value,
         const MatmulShape& shape) {
  check_library(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
                "cublasLtMatmulDescSetAttribute", &shape);
}

struct MatmulPlans::State {
  cublasLtHandle_t handle = nullptr;
  std::unordered_map<MatmulShape, std::unique_ptr<Plan>, MatmulShapeHash> plans{};
  std::unordered_map<MatmulShape, std::string, MatmulShapeHash> choices{};  // of as_chosen(shape)
};

/// Without an algorithm.
std::unique_ptr<Plan> describe_product(const MatmulShape&);

/// At most `most` algorithms, best first. `reductions`: the schemes of cublasLtReductionScheme_t that they may use.
cublasStatus_t ask_heuristics(cublasLtHandle_t, const MatmulShape&, const Plan&, std::uint32_t reductions, int most,
                              cublasLtMatmulHeuristicResult_t* found, int& count);

/// The plan that computes the product with this algorithm. Throws Failure if cuBLASLt refuses it.
std::unique_ptr<Plan> plan_with(cublasLtHandle_t, const MatmulShape&, const std::string& algorithm);
/// The opaque bytes of an algorithm as text.
std::string to_digits(const cublasLtMatmulAlgo_t&);

/// Makes the plan at the first call, with the algorithm chosen for the shape, or else the one that the heuristics rank
/// first.
Plan& find_plan(MatmulPlans::State&, const MatmulShape&);

/// Alignments above the widest access make no difference: one choice for all of them.
MatmulShape as_chosen(MatmulShape);

/// What the documentation requires of an epilogue, and the contract of kernels/matmul.h.
bool within_rules(const MatmulShape&);

template <class In, class Out>
void multiply(Cuda device, cublasLtHandle_t handle, const Plan& plan, const MatmulShape& shape,
              const Matmul<In, Out>& args) {
  if (args.bias != nullptr)
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(args.bias), shape);
  if (args.before_stride > 0) set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, args.before, shape);
  // [m] behind cuBLASLt's own workspace: cuBLASLt overwrites, Choir accumulates.
  auto* const bias_sums = reinterpret_cast<float*>(static_cast<char*>(args.workspace) + product_workspace_bytes);
  if (args.epilogue == Epilogue::bias_gradient)
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_sums, shape);
  const float one = 1, of_result = args.accumulate ? 1 : 0;
  check_library(cublasLtMatmul(handle, plan.operation, &one, args.b, plan.left, args.a, plan.right, &of_result, args.c,
                               plan.result, args.c, plan.result, &plan.algorithm, args.workspace,
                               static_cast<std::size_t>(product_workspace_bytes), device.stream),
                "cublasLtMatmul", &shape);
  if (args.epilogue == Epilogue::bias_gradient)
    accumulate<float>(device, {bias_sums, args.bias_gradient, 1, args.m, args.m, args.m});
}

}  // namespace choir::kernels::cuda
