#include "framework/ops/linear.h"

#include "framework/ops/dispatch.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace choir::ops {
namespace {

struct Form {
  bool transpose_a = false, transpose_b = false, accumulate = false;
};

template <class In, class Out>
void product_of(Runtime& runtime, const char* name, const Tensor& a, const Tensor& b, const Tensor& bias,
                const Tensor& c, const Form& form) {
  kernels::Matmul<In, Out> args{.a = a.data<In>(),
                                .b = b.data<In>(),
                                .c = c.data<Out>(),
                                .bias = data_or_null<Accumulate<In>>(bias),
                                .m = c.rows(),
                                .n = c.width(),
                                .k = form.transpose_a ? a.rows() : a.width(),
                                .a_stride = a.row_stride(),
                                .b_stride = b.row_stride(),
                                .c_stride = c.row_stride(),
                                .transpose_a = form.transpose_a,
                                .transpose_b = form.transpose_b,
                                .accumulate = form.accumulate};
  check((form.transpose_a ? a.width() : a.rows()) == args.m, "rows of a and c");
  check((form.transpose_b ? b.rows() : b.width()) == args.n, "columns of b and c");
  check((form.transpose_b ? b.width() : b.rows()) == args.k, "the dim summed over, of a and b");
  check(!bias || bias.count() == args.n, "columns of c and elements of the bias");
  const Tensor scratch = workspace(runtime, runtime.device.with_kernels<In>([&](auto device) {
    return kernels::matmul_workspace_bytes(device, args);
  }));
  args.workspace = scratch.raw();
  runtime.device.ledger().add_product({.m = args.m,
                                       .n = args.n,
                                       .k = args.k,
                                       .transpose_a = form.transpose_a,
                                       .transpose_b = form.transpose_b,
                                       .accumulate = form.accumulate,
                                       .bf16_in = sizeof(In) == 2,
                                       .bf16_out = sizeof(Out) == 2});
  const double flops = 2.0 * static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k);
  launch<In>(runtime, name, {.flops = flops, .bytes = bytes_of({a, b, bias, c})},
             [args](auto device) { kernels::matmul(device, args); });
}

void product(Runtime& runtime, const char* name, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c,
             const Form& form) {
  check(a.dtype() == b.dtype(), "element types of the factors");
  if (a.dtype() == DType::f32 && c.dtype() == DType::f32)
    product_of<float, float>(runtime, name, a, b, bias, c, form);
  else if (a.dtype() == DType::bf16 && c.dtype() == DType::bf16)
    product_of<bf16, bf16>(runtime, name, a, b, bias, c, form);
  else if (a.dtype() == DType::bf16 && c.dtype() == DType::f32)
    product_of<bf16, float>(runtime, name, a, b, bias, c, form);
  else if (a.dtype() == DType::f64 && c.dtype() == DType::f64)
    product_of<double, double>(runtime, name, a, b, bias, c, form);
  else
    check(false, "element types of a matrix product");
}

}  // namespace

Tensor linear(Runtime& runtime, const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias,
              DType out_type) {
  Tensor y = runtime.empty({x.rows(), weight.rows()}, out_type);
  product(runtime, name, x, weight, bias, y, {.transpose_b = true});
  return y;
}

Tensor linear_input_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& weight) {
  Tensor dx = runtime.empty({dy.rows(), weight.width()}, weight.dtype());
  linear_input_gradient(runtime, name, dy, weight, dx);
  return dx;
}

void linear_input_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& weight,
                           const Tensor& dx) {
  product(runtime, name, dy, weight, {}, dx, {});
}

void linear_weight_gradient(Runtime& runtime, const char* name, const Tensor& dy, const Tensor& x,
                            const Tensor& dweight) {
  product(runtime, name, dy, x, {}, dweight, {.transpose_a = true, .accumulate = true});
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
