#include "framework/ops/linear.h"

#include "framework/ops/activation.h"
#include "framework/ops/dispatch.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace choir::ops {
namespace {

using kernels::Epilogue;

/// The operands of kernels::Matmul.
struct Product {
  Tensor a, b, c, bias = {}, before = {}, bias_gradient = {};
  bool transpose_a = false, transpose_b = false, accumulate = false;
  Epilogue epilogue = Epilogue::none;
  std::int64_t groups = 1;  // equal parts of the rows of a, b and c: one product each
};

template <class In, class Out>
kernels::Matmul<In, Out> arguments_of(const Product& p) {
  const std::int64_t groups = p.groups;
  const auto rows = [&](const Tensor& x) { return x.rows() / groups; };
  const auto batch_stride = [&](const Tensor& x) { return groups == 1 ? 0 : rows(x) * x.row_stride(); };
  for (const Tensor* operand : {&p.a, &p.b, &p.c})
    check(operand->rows() % groups == 0, "a grouped product: groups divides the rows of each operand");
  const kernels::Matmul<In, Out> args{.a = p.a.data<In>(),
                                      .b = p.b.data<In>(),
                                      .c = p.c.data<Out>(),
                                      .bias = data_or_null<Out>(p.bias),
                                      .m = rows(p.c),
                                      .n = p.c.width(),
                                      .k = p.transpose_a ? rows(p.a) : p.a.width(),
                                      .a_stride = p.a.row_stride(),
                                      .b_stride = p.b.row_stride(),
                                      .c_stride = p.c.row_stride(),
                                      .transpose_a = p.transpose_a,
                                      .transpose_b = p.transpose_b,
                                      .accumulate = p.accumulate,
                                      .epilogue = p.epilogue,
                                      .before = data_or_null<Out>(p.before),
                                      .before_stride = p.before ? p.before.row_stride() : 0,
                                      .bias_gradient = data_or_null<Accumulate<In>>(p.bias_gradient),
                                      .batch = groups,
                                      .a_batch_stride = batch_stride(p.a),
                                      .b_batch_stride = batch_stride(p.b),
                                      .c_batch_stride = batch_stride(p.c)};
  check((p.transpose_a ? p.a.width() : rows(p.a)) == args.m, "rows of a and c");
  check((p.transpose_b ? rows(p.b) : p.b.width()) == args.n, "columns of b and c");
  check((p.transpose_b ? p.b.width() : rows(p.b)) == args.k, "the dim summed over, of a and b");
  check(!p.bias || p.bias.count() == args.n, "columns of c and elements of the bias");
  check(!p.before || (p.before.rows() == args.m && p.before.width() == args.n && p.before.dtype() == p.c.dtype()),
        "c and its values before the activation");
  check(!p.bias_gradient || p.bias_gradient.count() == args.m, "columns of dy and elements of the bias");
  return args;
}

/// body(kernels::Matmul<In, Out>) with the types of the product.
template <class Body>
decltype(auto) with_arguments(const Product& p, Body&& body) {
  check(p.a.dtype() == p.b.dtype(), "element types of the factors");
  const DType in = p.a.dtype(), out = p.c.dtype();
  if (in == DType::bf16 && out == DType::bf16) return body(arguments_of<bf16, bf16>(p));
  if (in == DType::bf16 && out == DType::f32) return body(arguments_of<bf16, float>(p));
  if (in == DType::f64 && out == DType::f64) return body(arguments_of<double, double>(p));
  check(in == DType::f32 && out == DType::f32, "element types of a matrix product");
  return body(arguments_of<float, float>(p));
}

/// True if the product computes its epilogue on this device. May be asked with any tensor of c's shape in its place.
bool fuses(Runtime& runtime, const Product& p) {
  return with_arguments(p, [&]<class In, class Out>(const kernels::Matmul<In, Out>& args) {
    return runtime.device.with_kernels<In>([&](auto device) { return kernels::matmul_fuses(device, args); });
  });
}

double epilogue_flops(const Product& p) {
  switch (p.epilogue) {
    case Epilogue::none:
      return 0;
    case Epilogue::gelu:
      return activation_flops * static_cast<double>(p.c.count());
    case Epilogue::gelu_gradient:
      return activation_backward_flops * static_cast<double>(p.c.count());
    case Epilogue::bias_gradient:
      return static_cast<double>(p.a.count());
  }
  return 0;
}

void run(Runtime& runtime, const char* name, const Product& p) {
  with_arguments(p, [&]<class In, class Out>(kernels::Matmul<In, Out> args) {
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<In>([&](auto device) {
      return kernels::matmul_workspace_bytes(device, args);
    }));
    args.workspace = scratch.raw();
    for (std::int64_t group = 0; group < p.groups; ++group)
      runtime.device.ledger().add_product({.m = args.m,
                                           .n = args.n,
                                           .k = args.k,
                                           .transpose_a = args.transpose_a,
                                           .transpose_b = args.transpose_b,
                                           .accumulate = args.accumulate,
                                           .bf16_in = sizeof(In) == 2,
                                           .bf16_out = sizeof(Out) == 2});
    const double flops = 2.0 * static_cast<double>(args.batch) * static_cast<double>(args.m) *
                         static_cast<double>(args.n) * static_cast<double>(args.k);
    launch<In>(
        runtime, name,
        {.flops = flops + epilogue_flops(p), .bytes = bytes_of({p.a, p.b, p.bias, p.c, p.before, p.bias_gradient})},
        [args](auto device) { kernels::matmul(device, args); });
  });
}

}  // namespace

Tensor linear(Runtime& runtime, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias,
              DType out_type) {
  Tensor y = runtime.empty({x.rows(), weight.rows()}, out_type);
  linear(runtime, name, x, weight, bias, y);
  return y;
}

void linear(Runtime& runtime, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias,
            const Tensor& y) {
  run(runtime, name, {.a = x, .b = weight, .c = y, .bias = bias, .transpose_b = true});
}

Tensor linear_activation(Runtime& runtime, const char* name, Activation kind, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, Tensor& before) {
  check(weight.rows() % kernels::inputs_per_output(kind) == 0, "activation: gate and up are of equal width");
  before = runtime.empty({x.rows(), weight.rows()}, x.dtype());
  const Product product{.a = x, .b = weight, .c = before, .bias = bias, .transpose_b = true};
  if (kind == Activation::gelu) {
    Product fused = product;
    fused.before = before;
    fused.epilogue = Epilogue::gelu;
    if (fuses(runtime, fused)) {
      fused.c = runtime.empty(before.shape(), before.dtype());
      run(runtime, name, fused);
      return fused.c;
    }
  }
  run(runtime, name, product);
  return activation(runtime, kind, before);
}

Tensor linear_input_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& weight) {
  Tensor dx = runtime.empty({dy.rows(), weight.width()}, weight.dtype());
  linear_input_gradient(runtime, name, dy, weight, dx);
  return dx;
}

void linear_input_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& weight,
                           const Tensor& dx) {
  run(runtime, name, {.a = dy, .b = weight, .c = dx});
}

Tensor linear_input_gradient_activation(Runtime& runtime, const char* name, Activation kind, const Tensor& dy,
                                        const Tensor& weight, const Tensor& before) {
  check(before.contiguous() && before.rows() == dy.rows() &&
            before.width() == weight.width() * kernels::inputs_per_output(kind),
        "activation backward: weight [D, F], before [N, F or 2 F]");
  if (kind == Activation::gelu) {
    Product fused{.a = dy, .b = weight, .c = before, .before = before, .epilogue = Epilogue::gelu_gradient};
    if (fuses(runtime, fused)) {
      fused.c = runtime.empty({before.rows(), before.width()}, before.dtype());
      run(runtime, name, fused);
      return fused.c;
    }
  }
  return activation_backward(runtime, kind, linear_input_gradient(runtime, name, dy, weight), before);
}

void linear_weight_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& x,
                            const Tensor& dweight, const Tensor& dbias, Into into) {
  const Product product{.a = dy, .b = x, .c = dweight, .transpose_a = true, .accumulate = into == Into::sum};
  Product fused = product;
  fused.bias_gradient = dbias;
  fused.epilogue = Epilogue::bias_gradient;
  if (dbias && fuses(runtime, fused)) return run(runtime, name, fused);
  run(runtime, name, product);
  if (dbias) bias_gradient(runtime, dy, dbias);
}

Tensor grouped_linear(Runtime& runtime, const char* name, const Tensor& x, const Tensor& weight, std::int64_t groups) {
  Tensor y = runtime.empty({x.rows(), weight.rows() / groups}, x.dtype());
  run(runtime, name, {.a = x, .b = weight, .c = y, .transpose_b = true, .groups = groups});
  return y;
}

Tensor grouped_linear_input_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& weight,
                                     std::int64_t groups) {
  Tensor dx = runtime.empty({dy.rows(), weight.width()}, weight.dtype());
  run(runtime, name, {.a = dy, .b = weight, .c = dx, .groups = groups});
  return dx;
}

void grouped_linear_weight_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& x,
                                    const Tensor& dweight, std::int64_t groups, Into into) {
  run(runtime, name,
      {.a = dy, .b = x, .c = dweight, .transpose_a = true, .accumulate = into == Into::sum, .groups = groups});
}

void bias_gradient(Runtime& runtime, const Tensor& dy, const Tensor& dbias) {
  check(dbias.count() == dy.width(), "columns of dy and elements of the bias");
  with_type(dy.dtype(), [&]<class T>() {
    kernels::ColumnSum<T> args{.x = dy.data<T>(),
                               .sum = dbias.data<Accumulate<T>>(),
                               .rows = dy.rows(),
                               .width = dy.width(),
                               .stride = dy.row_stride()};
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return kernels::column_sum_workspace_bytes<T>(device, args.rows, args.width);
    }));
    args.workspace = scratch.raw();
    launch<T>(runtime, "bias gradient", {.flops = static_cast<double>(dy.count()), .bytes = bytes_of({dy, dbias})},
              [args](auto device) { kernels::column_sum(device, args); });
  });
}

}  // namespace choir::ops
