// Attention in blocks with online softmax: no T x T matrix in memory.
//
//   s[i, j] = score(scale * q[i] . k[j])      for the keys j that query i may see
//   out[i]  = sum_j softmax(s[i])[j] v[j]
//   lse[i]  = log sum_j exp(s[i, j])   saved; backward recomputes the probabilities as exp(s - lse)
//
// Milakov, Gimelshein (2018), arXiv 1805.02867; Dao, "FlashAttention-2" (2023), arXiv 2307.08691.
//
// Masks are bands (kernels/band.h), within documents (kernels/documents.h); kernels/score.h says what a score is. A
// query that sees no key gives out = 0 and lse = -inf, and contributes no gradient; the gradients of a key that no
// query sees are 0.
//
// Dropout (kernels/dropout.h) acts on the probabilities: out = sum_j m[i, j] softmax(s[i])[j] v[j] with m = 0 or
// 1 / (1 - p). lse is without it, and backward makes m again.
//
// Heads. Query head h reads key/value head (h + group_offset) / group_size (both local indices): a rank may start
// in the middle of a group.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/band.h"
#include "kernels/documents.h"
#include "kernels/dropout.h"
#include "kernels/score.h"
#include "kernels/types.h"

namespace choir::kernels {

/// What forward and backward share. Element [batch b, token t, head h, feature e] of q is at
/// q[(b * q_length + t) * q_stride + h * head_width + e]; k and v likewise with kv_length, out with out_stride.
struct AttentionShape {
  std::int64_t batch, q_length, kv_length;
  std::int64_t heads, kv_heads, head_width;
  std::int64_t group_size = 1, group_offset = 0;
  std::int64_t q_stride, k_stride, v_stride, out_stride;  ///< elements from one token to the next
  Band band;                                              ///< the keys that each query sees
  double scale = 1;                                       ///< usually 1 / sqrt(head_width)
  Score score{};
  Documents documents{};
  AttentionDropout dropout{};

  /// No option that the plain CUDA kernels and cuDNN lack.
  constexpr bool is_plain() const { return score.is_product() && !documents.separate && dropout.p == 0; }
};

template <class Index = std::int64_t>
constexpr VisiblePairs<Index> visible_pairs(const AttentionShape& s) {
  return {s.band, s.q_length, s.kv_length};
}

template <class T>
struct AttentionForward {
  AttentionShape shape;
  const T* q;
  const T* k;
  const T* v;
  T* out;
  Accumulate<T>* lse;         ///< [batch, heads, q_length]
  void* workspace = nullptr;  ///< attention_forward_workspace_bytes(), 64-byte aligned
};

template <class T>
struct AttentionBackward {
  AttentionShape shape;
  const T* q;
  const T* k;
  const T* v;
  const T* out;
  const T* dout;  ///< strides as out
  const Accumulate<T>* lse;
  T* dq;                      ///< strides as q; overwritten
  T* dk;                      ///< strides as k; overwritten: the sum over the query heads that read it here
  T* dv;                      ///< strides as v; overwritten
  void* workspace = nullptr;  ///< attention_backward_workspace_bytes(), 64-byte aligned
};

/// Linear in the sequence length and in the number of threads. Pointers are not read.
template <class T>
std::int64_t attention_forward_workspace_bytes(Cpu, const AttentionShape&);
template <class T>
std::int64_t attention_forward_workspace_bytes(Cuda, const AttentionShape&);
template <class T>
std::int64_t attention_backward_workspace_bytes(Cpu, const AttentionShape&);
template <class T>
std::int64_t attention_backward_workspace_bytes(Cuda, const AttentionShape&);

template <class T>
void attention_forward(Cpu, const AttentionForward<T>&);
template <class T>
void attention_forward(Cuda, const AttentionForward<T>&);
template <class T>
void attention_backward(Cpu, const AttentionBackward<T>&);
template <class T>
void attention_backward(Cuda, const AttentionBackward<T>&);

/// Twice the multiply-adds of forward over the (query, key) pairs that the band allows; backward has 2.5 times as many.
/// Documents are data, on which no count depends.
double attention_flops(const AttentionShape&);

namespace cuda {

/// cudnn: cuDNN's SDPA graphs. flash: Choir's own kernels. automatic: cuDNN if it supports the shape, else flash.
enum class AttentionImplementation : std::uint8_t { automatic, cudnn, flash };

/// Which implementation runs each shape, and cuDNN's plans. Made and destroyed by `choir::Device`.
class AttentionPlans {
 public:
  /// `deterministic`: backward gives the same bits in every run. `say` is called once for each reason why `automatic`
  /// does not use cuDNN for a shape; with `cudnn` the same reason is a Failure (kernels/cuda/failure.h).
  AttentionPlans(AttentionImplementation implementation, bool deterministic,
                 std::function<void(const std::string&)> say);
  ~AttentionPlans();
  AttentionPlans(const AttentionPlans&) = delete;
  AttentionPlans& operator=(const AttentionPlans&) = delete;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace cuda
}  // namespace choir::kernels
