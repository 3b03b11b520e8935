// The values that the bits of a register represent.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "tests/simgpu/ptx_program.h"

namespace choir::simgpu::ptx {

constexpr std::uint64_t low_bits(int bits) { return bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1; }
constexpr std::uint64_t zero_extended(std::uint64_t value, Type type) {
  return value & (type == Type::pred ? 1 : low_bits(8 * bytes_of(type)));
}
constexpr std::int64_t sign_extended(std::uint64_t value, Type type) {
  const int unused = 64 - 8 * bytes_of(type);
  return static_cast<std::int64_t>(value << unused) >> unused;
}

inline float as_f32(std::uint64_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits)); }
inline double as_f64(std::uint64_t bits) { return std::bit_cast<double>(bits); }
inline std::uint64_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
inline std::uint64_t bits_of(double value) { return std::bit_cast<std::uint64_t>(value); }

inline float bf16_to_f32(std::uint64_t bits) { return as_f32((bits & 0xffff) << 16); }
inline std::uint64_t f32_to_bf16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const std::uint64_t bits = bits_of(value);
  return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) & 0xffff;
}
inline float f16_to_f32(std::uint64_t bits) {
  const auto exponent = static_cast<int>(bits >> 10 & 31);
  const auto mantissa = static_cast<float>(bits & 1023);
  const float magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(mantissa, -24)
                                          : std::ldexp(1024.0f + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}
/// Rounds to nearest, ties to even, like all conversions here.
inline std::uint64_t f32_to_f16(float value) {
  const std::uint64_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) return sign | static_cast<std::uint64_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);                                     // [0.5, 1)
  const auto mantissa = static_cast<std::uint64_t>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 .. 2048
  return sign | ((static_cast<std::uint64_t>(exponent + 13) << 10) + mantissa);  // 1024 carries into the exponent
}

inline double to_double(std::uint64_t bits, Type type) {
  switch (type) {
    case Type::f32:
      return static_cast<double>(as_f32(bits));
    case Type::f64:
      return as_f64(bits);
    case Type::bf16:
      return static_cast<double>(bf16_to_f32(bits));
    default:
      return static_cast<double>(f16_to_f32(bits));
  }
}
/// Through f32 for the types of 16 bits: the products and sums of two such numbers are exact or rounded once in f32.
inline std::uint64_t from_double(double value, Type type) {
  switch (type) {
    case Type::f32:
      return bits_of(static_cast<float>(value));
    case Type::f64:
      return bits_of(value);
    case Type::bf16:
      return f32_to_bf16(static_cast<float>(value));
    default:
      return f32_to_f16(static_cast<float>(value));
  }
}

/// The outcomes of comparing a to b for which a relation is true.
struct Relation {
  std::uint64_t less = 0, equal = 0, greater = 0, unordered = 0;  ///< 1: true
};

inline Relation relation_of(Compare compare) {
  switch (compare) {
    case Compare::eq:
      return {.equal = 1};
    case Compare::ne:
      return {.less = 1, .greater = 1};
    case Compare::lt:
      return {.less = 1};
    case Compare::le:
      return {.less = 1, .equal = 1};
    case Compare::gt:
      return {.greater = 1};
    case Compare::ge:
      return {.equal = 1, .greater = 1};
    case Compare::equ:
      return {.equal = 1, .unordered = 1};
    case Compare::neu:
      return {.less = 1, .greater = 1, .unordered = 1};
    case Compare::ltu:
      return {.less = 1, .unordered = 1};
    case Compare::leu:
      return {.less = 1, .equal = 1, .unordered = 1};
    case Compare::gtu:
      return {.greater = 1, .unordered = 1};
    case Compare::geu:
      return {.equal = 1, .greater = 1, .unordered = 1};
    case Compare::number:
      return {.less = 1, .equal = 1, .greater = 1};
    case Compare::nan:
      break;
  }
  return {.unordered = 1};
}

/// Without branches, so that a loop over it vectorises.
template <class V>
std::uint64_t holds(const Relation& relation, V a, V b) {
  const std::uint64_t less = a<b, equal = a == b, greater = a> b;
  return (less & relation.less) | (equal & relation.equal) | (greater & relation.greater) |
         (((less | equal | greater) ^ 1) & relation.unordered);
}

}  // namespace choir::simgpu::ptx
