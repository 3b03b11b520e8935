#include "kernels/matmul_choices.h"

#include <array>
#include <set>
#include <span>
#include <sstream>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/reduce.h"

namespace choir::kernels::cuda {
namespace {

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

}  // namespace choir::kernels::cuda
