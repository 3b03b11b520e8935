// Matrix products through cuBLASLt. NVIDIA, "cuBLAS library", chapter 3.
//
// cuBLASLt thinks in columns, Choir in rows. A row-major matrix is the transpose of a column-major one with the same
// bytes, so c = op(a) op(b) is computed as c^T = op(b)^T op(a)^T: the operands change places, nothing is copied, and
// the bias is one value for each row of c^T, which is how cuBLASLt adds it.
//
// A plan is the answer of cuBLASLt's heuristics for one shape and alignment. Its algorithms add in a fixed order: the
// same plan gives the same bits.
#include "kernels/matmul.h"

#include <cublasLt.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "kernels/cuda/failure.h"
#include "kernels/elementwise.h"

namespace choir::kernels {
namespace cuda {
namespace {

/// Bytes that cuBLASLt may use beside the operands: what NVIDIA advises for Hopper and newer.
constexpr std::int64_t product_workspace_bytes = 32 << 20;

/// All that a plan depends on.
struct MatmulShape {
  std::int64_t m, n, k, a_stride, b_stride, c_stride;
  std::uint32_t a_alignment, b_alignment, c_alignment;
  bool bf16_in, bf16_out, transpose_a, transpose_b, bias, accumulate;

  bool operator==(const MatmulShape&) const = default;
};

struct MatmulShapeHash {
  std::size_t operator()(const MatmulShape& s) const {
    std::uint64_t hash = s.bf16_in | s.bf16_out << 1 | s.transpose_a << 2 | s.transpose_b << 3 | s.bias << 4 |
                         s.accumulate << 5 | s.a_alignment << 6 | s.b_alignment << 12 | s.c_alignment << 18;
    for (const std::int64_t size : {s.m, s.n, s.k, s.a_stride, s.b_stride, s.c_stride}) {
      hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

std::string text_of(const MatmulShape& s) {
  const auto operand = [](const char* name, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                          bool is_bf16) {
    return std::string(name) + " [" + std::to_string(rows) + ", " + std::to_string(columns) + "] stride " +
           std::to_string(stride) + (is_bf16 ? " bf16" : " f32");
  };
  return operand(s.transpose_a ? "transposed a" : "a", s.m, s.k, s.a_stride, s.bf16_in) + ", " +
         operand(s.transpose_b ? "transposed b" : "b", s.k, s.n, s.b_stride, s.bf16_in) + ", " +
         operand("c", s.m, s.n, s.c_stride, s.bf16_out) + (s.bias ? ", bias" : "") +
         (s.accumulate ? ", accumulate" : "");
}

void check_library(cublasStatus_t status, const char* call, const MatmulShape* shape = nullptr) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Failure(shape ? std::string(call) + " for " + text_of(*shape) : call,
                  std::string(cublasLtGetStatusString(status)) + " (" + cublasLtGetStatusName(status) + ")");
}

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

/// One call of cublasLtMatmul but for its pointers; `left` and `right` are cuBLASLt's A and B: b and a.
struct Plan {
  Operation operation;
  Layout left, right, result;
  cublasLtMatmulAlgo_t algorithm;
};

/// Row-major [rows, columns] as cuBLASLt sees it: column-major [columns, rows].
void describe(Layout& layout, bool is_bf16, std::int64_t rows, std::int64_t columns, std::int64_t stride,
              const MatmulShape& shape) {
  // A matrix of one row has no next row; cuBLASLt still wants a stride that is none too short.
  check_library(cublasLtMatrixLayoutCreate(layout.address(), is_bf16 ? CUDA_R_16BF : CUDA_R_32F,
                                           static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows),
                                           std::max(stride, columns)),
                "cublasLtMatrixLayoutCreate", &shape);
}

template <class Value>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const Value& value,
         const MatmulShape& shape) {
  check_library(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
                "cublasLtMatmulDescSetAttribute", &shape);
}

std::unique_ptr<Plan> make_plan(cublasLtHandle_t handle, const MatmulShape& s) {
  auto plan = std::make_unique<Plan>();
  check_library(cublasLtMatmulDescCreate(plan->operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F),
                "cublasLtMatmulDescCreate", &s);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, s);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, s);
  if (s.bias) set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, s);
  describe(plan->left, s.bf16_in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n, s.b_stride, s);
  describe(plan->right, s.bf16_in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k, s.a_stride, s);
  describe(plan->result, s.bf16_out, s.m, s.n, s.c_stride, s);

  Preference preference;
  check_library(cublasLtMatmulPreferenceCreate(preference.address()), "cublasLtMatmulPreferenceCreate", &s);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_library(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                  "cublasLtMatmulPreferenceSetAttribute", &s);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(product_workspace_bytes));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.b_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.a_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.c_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.c_alignment);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  check_library(cublasLtMatmulAlgoGetHeuristic(handle, plan->operation, plan->left, plan->right, plan->result,
                                               plan->result, preference, 1, &found, &count),
                "cublasLtMatmulAlgoGetHeuristic", &s);
  if (count == 0) throw Failure("cublasLtMatmulAlgoGetHeuristic", "no algorithm for " + text_of(s));
  plan->algorithm = found.algo;
  return plan;
}

/// The largest power of two that divides the address, 256 at most.
std::uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256;
  return static_cast<std::uint32_t>(bits & -bits);
}

}  // namespace

struct MatmulPlans::State {
  cublasLtHandle_t handle = nullptr;
  std::unordered_map<MatmulShape, std::unique_ptr<Plan>, MatmulShapeHash> plans{};
};

MatmulPlans::MatmulPlans() : state_(std::make_unique<State>()) {
  check_library(cublasLtCreate(&state_->handle), "cublasLtCreate");
}

MatmulPlans::~MatmulPlans() { cublasLtDestroy(state_->handle); }

namespace {

/// A bf16 product takes its bias in bf16 only: rounded, it lies behind cuBLASLt's own workspace.
template <class In, class Out>
constexpr bool rounds_bias = std::is_same_v<Out, bf16>;

}  // namespace
}  // namespace cuda

template <class In, class Out>
std::int64_t matmul_workspace_bytes(Cuda, const Matmul<In, Out>& args) {
  if (args.m == 0 || args.n == 0) return 0;
  const bool rounded = cuda::rounds_bias<In, Out> && args.bias != nullptr;
  return cuda::product_workspace_bytes + (rounded ? args.n * std::int64_t{sizeof(bf16)} : 0);
}

template <class In, class Out>
void matmul(Cuda device, const Matmul<In, Out>& args) {
  if (args.m == 0 || args.n == 0) return;
  const cuda::MatmulShape shape = {.m = args.m,
                                   .n = args.n,
                                   .k = args.k,
                                   .a_stride = args.a_stride,
                                   .b_stride = args.b_stride,
                                   .c_stride = args.c_stride,
                                   .a_alignment = cuda::alignment_of(args.a),
                                   .b_alignment = cuda::alignment_of(args.b),
                                   .c_alignment = cuda::alignment_of(args.c),
                                   .bf16_in = std::is_same_v<In, bf16>,
                                   .bf16_out = std::is_same_v<Out, bf16>,
                                   .transpose_a = args.transpose_a,
                                   .transpose_b = args.transpose_b,
                                   .bias = args.bias != nullptr,
                                   .accumulate = args.accumulate};
  cuda::MatmulPlans::State& plans = device.matmul_plans->state();
  std::unique_ptr<cuda::Plan>& plan = plans.plans[shape];
  if (!plan) plan = cuda::make_plan(plans.handle, shape);

  if (args.bias != nullptr) {
    const void* bias = args.bias;
    if constexpr (cuda::rounds_bias<In, Out>) {
      auto* rounded = reinterpret_cast<bf16*>(static_cast<char*>(args.workspace) + cuda::product_workspace_bytes);
      cast(device, args.bias, rounded, args.n);
      bias = rounded;
    }
    cuda::set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, shape);
  }
  const float one = 1, of_result = args.accumulate ? 1 : 0;
  cuda::check_library(
      cublasLtMatmul(plans.handle, plan->operation, &one, args.b, plan->left, args.a, plan->right, &of_result, args.c,
                     plan->result, args.c, plan->result, &plan->algorithm, args.workspace,
                     static_cast<std::size_t>(cuda::product_workspace_bytes), device.stream),
      "cublasLtMatmul", &shape);
}

template std::int64_t matmul_workspace_bytes<float, float>(Cuda, const Matmul<float, float>&);
template std::int64_t matmul_workspace_bytes<bf16, bf16>(Cuda, const Matmul<bf16, bf16>&);
template std::int64_t matmul_workspace_bytes<bf16, float>(Cuda, const Matmul<bf16, float>&);
template void matmul<float, float>(Cuda, const Matmul<float, float>&);
template void matmul<bf16, bf16>(Cuda, const Matmul<bf16, bf16>&);
template void matmul<bf16, float>(Cuda, const Matmul<bf16, float>&);

}  // namespace choir::kernels
