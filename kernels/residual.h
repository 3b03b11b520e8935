// The residual branch: y = x + dropout(delta + bias), one pass over memory.
//
// Dropout keeps an element with probability 1 - p and divides it by 1 - p. The decision for an element is
// philox_word(key, step, rows.global_row(row) * width + feature) >= p * 2^32: a function of the element's position in
// the global batch, not of the rank that computes it. `step` is read from StepScalars.
#pragma once

#include <cstdint>

#include "kernels/rows.h"
#include "kernels/step_scalars.h"
#include "kernels/types.h"

namespace choir::kernels {

/// p == 0 keeps everything and reads neither key nor scalars.
struct Dropout {
  double p = 0;
  std::uint64_t key = 0;  ///< made from (seed, what)
  const StepScalars* scalars = nullptr;
  RowMap rows{};  ///< of the tensor
};

/// p * 2^32 rounded up: an element is dropped if its random word is below this.
constexpr std::uint32_t drop_below(double p) {
  const double exact = p * 4294967296.0;
  const auto floor = static_cast<std::uint64_t>(exact);
  const std::uint64_t ceiling = static_cast<double>(floor) < exact ? floor + 1 : floor;
  return ceiling > 0xffffffffu ? 0xffffffffu : static_cast<std::uint32_t>(ceiling);
}

template <class T>
struct ResidualForward {
  const T* x = nullptr;                 ///< [rows, width], or null for zeros: plain dropout
  const T* delta;                       ///< [rows, width]
  const Accumulate<T>* bias = nullptr;  ///< [width], or null
  T* y;                                 ///< [rows, width]; may be x or delta
  std::int64_t rows, width;
  Dropout dropout;
};

/// ddelta = mask * dy / (1 - p). The gradient of x is dy itself; that of bias is the column sum of ddelta.
template <class T>
struct ResidualBackward {
  const T* dy;  ///< [rows, width]
  T* ddelta;    ///< [rows, width]; may be dy
  std::int64_t rows, width;
  Dropout dropout;
};

template <class T>
void residual_forward(Cpu, const ResidualForward<T>&);
template <class T>
void residual_forward(Cuda, const ResidualForward<T>&);
template <class T>
void residual_backward(Cpu, const ResidualBackward<T>&);
template <class T>
void residual_backward(Cuda, const ResidualBackward<T>&);

}  // namespace choir::kernels
