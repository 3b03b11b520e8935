// cuBLASLt's functions, computed by a plain loop on the simulated GPU; declared by the real header.
//
// What the documentation forbids is refused here too: factors whose sizes differ, a leading dimension below the rows, a
// bias of a type that the product does not support, an auxiliary matrix that is missing, has a leading dimension not
// divisible by 8 or is given with an epilogue without one, an address less aligned than promised, a workspace smaller
// than stated; of products of e4m3 anything but A transposed and B not, a vector of scales for each, sizes at multiples
// of 16, a result in bf16, exact sums and compute capability 9.0. What is allowed but wrong (the leading dimension of
// another matrix) accesses the wrong bytes, which the checks of every operation find.
//
// The heuristics know eight algorithms. Those with odd numbers add in another order, so that choices show in the bits;
// one splits the dim summed over and adds its parts in f32, one in the type of the result.
#include "tests/simgpu/cublas_lt.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include "kernels/fp8.h"
#include "kernels/types.h"
#include "tests/kernels/gelu.h"
#include "tests/simgpu/runtime.h"
#include "tests/simgpu/simulator.h"

namespace choir::simgpu {
namespace {

using kernels::bf16;
using kernels::tests::gelu;
using kernels::tests::gelu_gradient;

std::atomic<bool> fuses = true;
std::atomic<std::int64_t> asked = 0;
std::atomic<std::uint32_t> used = 0;

std::array<double, num_algorithms>& seconds() {
  static std::array<double, num_algorithms> seconds = [] {
    std::array<double, num_algorithms> given{};
    if (const char* text = std::getenv("CHOIR_SIMGPU_ALGORITHM_SECONDS")) {
      std::istringstream numbers(text);
      for (double& number : given) numbers >> number;
    }
    return given;
  }();
  return seconds;
}

/// Attributes by number, as they were set.
class Attributes {
 public:
  /// `size` is the size of the attribute in the header; 0: Choir does not use the attribute.
  cublasStatus_t set(int attribute, const void* value, std::size_t bytes, std::size_t size) {
    if (value == nullptr || bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
    const auto* begin = static_cast<const std::byte*>(value);
    values_[attribute].assign(begin, begin + bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  template <class T>
  T get(int attribute, T otherwise) const {
    const auto found = values_.find(attribute);
    if (found == values_.end()) return otherwise;
    T value{};
    std::memcpy(&value, found->second.data(), std::min(sizeof value, found->second.size()));
    return value;
  }

 private:
  std::map<int, std::vector<std::byte>> values_;
};

struct Operands : Attributes {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  bool transposed(cublasLtMatmulDescAttributes_t which) const { return get(which, CUBLAS_OP_N) != CUBLAS_OP_N; }
  cublasLtEpilogue_t epilogue() const { return get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT); }
  void* bias() const { return get<void*>(CUBLASLT_MATMUL_DESC_BIAS_POINTER, nullptr); }
  void* aux() const { return get<void*>(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, nullptr); }
  std::int64_t aux_stride() const { return get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, std::int64_t{0}); }

  /// The scales of A or of B; null: none are given, or not as a vector.
  const float* scales(cublasLtMatmulDescAttributes_t mode, cublasLtMatmulDescAttributes_t pointer) const {
    const bool vector = get(mode, std::int32_t{0}) == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    return vector ? get<const float*>(pointer, nullptr) : nullptr;
  }
  const float* a_scales() const {
    return scales(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
  }
  const float* b_scales() const {
    return scales(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
  }

  bool is(std::initializer_list<cublasLtEpilogue_t> kinds) const {
    return std::find(kinds.begin(), kinds.end(), epilogue()) != kinds.end();
  }
  bool adds_bias() const { return is({CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}); }
  bool writes_aux() const { return is({CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}); }
  bool reads_aux() const { return is({CUBLASLT_EPILOGUE_DGELU}); }
  bool sums_b() const { return is({CUBLASLT_EPILOGUE_BGRADB}); }
};

struct Matrix : Attributes {
  cudaDataType_t type;
  std::int64_t rows, columns, stride;

  bool row_major() const { return get(CUBLASLT_MATRIX_LAYOUT_ORDER, CUBLASLT_ORDER_COL) == CUBLASLT_ORDER_ROW; }
  std::int64_t width() const { return type == CUDA_R_32F ? 4 : type == CUDA_R_8F_E4M3 ? 1 : 2; }
  std::int64_t at(std::int64_t row, std::int64_t column) const {
    return row_major() ? row * stride + column : column * stride + row;
  }
  std::int64_t batches() const { return get(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, std::int32_t{1}); }
  std::int64_t batch_stride() const { return get(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, std::int64_t{0}); }

  /// One access for each stored line: the bytes between the lines do not belong to the matrix.
  void add_accesses(std::vector<Access>& accesses, const void* begin, bool write) const {
    const std::int64_t lines = row_major() ? rows : columns, length = row_major() ? columns : rows;
    const bool dense = length == stride && batches() == 1;
    for (std::int64_t b = 0; b < batches(); ++b)
      for (std::int64_t line = 0; line < (dense ? 1 : lines); ++line)
        accesses.push_back({.begin = static_cast<const char*>(begin) + (b * batch_stride() + line * stride) * width(),
                            .bytes = (dense ? lines * length : length) * width(),
                            .write = write});
  }
};

struct Preferences : Attributes {};

std::size_t size_of(cublasLtMatmulDescAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
    case CUBLASLT_MATMUL_DESC_TRANSB:
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return sizeof(std::int32_t);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return sizeof(std::int8_t);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return sizeof(std::uint32_t);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return sizeof(void*);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return sizeof(std::int64_t);
    default:
      return 0;
  }
}

std::size_t size_of(cublasLtMatrixLayoutAttribute_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return sizeof(std::int32_t);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return sizeof(std::int64_t);
    default:
      return 0;
  }
}

std::size_t size_of(cublasLtMatmulPreferenceAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return sizeof(std::uint64_t);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return sizeof(std::uint32_t);
    default:
      return 0;
  }
}

/// What the double keeps in the opaque bytes of an algorithm: its number, and the promises under which it was chosen.
struct Algorithm {
  std::uint64_t workspace_bytes;
  std::uint32_t alignments[6];  // of A, B, C, D, bias, aux
  std::uint32_t number;
};

std::uint32_t reduction_of(std::uint32_t number) {
  return number == split_algorithm  ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
         : number == split_rounding ? CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                                    : CUBLASLT_REDUCTION_SCHEME_NONE;
}
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

float load(const void* from, std::int64_t i, cudaDataType_t type) {
  if (type == CUDA_R_8F_E4M3) return kernels::value_of_e4m3(static_cast<const std::uint8_t*>(from)[i]);
  return type == CUDA_R_32F ? static_cast<const float*>(from)[i]
                            : static_cast<float>(static_cast<const bf16*>(from)[i]);
}
void store(void* to, std::int64_t i, cudaDataType_t type, float value) {
  if (type == CUDA_R_32F)
    static_cast<float*>(to)[i] = value;
  else
    static_cast<bf16*>(to)[i] = bf16(value);
}

bool known(cudaDataType_t type) { return type == CUDA_R_32F || type == CUDA_R_16BF || type == CUDA_R_8F_E4M3; }

/// Those of products of 8 bits: cuBLAS 13.0, "cublasLtMatmul", "Narrow precision data types usage".
bool allows_codes(const Operands& o, const Matrix& a, const Matrix& b, const Matrix& d) {
  const auto divides = [](std::initializer_list<std::int64_t> sizes) {
    return std::all_of(sizes.begin(), sizes.end(), [](std::int64_t size) { return size % 16 == 0; });
  };
  return options().compute_capability == 90 && o.transposed(CUBLASLT_MATMUL_DESC_TRANSA) &&
         !o.transposed(CUBLASLT_MATMUL_DESC_TRANSB) && o.a_scales() && o.b_scales() &&
         divides({a.rows, a.columns, a.stride, b.rows, b.stride, d.stride}) && d.type == CUDA_R_16BF &&
         d.batches() == 1 && !a.row_major() && !b.row_major() && !d.row_major() &&
         o.get(CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{0}) == 0 &&
         (o.is({CUBLASLT_EPILOGUE_DEFAULT}) || o.is({CUBLASLT_EPILOGUE_BIAS}));
}

/// The rules of cublasLtMatmul that a caller can break.
cublasStatus_t verdict(const Operands& o, const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
  const bool ta = o.transposed(CUBLASLT_MATMUL_DESC_TRANSA), tb = o.transposed(CUBLASLT_MATMUL_DESC_TRANSB);
  const std::int64_t m = ta ? a.columns : a.rows, k = ta ? a.rows : a.columns, n = tb ? b.rows : b.columns;
  if (k != (tb ? b.columns : b.rows) || d.rows != m || d.columns != n) return CUBLAS_STATUS_INVALID_VALUE;
  if (c.rows != m || c.columns != n || c.type != d.type) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Matrix* x : {&a, &b, &c, &d})
    if (x->rows <= 0 || x->columns <= 0 || x->stride < (x->row_major() ? x->columns : x->rows) || !known(x->type))
      return CUBLAS_STATUS_INVALID_VALUE;
  if (o.compute != CUBLAS_COMPUTE_32F || o.scale != CUDA_R_32F || a.type != b.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a.type == CUDA_R_32F && d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.type == CUDA_R_8F_E4M3) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool codes = a.type == CUDA_R_8F_E4M3;
  if (codes && !allows_codes(o, a, b, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!codes && (o.a_scales() || o.b_scales())) return CUBLAS_STATUS_INVALID_VALUE;
  const bool plain = o.is({CUBLASLT_EPILOGUE_DEFAULT}) || o.is({CUBLASLT_EPILOGUE_BIAS});
  if (!plain && !o.writes_aux() && !o.reads_aux() && !o.sums_b())
    return CUBLAS_STATUS_NOT_SUPPORTED;  // Choir uses no other
  if (!plain && !fuses) return CUBLAS_STATUS_NOT_SUPPORTED;
  // The bias has the type of D: the table of types in the documentation has no f32 bias for a bf16 result.
  const auto bias_type = static_cast<cudaDataType_t>(o.get(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t{d.type}));
  if ((o.adds_bias() || o.sums_b()) && bias_type != d.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (o.writes_aux() || o.reads_aux()) {
    if (o.aux_stride() % 8 != 0 || o.aux_stride() < d.rows || d.batches() != 1) return CUBLAS_STATUS_INVALID_VALUE;
  } else if (o.aux() != nullptr || o.aux_stride() != 0) {
    return CUBLAS_STATUS_INVALID_VALUE;  // harmless, but the caller has probably confused two epilogues
  }
  return CUBLAS_STATUS_SUCCESS;
}

/// The auxiliary matrix: like d, except for its leading dimension.
Matrix aux_layout(const Operands& o, const Matrix& d) {
  Matrix aux = d;
  aux.stride = o.aux_stride();
  return aux;
}

bool aligned(const void* address, std::uint32_t alignment) {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

/// What the heuristics read from an address without dereferencing it: its alignment, at most 16, and 16 for null.
std::uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 16;
  return static_cast<std::uint32_t>(bits & -bits);
}

/// d = alpha op(a) op(b) + beta c (+ bias, one for each row of d), and the epilogue. Sums in f32, four at a time, from
/// the last term to the first if `reversed`.
void multiply(const Operands& o, bool reversed, float alpha, const void* a, const Matrix& la, const void* b,
              const Matrix& lb, float beta, const void* c, const Matrix& lc, void* d, const Matrix& ld) {
  const bool ta = o.transposed(CUBLASLT_MATMUL_DESC_TRANSA), tb = o.transposed(CUBLASLT_MATMUL_DESC_TRANSB);
  const std::int64_t m = ld.rows, n = ld.columns, k = ta ? la.rows : la.columns;
  const Matrix aux = aux_layout(o, ld);
  const auto place = [&](std::int64_t term) { return reversed ? k - 1 - term : term; };
  std::vector<float> rows(static_cast<std::size_t>(m * k)), column(static_cast<std::size_t>(k));
  for (std::int64_t batch = 0; batch < ld.batches(); ++batch) {
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t p = 0; p < k; ++p)
        rows[static_cast<std::size_t>(i * k + p)] =
            load(a, batch * la.batch_stride() + (ta ? la.at(place(p), i) : la.at(i, place(p))), la.type);
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t p = 0; p < k; ++p)
        column[static_cast<std::size_t>(p)] =
            load(b, batch * lb.batch_stride() + (tb ? lb.at(j, place(p)) : lb.at(place(p), j)), lb.type);
      for (std::int64_t i = 0; i < m; ++i) {
        const float* row = rows.data() + i * k;
        float sums[4] = {};
        std::int64_t p = 0;
        for (; p + 4 <= k; p += 4)
          for (int s = 0; s < 4; ++s) sums[s] += row[p + s] * column[static_cast<std::size_t>(p + s)];
        for (; p < k; ++p) sums[0] += row[p] * column[static_cast<std::size_t>(p)];
        float value = alpha * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
        if (o.a_scales()) value = value * o.a_scales()[i] * o.b_scales()[j];
        if (beta != 0) value += beta * load(c, batch * lc.batch_stride() + lc.at(i, j), lc.type);
        if (o.adds_bias()) value += load(o.bias(), i, ld.type);
        if (o.writes_aux()) {
          store(o.aux(), aux.at(i, j), aux.type, value);
          value = static_cast<float>(gelu(value));
        }
        if (o.reads_aux()) value *= static_cast<float>(gelu_gradient(load(o.aux(), aux.at(i, j), aux.type)));
        store(d, batch * ld.batch_stride() + ld.at(i, j), ld.type, value);
      }
      if (o.sums_b()) {
        double sum = 0;
        for (const float term : column) sum += term;
        store(o.bias(), j, ld.type, static_cast<float>(sum));
      }
    }
  }
}

template <class Made, class Handle>
Made& of(Handle handle) {
  return *reinterpret_cast<Made*>(handle);
}

}  // namespace

void refuse_epilogues(bool refuse) { fuses = !refuse; }
void set_algorithm_seconds(const std::array<double, num_algorithms>& given) { seconds() = given; }
std::uint32_t take_used_algorithms() { return used.exchange(0); }
std::int64_t heuristics_asked() { return asked; }

}  // namespace choir::simgpu

using choir::simgpu::Access;
using choir::simgpu::Algorithm;
using choir::simgpu::aligned;
using choir::simgpu::alignment_of;
using choir::simgpu::asked;
using choir::simgpu::aux_layout;
using choir::simgpu::Matrix;
using choir::simgpu::of;
using choir::simgpu::Operands;
using choir::simgpu::Preferences;

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new char);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<char*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
const char* CUBLASWINAPI cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_INVALID_VALUE";
  }
}
const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "the simulated cuBLASLt refuses these arguments";
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute,
                                                     cudaDataType_t scale) {
  auto* operands = new Operands;
  operands->compute = compute;
  operands->scale = scale;
  *made = reinterpret_cast<cublasLtMatmulDesc_t>(operands);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t handle) {
  delete &of<Operands>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                                           cublasLtMatmulDescAttributes_t attribute, const void* value,
                                                           std::size_t bytes) {
  return of<Operands>(handle).set(attribute, value, bytes, choir::simgpu::size_of(attribute));
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type,
                                                       std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
  auto* matrix = new Matrix;
  matrix->type = type;
  matrix->rows = static_cast<std::int64_t>(rows);
  matrix->columns = static_cast<std::int64_t>(columns);
  matrix->stride = stride;
  *made = reinterpret_cast<cublasLtMatrixLayout_t>(matrix);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t handle) {
  delete &of<Matrix>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle,
                                                             cublasLtMatrixLayoutAttribute_t attribute,
                                                             const void* value, std::size_t bytes) {
  return of<Matrix>(handle).set(attribute, value, bytes, choir::simgpu::size_of(attribute));
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  *made = reinterpret_cast<cublasLtMatmulPreference_t>(new Preferences);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t handle) {
  delete &of<Preferences>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                                 cublasLtMatmulPreferenceAttributes_t attribute,
                                                                 const void* value, std::size_t bytes) {
  return of<Preferences>(handle).set(attribute, value, bytes, choir::simgpu::size_of(attribute));
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operands,
                                                           cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                           cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                           cublasLtMatmulPreference_t preference, int requested,
                                                           cublasLtMatmulHeuristicResult_t results[], int* count) {
  ++asked;
  if (requested < 1 || results == nullptr || count == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status =
      verdict(of<Operands>(operands), of<Matrix>(a), of<Matrix>(b), of<Matrix>(c), of<Matrix>(d));
  *count = 0;
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto& wishes = of<Preferences>(preference);
  constexpr std::uint32_t usual = 256;
  Algorithm algorithm = {
      .workspace_bytes = wishes.get(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{0}),
      .alignments = {wishes.get(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, usual),
                     wishes.get(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, usual),
                     wishes.get(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, usual),
                     wishes.get(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, usual),
                     alignment_of(of<Operands>(operands).bias()), alignment_of(of<Operands>(operands).aux())},
      .number = 0};
  // Not allowed, or, with the sums of B, not possible.
  const auto allowed = static_cast<std::uint32_t>(
      wishes.get(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_MASK}));
  const std::uint32_t possible = of<Operands>(operands).sums_b() ? 0 : allowed;
  for (; algorithm.number < choir::simgpu::num_algorithms && *count < requested; ++algorithm.number) {
    if ((choir::simgpu::reduction_of(algorithm.number) & ~possible) != 0) continue;
    cublasLtMatmulHeuristicResult_t& result = results[(*count)++];
    result = {};
    std::memcpy(&result.algo, &algorithm, sizeof algorithm);
    result.workspaceSize = algorithm.workspace_bytes;
    result.state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

std::size_t CUBLASWINAPI cublasLtGetVersion() { return CUBLAS_VERSION; }

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                                 cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                                 void* value, std::size_t bytes, std::size_t* written) {
  if (attribute != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME || bytes != sizeof(std::uint32_t))
    return CUBLAS_STATUS_INVALID_VALUE;  // Choir asks for no other
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  const std::uint32_t reduction = choir::simgpu::reduction_of(algorithm.number);
  std::memcpy(value, &reduction, sizeof reduction);
  *written = sizeof reduction;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t operands,
                                                    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                    const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulHeuristicResult_t* result) {
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  if (algorithm.number >= choir::simgpu::num_algorithms) return CUBLAS_STATUS_INVALID_VALUE;
  *result = {};
  result->workspaceSize = algorithm.workspace_bytes;
  if (of<Operands>(operands).sums_b() && choir::simgpu::reduction_of(algorithm.number) != 0)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return verdict(of<Operands>(operands), of<Matrix>(a), of<Matrix>(b), of<Matrix>(c), of<Matrix>(d));
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operands_handle, const void* alpha,
                                           const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                                           cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                                           cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                                           const cublasLtMatmulAlgo_t* chosen, void* workspace,
                                           std::size_t workspace_bytes, cudaStream_t stream) {
  const Operands operands = of<Operands>(operands_handle);  // as they are now: the caller may change them later
  const Matrix la = of<Matrix>(a_layout), lb = of<Matrix>(b_layout), lc = of<Matrix>(c_layout),
               ld = of<Matrix>(d_layout);
  if (const cublasStatus_t status = verdict(operands, la, lb, lc, ld); status != CUBLAS_STATUS_SUCCESS) return status;
  Algorithm algorithm;
  if (chosen == nullptr) return CUBLAS_STATUS_INVALID_VALUE;  // Choir always calls the heuristics first
  std::memcpy(&algorithm, chosen, sizeof algorithm);
  if (!aligned(a, algorithm.alignments[0]) || !aligned(b, algorithm.alignments[1]) ||
      !aligned(c, algorithm.alignments[2]) || !aligned(d, algorithm.alignments[3]) ||
      !aligned(operands.bias(), algorithm.alignments[4]) || !aligned(operands.aux(), algorithm.alignments[5]))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (workspace_bytes < algorithm.workspace_bytes || (workspace_bytes > 0 && !aligned(workspace, 16)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if ((operands.adds_bias() || operands.sums_b()) && operands.bias() == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const bool has_aux = operands.writes_aux() || operands.reads_aux();
  if (has_aux && (operands.aux() == nullptr || !aligned(operands.aux(), 16))) return CUBLAS_STATUS_INVALID_VALUE;

  const float times = *static_cast<const float*>(alpha), plus = *static_cast<const float*>(beta);
  choir::simgpu::Operation operation{.name = "cublasLtMatmul"};
  la.add_accesses(operation.accesses, a, false);
  lb.add_accesses(operation.accesses, b, false);
  if (plus != 0) lc.add_accesses(operation.accesses, c, false);
  if (operands.a_scales()) {
    constexpr std::int64_t bytes = sizeof(float);
    operation.accesses.push_back({.begin = operands.a_scales(), .bytes = ld.rows * bytes});
    operation.accesses.push_back({.begin = operands.b_scales(), .bytes = ld.columns * bytes});
  }
  if (operands.adds_bias()) operation.accesses.push_back({.begin = operands.bias(), .bytes = ld.rows * ld.width()});
  if (operands.sums_b())
    operation.accesses.push_back({.begin = operands.bias(), .bytes = ld.columns * ld.width(), .write = true});
  if (has_aux) aux_layout(operands, ld).add_accesses(operation.accesses, operands.aux(), operands.writes_aux());
  ld.add_accesses(operation.accesses, d, true);
  if (workspace_bytes > 0)
    operation.accesses.push_back(
        {.begin = workspace, .bytes = static_cast<std::int64_t>(workspace_bytes), .write = true});
  choir::simgpu::used |= 1u << algorithm.number;
  operation.run = [=] {
    choir::simgpu::simulator().pass_time(choir::simgpu::seconds()[algorithm.number]);
    multiply(operands, algorithm.number % 2 == 1, times, a, la, b, lb, plus, c, lc, d, ld);
  };
  return choir::simgpu::enqueue(stream, std::move(operation)) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                             : CUBLAS_STATUS_EXECUTION_FAILED;
}
