// The decays of linear attention (kernels/linear_attention.h), of each head and token:
//
//   g = log(sigmoid(z)) / 16       dz = dg (1 - sigmoid(z)) / 16,  where sigmoid(z) = exp(16 g)
//
// The sixteenth root keeps a decay near 1 unless z is far below 0: a state is half gone after 16 tokens if z = 0, after
// 87 if z = 2 (Yang et al. 2023, arXiv 2312.06635). The first token of a document has g = -inf and dz = 0.
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
};

template <class A>
struct DecayGradient {
  std::int64_t count;  ///< elements
  const A* log_decay;
  const A* dlog_decay;
  A* dz;
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
