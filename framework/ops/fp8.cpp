#include "framework/ops/fp8.h"

#include "framework/ops/dispatch.h"
#include "kernels/fp8.h"

namespace choir::ops {

static std::int64_t scales_of(const Tensor& x, ScaledBy by) { return by == ScaledBy::rows ? x.rows() : x.width(); }

static void check_exponents(const Tensor& x, ScaledBy by, const Tensor& exponents) {
  check(x.dtype() == DType::bf16, "scales: x is bf16");
  check(exponents && exponents.dtype() == DType::u8 && exponents.contiguous() && exponents.count() == scales_of(x, by),
        "scales: a u8 for each row, or for each column");
}

void scale_exponents(Runtime& runtime, const Tensor& x, ScaledBy by, const Tensor& exponents) {
  check_exponents(x, by, exponents);
  kernels::ScaleExponents args{.x = x.data<bf16>(),
                               .rows = x.rows(),
                               .width = x.width(),
                               .stride = x.row_stride(),
                               .by_columns = by == ScaledBy::columns,
                               .exponents = exponents.data<std::uint8_t>()};
  const Tensor scratch = workspace(runtime, runtime.device.with_kernels<bf16>([&](auto device) {
    return kernels::scale_exponents_workspace_bytes(device, args);
  }));
  args.workspace = scratch.raw();
  launch<bf16>(runtime, "scales of 8 bits",
               {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x, exponents})},
               [args](auto device) { kernels::scale_exponents(device, args); });
}

ScaledRows quantise(Runtime& runtime, const Tensor& x, ScaledBy by, const Tensor& exponents) {
  if (!exponents && by == ScaledBy::columns) {
    const Tensor own = runtime.empty({x.width()}, DType::u8);
    scale_exponents(runtime, x, by, own);
    return quantise(runtime, x, by, own);
  }
  check(x.dtype() == DType::bf16, "scales: x is bf16");
  if (exponents) check_exponents(x, by, exponents);
  const std::int64_t rows = scales_of(x, by), numbers = by == ScaledBy::rows ? x.width() : x.rows();
  ScaledRows y{.codes = runtime.empty({rows, kernels::codes_of(numbers)}, DType::u8),
               .scales = runtime.empty({rows}, DType::f32)};
  const kernels::Quantise args{.x = x.data<bf16>(),
                               .rows = x.rows(),
                               .width = x.width(),
                               .stride = x.row_stride(),
                               .by_columns = by == ScaledBy::columns,
                               .exponents = data_or_null<std::uint8_t>(exponents),
                               .codes = y.codes.data<std::uint8_t>(),
                               .scales = y.scales.data<float>()};
  launch<bf16>(runtime, "rounding to 8 bits",
               {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x, exponents, y.codes, y.scales})},
               [args](auto device) { kernels::quantise(device, args); });
  return y;
}

void scaled_linear(Runtime& runtime, const char* name, const ScaledRows& x, const ScaledRows& weight,
                   const Tensor& bias, const Tensor& y) {
  const std::int64_t n = x.codes.rows(), out = weight.codes.rows(), k = x.codes.width();
  check(weight.codes.width() == k && k % 16 == 0, "a product of 8 bits: codes of x and weight");
  check(x.scales.count() == n && weight.scales.count() == out, "a product of 8 bits: a scale for each row");
  check(!bias || (bias.count() == out && bias.dtype() == DType::bf16), "a product of 8 bits: a bias of bf16");
  check(y.rows() == n && y.width() == out && y.contiguous() && y.dtype() == DType::bf16,
        "a product of 8 bits: y [rows of x, rows of the weight] of bf16");
  kernels::ScaledMatmul args{.a = x.codes.data<std::uint8_t>(),
                             .b = weight.codes.data<std::uint8_t>(),
                             .a_scales = x.scales.data<float>(),
                             .b_scales = weight.scales.data<float>(),
                             .c = y.data<bf16>(),
                             .bias = data_or_null<bf16>(bias),
                             .m = n,
                             .n = out,
                             .k = k};
  const Tensor scratch = workspace(runtime, runtime.device.with_kernels<bf16>([&](auto device) {
    return kernels::scaled_matmul_workspace_bytes(device, args);
  }));
  args.workspace = scratch.raw();
  // The yardstick of a step is the same product in bf16.
  runtime.device.ledger().add_product({.m = n,
                                       .n = out,
                                       .k = k,
                                       .transpose_a = false,
                                       .transpose_b = true,
                                       .accumulate = false,
                                       .bf16_in = true,
                                       .bf16_out = true});
  launch<bf16>(runtime, name,
               {.flops = 2.0 * static_cast<double>(n) * static_cast<double>(out) * static_cast<double>(k),
                .bytes = bytes_of({x.codes, x.scales, weight.codes, weight.scales, bias, y})},
               [args](auto device) { kernels::scaled_matmul(device, args); });
}

}  // namespace choir::ops
