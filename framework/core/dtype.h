// Element types of tensors.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir {

using kernels::Accumulate;
using kernels::bf16;

enum class DType : std::uint8_t { f32, bf16, f64, i32, u8 };

constexpr std::int64_t size_of(DType type) {
  switch (type) {
    case DType::bf16:
      return 2;
    case DType::f64:
      return 8;
    case DType::u8:
      return 1;
    case DType::f32:
    case DType::i32:
      return 4;
  }
  return 0;
}

constexpr const char* name_of(DType type) {
  constexpr const char* names[] = {"f32", "bf16", "f64", "i32", "u8"};
  return names[static_cast<int>(type)];
}

template <class T>
inline constexpr DType dtype_of = DType::u8;
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::i32;

/// The type of statistics, biases and norm weights beside activations of `type`: f64 for f64 (tests), else f32.
constexpr DType accumulate_type(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace choir
