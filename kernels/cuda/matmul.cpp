// Matrix products through cuBLASLt. NVIDIA, "cuBLAS library", chapter 3.
//
// cuBLASLt matrices are column-major, Choir's row-major. A row-major matrix is the transpose of a column-major one with
// the same bytes, so c = op(a) op(b) is computed as c^T = op(b)^T op(a)^T: the operands change places, nothing is
// copied, and the bias is one value for each row of c^T, which is how cuBLASLt adds it.
//
// A plan is the answer of cuBLASLt's heuristics for one shape and alignment, which can be a refusal. The algorithms add
// in a fixed order: the same plan gives the same bits.
//
// Epilogues by cuBLASLt's names: GELU_AUX(_BIAS), DGELU and BGRADB, since a is cuBLASLt's B. BGRADB with the weight
// gradient gives the bias gradient in the type of that product's D, f32. DGELU_BGRAD would give it earlier, with the
// input gradient, but in bf16 if D is bf16: gradients are f32 in Choir.
//
// Products of 8 bits (kernels/fp8.h): the documentation asks for A transposed and B not, which are a row-major b^T and
// a; for addresses, leading dimensions and k at multiples of 16; and, with a vector of scales for each factor, for
// compute capability 9.0. Sums are promoted to f32 as often as the library can: FAST_ACCUM stays off.
#include "kernels/matmul.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "kernels/cuda/failure.h"
#include "kernels/elementwise.h"
#include "kernels/fp8.h"
#include "kernels/matmul_choices.h"
#include "kernels/reduce.h"

namespace choir::kernels {
namespace cuda {
namespace {

/// Bytes of workspace that cuBLASLt may use: what NVIDIA recommends for Hopper and newer.
constexpr std::int64_t product_workspace_bytes = 32 << 20;

/// The alignment of the operands of a product with an epilogue, in bytes: what the documentation requires of AUX, and
/// enough for the widest access. So one plan serves matmul_fuses(), which does not know the addresses, and matmul().
constexpr std::uint32_t epilogue_alignment = 16;

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
  std::size_t operator()(const MatmulShape& s) const {
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
};

const char* text_of(Epilogue epilogue) {
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

/// One call of cublasLtMatmul without its pointers; `left` and `right` are cuBLASLt's A and B: b and a. `answer` is the
/// status of the heuristics, which may find no algorithm.
struct Plan {
  Operation operation;
  Layout left, right, result;
  cublasStatus_t answer;
  cublasLtMatmulAlgo_t algorithm;
};

/// Row-major [rows, columns] as cuBLASLt sees it: column-major [columns, rows].
void describe(Layout& layout, cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
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

template <class Value>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const Value& value,
         const MatmulShape& shape) {
  check_library(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
                "cublasLtMatmulDescSetAttribute", &shape);
}

cublasLtEpilogue_t library_epilogue(const MatmulShape& s) {
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

/// At most `most` algorithms, best first. `reductions`: the schemes of cublasLtReductionScheme_t that they may use.
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

std::unique_ptr<Plan> make_plan(cublasLtHandle_t handle, const MatmulShape& s) {
  auto plan = describe_product(s);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  plan->answer = ask_heuristics(handle, s, *plan, CUBLASLT_REDUCTION_SCHEME_MASK, 1, &found, count);
  if (plan->answer == CUBLAS_STATUS_SUCCESS) plan->answer = count > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED;
  plan->algorithm = found.algo;
  return plan;
}

/// Alignments above the widest access make no difference: one choice for all of them.
MatmulShape as_chosen(MatmulShape s) {
  for (std::uint32_t* alignment : {&s.a_alignment, &s.b_alignment, &s.c_alignment})
    *alignment = std::min(*alignment, epilogue_alignment);
  return s;
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
  std::unordered_map<MatmulShape, std::string, MatmulShapeHash> choices{};  // of as_chosen(shape)
};

MatmulPlans::MatmulPlans() : state_(std::make_unique<State>()) {
  check_library(cublasLtCreate(&state_->handle), "cublasLtCreate");
}

MatmulPlans::~MatmulPlans() { cublasLtDestroy(state_->handle); }

namespace {

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

/// The plan that computes the product with this algorithm. Throws Failure if cuBLASLt refuses it.
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

/// What the documentation requires of an epilogue, and the contract of kernels/matmul.h.
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

/// The product of what the codes stand for, a before b at `factors`: m k and n k are multiples of 16.
Matmul<bf16, bf16> widened(const ScaledMatmul& args, bf16* factors) {
  return {.a = factors,
          .b = factors + args.m * args.k,
          .c = args.c,
          .bias = args.bias,
          .m = args.m,
          .n = args.n,
          .k = args.k,
          .a_stride = args.k,
          .b_stride = args.k,
          .c_stride = args.n,
          .transpose_b = true};
}

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

// --- kernels/matmul_choices.h

constexpr int most_algorithms = 8;
constexpr std::uint32_t deterministic = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // and those that split nothing

std::string name_of(const MatmulShape& s) {
  std::ostringstream line;
  line << s.m << ' ' << s.n << ' ' << s.k << ' ' << s.a_stride << ' ' << s.b_stride << ' ' << s.c_stride << ' '
       << s.before_stride << ' ' << s.batch << ' ' << s.a_batch_stride << ' ' << s.b_batch_stride << ' '
       << s.c_batch_stride << ' ' << s.a_alignment << ' ' << s.b_alignment << ' ' << s.c_alignment << ' ' << s.bf16_in
       << ' ' << s.bf16_out << ' ' << s.transpose_a << ' ' << s.transpose_b << ' ' << s.bias << ' ' << s.accumulate
       << ' ' << static_cast<int>(s.epilogue);
  return line.str();
}

MatmulShape shape_of_name(const std::string& name) {
  MatmulShape s{};
  int epilogue = 0;
  std::istringstream line(name);
  line >> s.m >> s.n >> s.k >> s.a_stride >> s.b_stride >> s.c_stride >> s.before_stride >> s.batch >>
      s.a_batch_stride >> s.b_batch_stride >> s.c_batch_stride >> s.a_alignment >> s.b_alignment >> s.c_alignment >>
      s.bf16_in >> s.bf16_out >> s.transpose_a >> s.transpose_b >> s.bias >> s.accumulate >> epilogue;
  s.epilogue = static_cast<Epilogue>(epilogue);
  if (!line || epilogue < 0 || epilogue > static_cast<int>(Epilogue::bias_gradient) || !within_rules(s))
    throw Failure("a choice of algorithms", "'" + name + "' is not a product");
  return s;
}

/// Where the operands of a product lie in scratch memory.
struct Places {
  std::int64_t a, b, c, bias, before, bias_gradient, workspace, end;
};

Places places_of(const MatmulShape& s) {
  constexpr std::int64_t alignment = 256;
  std::int64_t end = 0;
  const auto place = [&](std::int64_t elements, std::int64_t bytes) {
    const std::int64_t begin = end;
    end += (elements * bytes + alignment - 1) / alignment * alignment;
    return begin;
  };
  const std::int64_t in = s.bf16_in ? 2 : 4, out = s.bf16_out ? 2 : 4, others = s.batch - 1;
  Places at{};
  at.a = place((s.transpose_a ? s.k : s.m) * s.a_stride + others * s.a_batch_stride, in);
  at.b = place((s.transpose_b ? s.n : s.k) * s.b_stride + others * s.b_batch_stride, in);
  at.c = place(s.m * s.c_stride + others * s.c_batch_stride, out);
  at.bias = place(s.n, out);
  at.before = place(s.m * s.before_stride, out);
  at.bias_gradient = place(s.m, sizeof(float));
  const std::int64_t of_sums = s.bf16_in ? column_sum_workspace_bytes<bf16>(Cuda{}, s.k, s.m)
                                         : column_sum_workspace_bytes<float>(Cuda{}, s.k, s.m);
  at.workspace = place(std::max(product_workspace_bytes + s.m * std::int64_t{sizeof(float)}, of_sums), 1);
  at.end = end;
  return at;
}

template <class In, class Out>
Matmul<In, Out> on_scratch(const MatmulShape& s, void* scratch) {
  const Places at = places_of(s);
  char* const begin = static_cast<char*>(scratch);
  const auto out = [&](std::int64_t place) { return reinterpret_cast<Out*>(begin + place); };
  const bool sums = s.epilogue == Epilogue::bias_gradient;
  return {.a = reinterpret_cast<const In*>(begin + at.a),
          .b = reinterpret_cast<const In*>(begin + at.b),
          .c = out(at.c),
          .bias = s.bias ? out(at.bias) : nullptr,
          .m = s.m,
          .n = s.n,
          .k = s.k,
          .a_stride = s.a_stride,
          .b_stride = s.b_stride,
          .c_stride = s.c_stride,
          .transpose_a = s.transpose_a,
          .transpose_b = s.transpose_b,
          .accumulate = s.accumulate,
          .epilogue = s.epilogue,
          .before = s.before_stride > 0 ? out(at.before) : nullptr,
          .before_stride = s.before_stride,
          .bias_gradient = sums ? reinterpret_cast<float*>(begin + at.bias_gradient) : nullptr,
          .batch = s.batch,
          .a_batch_stride = s.a_batch_stride,
          .b_batch_stride = s.b_batch_stride,
          .c_batch_stride = s.c_batch_stride,
          .workspace = begin + at.workspace};
}

/// body.operator()<In, Out>() with the types of the product.
template <class Body>
void with_types(const MatmulShape& s, Body&& body) {
  if (!s.bf16_in) return body.template operator()<float, float>();
  s.bf16_out ? body.template operator()<bf16, bf16>() : body.template operator()<bf16, float>();
}

}  // namespace

std::string matmul_library() { return "cuBLASLt " + std::to_string(cublasLtGetVersion()); }

std::vector<std::string> planned_products(MatmulPlans& plans) {
  std::set<std::string> names;
  for (const auto& [shape, plan] : plans.state().plans)
    if (plan->answer == CUBLAS_STATUS_SUCCESS && !shape.codes) names.insert(name_of(as_chosen(shape)));
  return {names.begin(), names.end()};
}

std::string without_bias_gradient(const std::string& product) {
  MatmulShape s = shape_of_name(product);
  if (s.epilogue != Epilogue::bias_gradient) return "";
  s.epilogue = Epilogue::none;
  return name_of(s);
}

std::vector<std::string> first_algorithms(MatmulPlans& plans, const std::string& product) {
  const MatmulShape s = shape_of_name(product);
  const auto plan = describe_product(s);
  std::array<cublasLtMatmulHeuristicResult_t, most_algorithms> found{};
  int count = 0;
  if (ask_heuristics(plans.state().handle, s, *plan, deterministic, most_algorithms, found.data(), count) !=
      CUBLAS_STATUS_SUCCESS)
    return {};
  std::vector<std::string> algorithms;
  for (const cublasLtMatmulHeuristicResult_t& result : std::span(found).first(static_cast<std::size_t>(count))) {
    std::uint32_t reduction = 0;
    std::size_t written = 0;
    check_library(cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                       sizeof reduction, &written),
                  "cublasLtMatmulAlgoConfigGetAttribute", &s);
    if (result.state == CUBLAS_STATUS_SUCCESS && (reduction & ~deterministic) == 0)
      algorithms.push_back(to_digits(result.algo));
  }
  return algorithms;
}

std::int64_t scratch_bytes(const std::string& product) { return places_of(shape_of_name(product)).end; }

std::function<void()> product_on_scratch(Cuda device, const std::string& product, const std::string& algorithm,
                                         void* scratch) {
  const MatmulShape s = shape_of_name(product);
  const cublasLtHandle_t handle = device.matmul_plans->state().handle;
  const std::shared_ptr<const Plan> plan = plan_with(handle, s, algorithm);
  return [=] {
    with_types(s, [&]<class In, class Out>() { multiply(device, handle, *plan, s, on_scratch<In, Out>(s, scratch)); });
  };
}

std::function<void()> bias_gradient_on_scratch(Cuda device, const std::string& product, void* scratch) {
  const MatmulShape s = shape_of_name(product);
  return [=] {
    with_types(s, [&]<class In, class Out>() {
      const Matmul<In, Out> args = on_scratch<In, Out>(s, scratch);
      column_sum(device, ColumnSum<In>{.x = args.a,
                                       .sum = args.bias_gradient,
                                       .rows = s.k,
                                       .width = s.m,
                                       .stride = s.a_stride,
                                       .workspace = args.workspace});
    });
  };
}

void choose_algorithm(MatmulPlans& plans, const std::string& product, const std::string& algorithm) {
  const MatmulShape s = shape_of_name(product);
  const bool apart = algorithm == bias_gradient_apart && s.epilogue == Epilogue::bias_gradient;
  if (!apart) plan_with(plans.state().handle, s, algorithm);
  plans.state().choices[s] = algorithm;
  std::erase_if(plans.state().plans, [&](const auto& entry) { return as_chosen(entry.first) == s; });
}

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
    auto* const factors = reinterpret_cast<bf16*>(static_cast<char*>(args.workspace) + cuda::product_workspace_bytes);
    Matmul<bf16, bf16> product = cuda::widened(args, factors);
    cuda::dequantise(device, args.a, args.a_scales, factors, args.m, args.k);
    cuda::dequantise(device, args.b, args.b_scales, factors + args.m * args.k, args.n, args.k);
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
