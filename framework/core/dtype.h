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

/// The element types of tensors as C++ types; another type has no `value`.
template <class T>
struct ElementType {};
template <>
struct ElementType<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct ElementType<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct ElementType<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct ElementType<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct ElementType<std::uint8_t> {
  static constexpr DType value = DType::u8;
};

/// Does not compile for a type that no tensor has.
template <class T>
inline constexpr DType dtype_of = ElementType<T>::value;

/// The type of statistics, biases and norm weights beside activations of `type`: f64 for f64 (tests), else f32.
constexpr DType accumulate_type(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace choir
