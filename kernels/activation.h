// The nonlinearity of the feed-forward layer.
//
//   gelu       0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))   GPT-2's form; Hendrycks, Gimpel 2016, arXiv 1606.08415
//   gelu_erf   0.5 x (1 + erf(x / sqrt(2)))
//   silu_gated silu(gate) * up, silu(x) = x / (1 + exp(-x))       SwiGLU; Shazeer 2020, arXiv 2002.05202
//
// gelu and gelu_erf read x [rows, width]. silu_gated reads x [rows, 2 * width]: gate in the first half of each row,
// up in the second (the fused storage of the two weights).
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

enum class Activation { gelu, gelu_erf, silu_gated };

/// Input features that one output feature reads: 2 for gated kinds, else 1.
constexpr std::int64_t inputs_per_output(Activation kind) { return kind == Activation::silu_gated ? 2 : 1; }

template <class T>
struct ActivationForward {
  Activation kind;
  const T* x;  ///< [rows, inputs_per_output * width]
  T* y;        ///< [rows, width]
  std::int64_t rows, width;
};

template <class T>
struct ActivationBackward {
  Activation kind;
  const T* dy;  ///< [rows, width]
  const T* x;   ///< [rows, inputs_per_output * width]
  T* dx;        ///< like x; may be dy if not gated
  std::int64_t rows, width;
};

template <class T>
void activation_forward(Cpu, const ActivationForward<T>&);
template <class T>
void activation_forward(Cuda, const ActivationForward<T>&);
template <class T>
void activation_backward(Cpu, const ActivationBackward<T>&);
template <class T>
void activation_backward(Cuda, const ActivationBackward<T>&);

}  // namespace choir::kernels
