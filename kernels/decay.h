// The decays of linear attention (kernels/linear_attention.h), of each head and token:
//
//   g = log(sigmoid(z)) / root     dz = dg (1 - sigmoid(z)) / root,  where sigmoid(z) = exp(root g)      root = 16
//
// The sixteenth root keeps a decay near 1 unless z is far below 0: a state is half gone after 16 tokens if z = 0, after
// 87 if z = 2 (Yang et al. 2023, arXiv 2312.06635). The first token of a document has g = -inf and dz = 0. The rates of
// the delta rule (kernels/delta_attention.h) have root 1 and know no documents.
#pragma once

#include <cstdint>

#include "kernels/documents.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

inline constexpr double decay_root = 16;

template <class A>
struct Decay {
  std::int64_t rows, heads;
  const A* z;                                ///< [rows, heads]
  A* log_decay;                              ///< [rows, heads]
  RowMap map{};                              ///< of the rows
  const DocumentRange* documents = nullptr;  ///< [sequences, length], by position; null: a sequence is one
  double root = decay_root;
};

template <class A>
struct DecayGradient {
  std::int64_t count;  ///< elements
  const A* log_decay;
  const A* dlog_decay;
  A* dz;
  double root = decay_root;
};

template <class A>
void decay(Cpu, const Decay<A>&);
template <class A>
void decay(Cuda, const Decay<A>&);
template <class A>
void decay_gradient(Cpu, const DecayGradient<A>&);
template <class A>
void decay_gradient(Cuda, const DecayGradient<A>&);

}  // namespace choir::kernels
