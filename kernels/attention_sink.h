// Attention sinks: each head has a learned logit that joins the sum of its softmax and brings no value. Xiao et al.
// 2023, arXiv 2309.17453, in the form of gpt-oss (2025), arXiv 2508.10925.
//
//   l     = log(exp(lse) + exp(sink))
//   out   = exp(lse - l) out                              lse = l
//   dsink = - sum over queries of exp(sink - lse) (out . dout)
//
// Backward of attention by the new out and lse is that of attention with a sink: it recomputes probabilities as
// exp(s - lse), and the slope of the logit of the sink is the last line.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

template <class T>
struct AttentionSink {
  std::int64_t batch, queries, heads, head_width;
  const Accumulate<T>* sinks;  ///< [heads]
  T* out;                      ///< [batch * queries, heads * head_width]
  Accumulate<T>* lse;          ///< [batch, heads, queries]
};

/// The terms of dsink.
template <class T>
struct AttentionSinkGradient {
  std::int64_t batch, queries, heads, head_width;
  const Accumulate<T>* sinks;  ///< [heads]
  const T *out, *dout;         ///< [batch * queries, heads * head_width]
  const Accumulate<T>* lse;    ///< [batch, heads, queries]
  Accumulate<T>* terms;        ///< [batch * queries, heads]
};

template <class T>
void attention_sink(Cpu, const AttentionSink<T>&);
template <class T>
void attention_sink(Cuda, const AttentionSink<T>&);
template <class T>
void attention_sink_gradient(Cpu, const AttentionSinkGradient<T>&);
template <class T>
void attention_sink_gradient(Cuda, const AttentionSinkGradient<T>&);

}  // namespace choir::kernels
