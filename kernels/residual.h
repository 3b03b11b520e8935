// The residual branch: y = x + dropout(delta + bias), one pass over memory.
#pragma once

#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/types.h"

namespace choir::kernels {

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
