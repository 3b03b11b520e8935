// Layer norm and RMS norm over the last dim.
//
//   layer norm   y = (x - mean) * rstd * weight + bias     rstd = 1 / sqrt(var + epsilon)
//   RMS norm     y = x * rstd * weight                     rstd = 1 / sqrt(mean(x^2) + epsilon)
//
// Ba et al. 2016, arXiv 1607.06450; Zhang, Sennrich 2019, arXiv 1910.07467. RMS norm is the first formula with mean = 0
// and without bias; a kernel computes it if `mean` is null.
//
// A residual branch and the norm that follows it are one pass over memory.
#pragma once

#include <cstdint>

#include "kernels/residual.h"

namespace choir::kernels {

template <class T>
struct NormForward {
  const T* x;                           ///< [rows, width]
  const Accumulate<T>* weight;          ///< [width]
  const Accumulate<T>* bias = nullptr;  ///< [width], or null
  T* y;                                 ///< [rows, width]
  Accumulate<T>* mean = nullptr;        ///< [rows]; null means RMS norm
  Accumulate<T>* rstd;                  ///< [rows]
  std::int64_t rows, width;
  double epsilon = 1e-5;
};

/// dx = (residual +) gradient through the norm; dweight += ..., dbias += ..., residual_sum += sum over rows of residual
template <class T>
struct NormBackward {
  const T* dy;                          ///< [rows, width]
  const T* x;                           ///< [rows, width]
  const Accumulate<T>* weight;          ///< [width]
  const Accumulate<T>* mean = nullptr;  ///< [rows]; null means RMS norm
  const Accumulate<T>* rstd;            ///< [rows]
  const T* residual = nullptr;          ///< [rows, width], added to dx, or null; may be dx
  T* dx;                                ///< [rows, width]
  Accumulate<T>* dweight;               ///< [width]
  Accumulate<T>* dbias = nullptr;       ///< [width], or null
  /// [width], or null: the gradient of a bias of which `residual` is the gradient in each row. It costs no pass here.
  Accumulate<T>* residual_sum = nullptr;
  std::int64_t rows, width;
  void* workspace = nullptr;  ///< norm_backward_workspace_bytes(), 64-byte aligned
};

template <class T>
void norm_forward(Cpu, const NormForward<T>&);
template <class T>
void norm_forward(Cuda, const NormForward<T>&);
/// residual_forward() and the norm of what it gives: norm.x is residual.y. The same bits as one after the other.
template <class T>
void residual_norm_forward(Cpu, const ResidualForward<T>& residual, const NormForward<T>& norm);
template <class T>
void residual_norm_forward(Cuda, const ResidualForward<T>& residual, const NormForward<T>& norm);
/// One row of partial sums per thread and gradient; added in thread order, so that the bits repeat.
template <class T>
std::int64_t norm_backward_workspace_bytes(Cpu, std::int64_t rows, std::int64_t width);
template <class T>
std::int64_t norm_backward_workspace_bytes(Cuda, std::int64_t rows, std::int64_t width);
template <class T>
void norm_backward(Cpu, const NormBackward<T>&);
template <class T>
void norm_backward(Cuda, const NormBackward<T>&);

}  // namespace choir::kernels
