// Numbers of 8 bits on the CPU, which has no products of them: what they stand for is multiplied in bf16, exactly.
#include "kernels/fp8.h"

#include <array>

#include "kernels/cpu/parallel.h"
#include "kernels/matmul.h"

namespace choir::kernels {
namespace {

using cpu::Part;

/// Columns whose maxima, or codes, a thread has in its cache.
constexpr std::int64_t columns_at_once = 64;

/// body(begin, end) for pieces of `part` of columns_at_once at most.
template <class Body>
void for_each_piece(Part part, const Body& body) {
  for (std::int64_t begin = part.begin; begin < part.end; begin += columns_at_once)
    body(begin, std::min(part.end, begin + columns_at_once));
}

/// Absolute values of bf16 are ordered as their bits are, and NaN is beyond all.
std::uint16_t size_of(bf16 x) { return static_cast<std::uint16_t>(x.bits & 0x7fffu); }

std::uint8_t exponent_of_row(const bf16* x, std::int64_t width) {
  std::uint16_t largest = 0;
  for (std::int64_t i = 0; i < width; ++i) largest = std::max(largest, size_of(x[i]));
  return scale_exponent(largest);
}

void exponents_of_rows(const ScaleExponents& args, Part rows) {
  for (std::int64_t row = rows.begin; row < rows.end; ++row)
    args.exponents[row] = exponent_of_row(args.x + row * args.stride, args.width);
}

void exponents_of_columns(const ScaleExponents& args, Part columns) {
  for_each_piece(columns, [&](std::int64_t begin, std::int64_t end) {
    std::array<std::uint16_t, columns_at_once> largest{};
    for (std::int64_t row = 0; row < args.rows; ++row) {
      const bf16* x = args.x + row * args.stride + begin;
      for (std::int64_t i = 0; i < end - begin; ++i) largest[i] = std::max(largest[i], size_of(x[i]));
    }
    for (std::int64_t i = begin; i < end; ++i) args.exponents[i] = scale_exponent(largest[i - begin]);
  });
}

void quantise_rows(const Quantise& args, Part rows) {
  const std::int64_t length = codes_of(args.width);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const bf16* x = args.x + row * args.stride;
    std::uint8_t* codes = args.codes + row * length;
    const std::uint8_t exponent = args.exponents ? args.exponents[row] : exponent_of_row(x, args.width);
    const float inverse = inverse_scale_of(exponent);
    for (std::int64_t i = 0; i < args.width; ++i) codes[i] = to_e4m3(static_cast<float>(x[i]) * inverse);
    std::fill(codes + args.width, codes + length, std::uint8_t{0});
    args.scales[row] = scale_of(exponent);
  }
}

void quantise_columns(const Quantise& args, Part columns) {
  const std::int64_t length = codes_of(args.rows);
  for_each_piece(columns, [&](std::int64_t begin, std::int64_t end) {
    std::array<float, columns_at_once> inverse;
    for (std::int64_t i = begin; i < end; ++i) {
      inverse[i - begin] = inverse_scale_of(args.exponents[i]);
      args.scales[i] = scale_of(args.exponents[i]);
      std::fill(args.codes + i * length + args.rows, args.codes + (i + 1) * length, std::uint8_t{0});
    }
    for (std::int64_t row = 0; row < args.rows; ++row) {
      const bf16* x = args.x + row * args.stride;
      for (std::int64_t i = begin; i < end; ++i)
        args.codes[i * length + row] = to_e4m3(static_cast<float>(x[i]) * inverse[i - begin]);
    }
  });
}

constexpr std::array<float, 256> values_of_codes = [] {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) values[code] = value_of_e4m3(static_cast<std::uint8_t>(code));
  return values;
}();

void dequantise(Cpu device, const std::uint8_t* codes, const float* scales, bf16* y, std::int64_t rows,
                std::int64_t width) {
  cpu::for_each_part(cpu::num_parts(device, rows, width), rows, 1, [=](Part part) {
    for (std::int64_t row = part.begin; row < part.end; ++row)
      for (std::int64_t i = row * width; i < (row + 1) * width; ++i)
        y[i] = bf16(values_of_codes[codes[i]] * scales[row]);
  });
}

/// Elements of a factor in the workspace: what follows is 64-byte aligned.
std::int64_t aligned(std::int64_t elements) { return (elements + 31) / 32 * 32; }

std::int64_t bytes_of_factors(const ScaledMatmul& args) {
  return (aligned(args.m * args.k) + aligned(args.n * args.k)) * std::int64_t{sizeof(bf16)};
}

}  // namespace

std::int64_t scale_exponents_workspace_bytes(Cpu, const ScaleExponents&) { return 0; }

void scale_exponents(Cpu device, const ScaleExponents& args) {
  if (args.by_columns)
    cpu::for_each_part(cpu::num_parts(device, args.width, args.rows), args.width, columns_at_once,
                       [&](Part columns) { exponents_of_columns(args, columns); });
  else
    cpu::for_each_part(cpu::num_parts(device, args.rows, args.width), args.rows, 1,
                       [&](Part rows) { exponents_of_rows(args, rows); });
}

void quantise(Cpu device, const Quantise& args) {
  if (args.by_columns)
    cpu::for_each_part(cpu::num_parts(device, args.width, args.rows), args.width, columns_at_once,
                       [&](Part columns) { quantise_columns(args, columns); });
  else
    cpu::for_each_part(cpu::num_parts(device, args.rows, args.width), args.rows, 1,
                       [&](Part rows) { quantise_rows(args, rows); });
}

std::int64_t scaled_matmul_workspace_bytes(Cpu device, const ScaledMatmul& args) {
  return bytes_of_factors(args) + matmul_workspace_bytes(device, widened(args, nullptr, nullptr));
}

void scaled_matmul(Cpu device, const ScaledMatmul& args) {
  auto* const a = static_cast<bf16*>(args.workspace);
  bf16* const b = a + aligned(args.m * args.k);
  Matmul<bf16, bf16> product = widened(args, a, b);
  dequantise(device, args.a, args.a_scales, a, args.m, args.k);
  dequantise(device, args.b, args.b_scales, b, args.n, args.k);
  product.workspace = static_cast<char*>(args.workspace) + bytes_of_factors(args);
  matmul(device, product);
}

}  // namespace choir::kernels
