// Matrix products through oneDNN 2.6 or 3.x, the plain loop that is their oracle in f64, and the choice between these
// and products in vectors or on tiles.
//
// One oneDNN primitive per shape lives in MatmulPlans with its memory objects and argument list, so that a call only
// sets pointers and executes. oneDNN reads transposed and strided operands at full speed (measured on AVX2 and AVX-512:
// all three products of a linear layer run within 5 % of each other), so nothing is packed here.
//
// Sizes of 1: the stride of a dim of size 1 has no meaning, but the kernels of oneDNN choose their path by it. So a
// dense vector is always described as [rows, columns] with strides {columns, 1}. A vector with gaps (a matrix stored
// with one element per row, the rows further apart) has no such description: on AVX-512, oneDNN 3.7 reads and writes it
// as if it were dense, and reports success. The plain loop multiplies these; no layer of a model has them.
//
// Threads: oneDNN uses omp_get_max_threads() of the calling thread, when it makes a primitive and when it runs it. Both
// happen under PlannedTeam, which sets that number to Cpu::threads and restores it afterwards.
#include "kernels/matmul.h"

#include <dnnl_debug.h>

#include <algorithm>
#include <cstddef>
#include <dnnl.hpp>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/team.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/vector_matmul.h"

namespace choir::kernels {
namespace cpu {
namespace {

/// All that a primitive depends on: two calls with equal shapes share one.
struct MatmulShape {
  std::int64_t m, n, k, a_stride, b_stride, c_stride;
  int threads;
  bool bf16_in, bf16_out, transpose_a, transpose_b, bias, accumulate;

  bool operator==(const MatmulShape&) const = default;
};

struct MatmulShapeHash {
  std::size_t operator()(const MatmulShape& s) const {
    const int flags = s.bf16_in | s.bf16_out << 1 | s.transpose_a << 2 | s.transpose_b << 3 | s.bias << 4 |
                      s.accumulate << 5 | s.threads << 6;
    std::uint64_t hash = static_cast<std::uint64_t>(flags);
    for (const std::int64_t size : {s.m, s.n, s.k, s.a_stride, s.b_stride, s.c_stride}) {
      hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

/// One primitive and the objects of its call. `arguments` points into the memory objects beside it.
struct MatmulPlan {
  dnnl::matmul primitive;
  dnnl::memory a, b, bias, c, scratchpad;
  std::vector<dnnl_exec_arg_t> arguments;
  std::int64_t workspace_bytes = 0;
};

}  // namespace

struct MatmulPlans::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::mutex mutex;  // of `plans`: the host computes workspace sizes while the stream's worker multiplies
  std::unordered_map<MatmulShape, MatmulPlan, MatmulShapeHash> plans;
};

MatmulPlans::MatmulPlans() : state_(std::make_unique<State>()) {}
MatmulPlans::~MatmulPlans() = default;

bool has_native_bf16() {
  const auto bf16_isa = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);  // each isa is the set of bits it implies
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & bf16_isa) == bf16_isa;
}

namespace {

[[noreturn]] void fail(const MatmulShape& s, const char* what, dnnl_status_t status) {
  const auto operand = [](const char* name, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                          bool is_bf16) {
    return std::string(name) + " [" + std::to_string(rows) + ", " + std::to_string(columns) + "] stride " +
           std::to_string(stride) + (is_bf16 ? " bf16" : " f32");
  };
  throw std::runtime_error(std::string("matmul: oneDNN could not ") + what + ": " + dnnl_status2str(status) + "; " +
                           operand(s.transpose_a ? "transposed a" : "a", s.m, s.k, s.a_stride, s.bf16_in) + ", " +
                           operand(s.transpose_b ? "transposed b" : "b", s.k, s.n, s.b_stride, s.bf16_in) + ", " +
                           operand("c", s.m, s.n, s.c_stride, s.bf16_out) + (s.bias ? ", bias" : "") +
                           (s.accumulate ? ", accumulate" : "") + ", " + std::to_string(s.threads) + " threads");
}

MatmulPlan make_plan(const MatmulShape& s, const dnnl::engine& engine) {
  using Type = dnnl::memory::data_type;
  using Dims = dnnl::memory::dims;
  const Type in = s.bf16_in ? Type::bf16 : Type::f32, out = s.bf16_out ? Type::bf16 : Type::f32;
  const auto matrix = [](std::int64_t rows, std::int64_t columns, Type type, std::int64_t stride, bool transposed) {
    const std::int64_t row_stride = transposed ? 1 : stride, column_stride = transposed ? stride : 1;
    const bool dense_vector = (rows == 1 && column_stride == 1) || (columns == 1 && row_stride == 1);
    return dnnl::memory::desc({rows, columns}, type, dense_vector ? Dims{columns, 1} : Dims{row_stride, column_stride});
  };
  const dnnl::memory::desc a = matrix(s.m, s.k, in, s.a_stride, s.transpose_a);
  const dnnl::memory::desc b = matrix(s.k, s.n, in, s.b_stride, s.transpose_b);
  const dnnl::memory::desc c = matrix(s.m, s.n, out, s.c_stride, false);
  const dnnl::memory::desc bias = matrix(1, s.n, out, s.n, false);

  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);  // f32 stays f32 whatever the environment sets
  if (s.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const auto description = s.bias ? dnnl::matmul::primitive_desc(engine, a, b, bias, c, attributes)
                                  : dnnl::matmul::primitive_desc(engine, a, b, c, attributes);
#else
  const auto operation = s.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
  const dnnl::matmul::primitive_desc description(operation, attributes, engine);
#endif

  MatmulPlan plan;
  plan.primitive = dnnl::matmul(description);
  const auto argument = [&](dnnl::memory& memory, const dnnl::memory::desc& layout, int index) {
    memory = dnnl::memory(layout, engine, nullptr);
    plan.arguments.push_back({index, memory.get()});
  };
  argument(plan.a, a, DNNL_ARG_SRC);
  argument(plan.b, b, DNNL_ARG_WEIGHTS);
  argument(plan.c, c, DNNL_ARG_DST);
  argument(plan.scratchpad, description.scratchpad_desc(), DNNL_ARG_SCRATCHPAD);
  if (s.bias) argument(plan.bias, bias, DNNL_ARG_BIAS);
  plan.workspace_bytes = static_cast<std::int64_t>(description.scratchpad_desc().get_size());
  return plan;
}

MatmulPlan& find_plan(const Cpu& device, const MatmulShape& shape) {
  if (!device.plans) throw std::runtime_error("matmul: Cpu::plans is null; choir::Device owns one for each device");
  auto& state = device.plans->state();
  const std::lock_guard lock(state.mutex);
  const auto found = state.plans.find(shape);
  if (found != state.plans.end()) return found->second;
  try {
    const PlannedTeam team(device.threads);
    return state.plans.emplace(shape, make_plan(shape, state.engine)).first->second;
  } catch (const dnnl::error& error) {
    fail(shape, "make the product", error.status);
  }
}

template <class In, class Out>
MatmulShape shape_of(const Cpu& device, const Matmul<In, Out>& args) {
  return {.m = args.m,
          .n = args.n,
          .k = args.k,
          .a_stride = args.a_stride,
          .b_stride = args.b_stride,
          .c_stride = args.c_stride,
          .threads = device.threads,
          .bf16_in = std::is_same_v<In, bf16>,
          .bf16_out = std::is_same_v<Out, bf16>,
          .transpose_a = args.transpose_a,
          .transpose_b = args.transpose_b,
          .bias = args.bias != nullptr,
          .accumulate = args.accumulate};
}

template <class In, class Out>
void library_product(const Cpu& device, const Matmul<In, Out>& args) {
  const MatmulShape shape = shape_of(device, args);
  MatmulPlan& plan = find_plan(device, shape);
  const auto point = [](const dnnl::memory& memory, const void* data) {
    dnnl_memory_set_data_handle(memory.get(), const_cast<void*>(data));
  };
  point(plan.a, args.a);
  point(plan.b, args.b);
  point(plan.c, args.c);
  point(plan.scratchpad, args.workspace);
  if (args.bias) point(plan.bias, args.bias);
  const PlannedTeam team(device.threads);
  team.check();
  const dnnl_status_t status = dnnl_primitive_execute(plan.primitive.get(), device.plans->state().stream.get(),
                                                      static_cast<int>(plan.arguments.size()), plan.arguments.data());
  if (status != dnnl_success) fail(shape, "execute the product", status);
}

/// True if plain_product() computes the product: f64, no products at all (k = 0), or a vector with gaps.
template <class In, class Out>
bool is_plain(const Matmul<In, Out>& args) {
  const auto has_gaps = [](std::int64_t row_elements, std::int64_t stride) { return row_elements == 1 && stride != 1; };
  return std::is_same_v<In, double> || args.k == 0 || has_gaps(args.transpose_a ? args.m : args.k, args.a_stride) ||
         has_gaps(args.transpose_b ? args.k : args.n, args.b_stride) || has_gaps(args.n, args.c_stride);
}

/// True if vector_matmul() computes the product. Few rows do not pay for packing b, which oneDNN does not.
template <class In, class Out>
bool is_in_vectors(const Cpu& device, const Matmul<In, Out>& args) {
  return device.unit == CpuUnit::vectors && args.m >= 32 && args.n >= vector_columns;
}

/// True if tile_matmul() computes the product.
template <class In>
bool is_on_tiles(const Cpu& device) {
  return device.unit == CpuUnit::tiles && std::is_same_v<In, bf16>;
}

/// c = op(a) op(b) + bias (+ c) element by element, 64 columns at a time so that rows of b stay in the first cache.
template <class In, class Out>
void plain_product(const Cpu& device, const Matmul<In, Out>& args) {
  using Sum = Accumulate<In>;
  constexpr std::int64_t block = 64;
#pragma omp parallel for num_threads(device.threads) schedule(static) collapse(2)
  for (std::int64_t i = 0; i < args.m; ++i) {
    for (std::int64_t j0 = 0; j0 < args.n; j0 += block) {
      const std::int64_t width = std::min(block, args.n - j0);
      Out* c = args.c + i * args.c_stride + j0;
      Sum sum[block] = {};
      for (std::int64_t p = 0; p < args.k; ++p) {
        const Sum a = args.transpose_a ? args.a[p * args.a_stride + i] : args.a[i * args.a_stride + p];
        const In* b = args.transpose_b ? args.b + j0 * args.b_stride + p : args.b + p * args.b_stride + j0;
        const std::int64_t step = args.transpose_b ? args.b_stride : 1;
        for (std::int64_t j = 0; j < width; ++j) sum[j] += a * static_cast<Sum>(b[j * step]);
      }
      for (std::int64_t j = 0; j < width; ++j) {
        if (args.bias) sum[j] += static_cast<Sum>(args.bias[j0 + j]);
        if (args.accumulate) sum[j] += static_cast<Sum>(c[j]);
        c[j] = Out(sum[j]);
      }
    }
  }
}

template <class To, class From>
void convert_rows(const Cpu& device, const From* from, std::int64_t from_stride, To* to, std::int64_t to_stride,
                  std::int64_t rows, std::int64_t columns) {
#pragma omp parallel for num_threads(device.threads) schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      to[i * to_stride + j] = To(static_cast<float>(from[i * from_stride + j]));
    }
  }
}

/// The f32 product that replaces one of bf16 if the processor has no bf16 instructions. The workspace holds f32 copies
/// of a and b, of bias and c if c is bf16, and oneDNN's scratchpad.
template <class Out>
struct WidenedProduct {
  std::int64_t a_rows, a_columns, b_rows, b_columns;
  float *a = nullptr, *b = nullptr, *bias = nullptr;
  Matmul<float, float> product;
  std::int64_t copies_bytes = 0;

  explicit WidenedProduct(const Matmul<bf16, Out>& args)
      : a_rows(args.transpose_a ? args.k : args.m),
        a_columns(args.transpose_a ? args.m : args.k),
        b_rows(args.transpose_b ? args.n : args.k),
        b_columns(args.transpose_b ? args.k : args.n) {
    const auto take = [&](std::int64_t elements) {
      // A number: the size is asked for without memory.
      auto* memory = reinterpret_cast<float*>(reinterpret_cast<std::intptr_t>(args.workspace) + copies_bytes);
      copies_bytes += (elements * static_cast<std::int64_t>(sizeof(float)) + 63) / 64 * 64;
      return memory;
    };
    a = take(a_rows * a_columns);
    b = take(b_rows * b_columns);
    product = {.a = a,
               .b = b,
               .c = nullptr,
               .m = args.m,
               .n = args.n,
               .k = args.k,
               .a_stride = a_columns,
               .b_stride = b_columns,
               .c_stride = args.n,
               .transpose_a = args.transpose_a,
               .transpose_b = args.transpose_b,
               .accumulate = args.accumulate};
    if constexpr (std::is_same_v<Out, float>) {
      product.c = args.c;
      product.c_stride = args.c_stride;
      product.bias = args.bias;
    } else {
      if (args.bias) product.bias = bias = take(args.n);
      product.c = take(args.m * args.n);
    }
    product.workspace = take(0);
  }
};

template <class Out>
void widened_product(const Cpu& device, const Matmul<bf16, Out>& args) {
  const WidenedProduct<Out> widened(args);
  const Matmul<float, float>& product = widened.product;
  convert_rows(device, args.a, args.a_stride, widened.a, product.a_stride, widened.a_rows, widened.a_columns);
  convert_rows(device, args.b, args.b_stride, widened.b, product.b_stride, widened.b_rows, widened.b_columns);
  constexpr bool round = std::is_same_v<Out, bf16>;
  if (widened.bias) convert_rows(device, args.bias, args.n, widened.bias, args.n, 1, args.n);
  if (round && args.accumulate) {
    convert_rows(device, args.c, args.c_stride, product.c, product.c_stride, args.m, args.n);
  }
  library_product(device, product);
  if (round) convert_rows(device, product.c, product.c_stride, args.c, args.c_stride, args.m, args.n);
}

}  // namespace
}  // namespace cpu

template <class In, class Out>
std::int64_t matmul_workspace_bytes(Cpu device, const Matmul<In, Out>& args) {
  if constexpr (std::is_same_v<In, double>) {
    return 0;
  } else {
    if (args.m == 0 || args.n == 0 || cpu::is_plain(args)) return 0;
    if (cpu::is_in_vectors(device, args)) return cpu::vector_matmul_workspace_bytes(device, args);
    if constexpr (std::is_same_v<In, bf16>) {
      if (cpu::is_on_tiles<In>(device)) return cpu::tile_matmul_workspace_bytes(device, args);
      if (!cpu::has_native_bf16()) {
        const cpu::WidenedProduct<Out> widened(args);
        return widened.copies_bytes + matmul_workspace_bytes(device, widened.product);
      }
    }
    return cpu::find_plan(device, cpu::shape_of(device, args)).workspace_bytes;
  }
}

template <class In, class Out>
bool matmul_fuses(Cpu device, const Matmul<In, Out>& args) {
  if (args.epilogue == Epilogue::none) return true;
  if (args.epilogue == Epilogue::bias_gradient && !args.transpose_a) return false;
  return !cpu::is_plain(args) && (cpu::is_in_vectors(device, args) || cpu::is_on_tiles<In>(device));
}

template <class In, class Out>
void matmul(Cpu device, const Matmul<In, Out>& args) {
  if (!matmul_fuses(device, args))
    throw std::runtime_error("matmul: on the CPU, only products in vectors and on tiles have epilogues");
  if (args.m == 0 || args.n == 0) return;
  if (args.batch != 1) {  // one primitive serves all: their shapes are equal
    Matmul<In, Out> one = args;
    one.batch = 1;
    for (std::int64_t i = 0; i < args.batch; ++i) {
      one.a = args.a + i * args.a_batch_stride;
      one.b = args.b + i * args.b_batch_stride;
      one.c = args.c + i * args.c_batch_stride;
      matmul(device, one);
    }
    return;
  }
  if (cpu::is_plain(args)) return cpu::plain_product(device, args);
  if constexpr (!std::is_same_v<In, double>) {
    if (cpu::is_in_vectors(device, args)) return cpu::vector_matmul(device, args);
    if constexpr (std::is_same_v<In, bf16>) {
      if (cpu::is_on_tiles<In>(device)) return cpu::tile_matmul(device, args);
      if (!cpu::has_native_bf16()) return cpu::widened_product(device, args);
    }
    cpu::library_product(device, args);
  }
}

template std::int64_t matmul_workspace_bytes(Cpu, const Matmul<float, float>&);
template std::int64_t matmul_workspace_bytes(Cpu, const Matmul<bf16, bf16>&);
template std::int64_t matmul_workspace_bytes(Cpu, const Matmul<bf16, float>&);
template std::int64_t matmul_workspace_bytes(Cpu, const Matmul<double, double>&);
template bool matmul_fuses(Cpu, const Matmul<float, float>&);
template bool matmul_fuses(Cpu, const Matmul<bf16, bf16>&);
template bool matmul_fuses(Cpu, const Matmul<bf16, float>&);
template bool matmul_fuses(Cpu, const Matmul<double, double>&);
template void matmul(Cpu, const Matmul<float, float>&);
template void matmul(Cpu, const Matmul<bf16, bf16>&);
template void matmul(Cpu, const Matmul<bf16, float>&);
template void matmul(Cpu, const Matmul<double, double>&);

}  // namespace choir::kernels
