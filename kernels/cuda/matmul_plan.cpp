#include "kernels/cuda/matmul_plan.h"

#include <cstdio>

#include "kernels/cuda/failure.h"
#include "kernels/matmul_choices.h"

namespace choir::kernels::cuda {

std::size_t MatmulShapeHash::operator()(const MatmulShape& s) const {
  std::uint64_t hash = s.bf16_in | s.bf16_out << 1 | s.transpose_a << 2 | s.transpose_b << 3 | s.bias << 4 |
                       s.accumulate << 5 | s.a_alignment << 6 | s.b_alignment << 12 | s.c_alignment << 18 |
                       static_cast<std::uint64_t>(s.epilogue) << 32 | std::uint64_t{s.codes} << 40;
  for (const std::int64_t size : {s.m, s.n, s.k, s.a_stride, s.b_stride, s.c_stride, s.before_stride, s.batch,
                                  s.a_batch_stride, s.b_batch_stride, s.c_batch_stride}) {
    hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return hash;
}

static const char* text_of(Epilogue epilogue) {
  constexpr const char* texts[] = {"", ", gelu", ", gradient of gelu", ", gradient of the bias"};
  return texts[static_cast<int>(epilogue)];
}

std::string text_of(const MatmulShape& s) {
  const auto operand = [](const char* name, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                          const char* type) {
    return std::string(name) + " [" + std::to_string(rows) + ", " + std::to_string(columns) + "] stride " +
           std::to_string(stride) + type;
  };
  const char* in = s.codes ? " e4m3" : s.bf16_in ? " bf16" : " f32";
  return operand(s.transpose_a ? "transposed a" : "a", s.m, s.k, s.a_stride, in) + ", " +
         operand(s.transpose_b ? "transposed b" : "b", s.k, s.n, s.b_stride, in) + ", " +
         operand("c", s.m, s.n, s.c_stride, s.bf16_out ? " bf16" : " f32") + (s.bias ? ", bias" : "") +
         (s.accumulate ? ", accumulate" : "") + text_of(s.epilogue) +
         (s.batch != 1 ? ", " + std::to_string(s.batch) + " at once" : "") +
         (s.before_stride > 0 ? ", before stride " + std::to_string(s.before_stride) : "");
}

void check_library(cublasStatus_t status, const char* call, const MatmulShape* shape) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Failure(shape ? std::string(call) + " for " + text_of(*shape) : call,
                  std::string(cublasLtGetStatusString(status)) + " (" + cublasLtGetStatusName(status) + ")");
}

MatmulPlans::MatmulPlans() : state_(std::make_unique<State>()) {
  check_library(cublasLtCreate(&state_->handle), "cublasLtCreate");
}

MatmulPlans::~MatmulPlans() { cublasLtDestroy(state_->handle); }

/// Row-major [rows, columns] as cuBLASLt sees it: column-major [columns, rows].
static void describe(Layout& layout, cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                     std::int64_t batch_stride, const MatmulShape& shape) {
  // A matrix of one row has no next row; cuBLASLt still requires a stride that is not too short.
  check_library(cublasLtMatrixLayoutCreate(layout.address(), type, static_cast<std::uint64_t>(columns),
                                           static_cast<std::uint64_t>(rows), std::max(stride, columns)),
                "cublasLtMatrixLayoutCreate", &shape);
  if (shape.batch == 1) return;
  const auto set = [&](cublasLtMatrixLayoutAttribute_t attribute, const auto& value) {
    check_library(cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof value),
                  "cublasLtMatrixLayoutSetAttribute", &shape);
  };
  set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(shape.batch));
  set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride);
}

static cublasLtEpilogue_t library_epilogue(const MatmulShape& s) {
  switch (s.epilogue) {
    case Epilogue::none:
      break;
    case Epilogue::gelu:
      return s.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::gelu_gradient:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::bias_gradient:
      return CUBLASLT_EPILOGUE_BGRADB;
  }
  return s.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

/// A plan without its algorithm.

std::unique_ptr<Plan> describe_product(const MatmulShape& s) {
  auto plan = std::make_unique<Plan>();
  check_library(cublasLtMatmulDescCreate(plan->operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F),
                "cublasLtMatmulDescCreate", &s);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, s);
  set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, s);
  set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, library_epilogue(s), s);
  // The heuristics read the alignment of the epilogue's operands from their addresses: a placeholder for each.
  const auto* stand_in = reinterpret_cast<const void*>(std::uintptr_t{epilogue_alignment});
  if (s.bias || s.epilogue == Epilogue::bias_gradient)
    set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, stand_in, s);
  if (s.before_stride > 0) {  // AUX is row-major like c: the columns of c^T
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, stand_in, s);
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, s.before_stride, s);
  }
  if (s.codes) {
    for (const auto mode : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE})
      set(plan->operation, mode, std::int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F}, s);
    for (const auto scales : {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER})
      set(plan->operation, scales, stand_in, s);
    set(plan->operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{0}, s);
  }
  const cudaDataType_t in = s.codes ? CUDA_R_8F_E4M3 : s.bf16_in ? CUDA_R_16BF : CUDA_R_32F;
  describe(plan->left, in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n, s.b_stride, s.b_batch_stride, s);
  describe(plan->right, in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k, s.a_stride, s.a_batch_stride, s);
  describe(plan->result, s.bf16_out ? CUDA_R_16BF : CUDA_R_32F, s.m, s.n, s.c_stride, s.c_batch_stride, s);
  return plan;
}

cublasStatus_t ask_heuristics(cublasLtHandle_t handle, const MatmulShape& s, const Plan& plan, std::uint32_t reductions,
                              int most, cublasLtMatmulHeuristicResult_t* found, int& count) {
  Preference preference;
  check_library(cublasLtMatmulPreferenceCreate(preference.address()), "cublasLtMatmulPreferenceCreate", &s);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_library(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                  "cublasLtMatmulPreferenceSetAttribute", &s);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(product_workspace_bytes));
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.b_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.a_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.c_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.c_alignment);
  return cublasLtMatmulAlgoGetHeuristic(handle, plan.operation, plan.left, plan.right, plan.result, plan.result,
                                        preference, most, found, &count);
}

static std::unique_ptr<Plan> make_plan(cublasLtHandle_t handle, const MatmulShape& s) {
  auto plan = describe_product(s);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  plan->answer = ask_heuristics(handle, s, *plan, CUBLASLT_REDUCTION_SCHEME_MASK, 1, &found, count);
  if (plan->answer == CUBLAS_STATUS_SUCCESS) plan->answer = count > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED;
  plan->algorithm = found.algo;
  return plan;
}

MatmulShape as_chosen(MatmulShape s) {
  for (std::uint32_t* alignment : {&s.a_alignment, &s.b_alignment, &s.c_alignment})
    *alignment = std::min(*alignment, epilogue_alignment);
  return s;
}

constexpr int digits_of_byte = 2;

std::string to_digits(const cublasLtMatmulAlgo_t& algorithm) {
  std::string digits;
  for (std::size_t i = 0; i < sizeof algorithm; ++i) {
    char pair[digits_of_byte + 1];
    std::snprintf(pair, sizeof pair, "%02x", reinterpret_cast<const unsigned char*>(&algorithm)[i]);
    digits += pair;
  }
  return digits;
}

std::unique_ptr<Plan> plan_with(cublasLtHandle_t handle, const MatmulShape& s, const std::string& algorithm) {
  auto plan = describe_product(s);
  cublasLtMatmulAlgo_t& bytes = plan->algorithm;
  if (algorithm.size() != digits_of_byte * sizeof bytes ||
      algorithm.find_first_not_of("0123456789abcdef") != std::string::npos)
    throw Failure("an algorithm for " + text_of(s), "'" + algorithm + "' is not the description of one");
  for (std::size_t i = 0; i < sizeof bytes; ++i)
    reinterpret_cast<unsigned char*>(&bytes)[i] =
        static_cast<unsigned char>(std::stoi(algorithm.substr(digits_of_byte * i, digits_of_byte), nullptr, 16));
  cublasLtMatmulHeuristicResult_t result{};
  check_library(cublasLtMatmulAlgoCheck(handle, plan->operation, plan->left, plan->right, plan->result, plan->result,
                                        &bytes, &result),
                "cublasLtMatmulAlgoCheck", &s);
  if (result.workspaceSize > static_cast<std::size_t>(product_workspace_bytes))
    throw Failure("cublasLtMatmulAlgoCheck for " + text_of(s),
                  "the algorithm needs " + std::to_string(result.workspaceSize) + " bytes of workspace");
  plan->answer = CUBLAS_STATUS_SUCCESS;
  return plan;
}

Plan& find_plan(MatmulPlans::State& plans, const MatmulShape& shape) {
  std::unique_ptr<Plan>& plan = plans.plans[shape];
  if (plan) return *plan;
  const auto chosen = plans.choices.find(as_chosen(shape));
  if (chosen == plans.choices.end()) {
    plan = make_plan(plans.handle, shape);
  } else if (chosen->second == bias_gradient_apart) {
    plan = describe_product(shape);
    plan->answer = CUBLAS_STATUS_NOT_SUPPORTED;
  } else {
    plan = plan_with(plans.handle, shape, chosen->second);
  }
  return *plan;
}

bool within_rules(const MatmulShape& s) {
  if (s.batch != 1 && (s.epilogue != Epilogue::none || s.bias)) return false;
  switch (s.epilogue) {
    case Epilogue::none:
      return s.before_stride == 0;
    case Epilogue::gelu:
    case Epilogue::gelu_gradient:
      // Of AUX_LD: "must be divisible by 8 and be no less than the number of rows in the output matrix", our columns.
      return s.before_stride % 8 == 0 && s.before_stride >= s.n && !s.accumulate &&
             !(s.bias && s.epilogue == Epilogue::gelu_gradient);
    case Epilogue::bias_gradient:
      return s.before_stride == 0 && !s.bf16_out && !s.bias;
  }
  return false;
}

}  // namespace choir::kernels::cuda
