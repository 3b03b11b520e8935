// A gate of linear attention, its heads split over the tensor axis: a number in (0, 1] of each head and token, of which
// the logarithm is kept (kernels/decay.h).
//
//   g = log(sigmoid(x W^T + b)) / root
#pragma once

#include <string>

#include "framework/comm/context.h"
#include "framework/core/parameter.h"
#include "framework/parallel/tensor.h"

namespace choir {

struct HeadGate {
  const char* label;      // of its products
  double root;            // kernels/decay.h
  Weight *weight, *bias;  // [H held, D] and [H held, 1]

  /// x [N, D] -> g [N, H held], in f32 (f64 of f64). With `documents` (SeparateDocuments::ranges, or empty) it is -inf
  /// of the first token of each document, and of that of each sequence.
  Tensor forward(const Tensor& x, const Tensor& documents, Context&) const;
  /// dg -> the gradient of x W^T + b, in the type of x.
  Tensor backward(const Tensor& g, const Tensor& dg, Context&) const;
  /// Of this gradient, those of x and of the weights.
  Tensor backward_input(const Tensor& dz, Context&) const;
  void backward_weight(const Tensor& dz, const Tensor& x, Context&) const;
};

/// With the parameters `name`.weight and `name`.bias, of the heads `held` of `heads`.
struct HeadGateShape {
  std::int64_t heads, width;
  Slice held;
  float deviation;       // of the weight
  Initial initial_bias;  // of the bias
};
HeadGate add_head_gate(const std::string& name, const char* label, double root, const HeadGateShape&, ParameterStore&);

}  // namespace choir
