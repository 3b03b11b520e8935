// Linear attention with decays: a head keeps a state, a matrix that each token decays, adds to and reads.
//
//   S_t [E, E] = a_t S_{t-1} + k_t^T v_t        a_t = exp(g_t), in (0, 1], of each head and token
//   o_t [E]    = scale q_t S_t
//
// Katharopoulos et al. 2020, arXiv 2006.16236; gates: Yang et al. 2023, arXiv 2312.06635. g = -inf begins a document:
// what is before it is forgotten.
//
// Chunks. With c_i = g_1 + ... + g_i in a chunk of tokens that begins with state S, and the sum over j <= i of a chunk
// as products of matrices:
//
//   o_i  = sum_j scale (q_i . k_j) exp(c_i - c_j) v_j + scale exp(c_i) q_i S
//   S'   = exp(c_last) S + sum_j exp(c_last - c_j) k_j^T v_j
//
// so that the cost is linear in the length, and only differences of sums are exponentiated, which are never positive.
// c begins at 0 again in each document: pairs of two documents have no term.
//
// Backward. dS' is the gradient of the state behind the chunk, D_ij = exp(c_i - c_j), G_ij = (do_i . v_j) D_ij:
//
//   dq_i = scale (sum_j G_ij k_j + exp(c_i) do_i S^T)
//   dk_j = sum_i scale G_ij q_i + exp(c_last - c_j) v_j dS'^T
//   dv_j = sum_i scale (q_i . k_j) D_ij do_i + exp(c_last - c_j) k_j dS'
//   dS   = exp(c_last) dS' + sum_i scale exp(c_i) q_i^T do_i
//   dc_i = q_i . dq_i - k_i . dk_i, and for the last token also <S', dS'>
//   dg_t = sum of dc_i for i >= t, in the document of t; 0 for its first token
//
// In reverse the tokens come from the last to the first, and each reads the state before it adds to it:
//
//   o_t        += scale q_t R_t
//   R_{t-1}     = a_t (R_t + k_t^T v_t)
//
// A token that reads S and R sees its whole document, each token of it once: o_t = sum_j scale (q_t . k_j)
// exp(-|c_t - c_j|) v_j. (If t were in both states, it would read itself twice, and no decay would make up for that.)
// g_t is what lies between tokens t - 1 and t, from whichever side one looks across, so that one decay serves both, and
// that of a document's first token separates it from the one before in both directions. The formulas of chunks hold
// with tokens in the order in which they come, c_i without g_i (c_last: with all), and pairs i != j; dg_t is the sum of
// dc_i of the tokens that come after t.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

/// Tokens of a chunk.
inline constexpr std::int64_t linear_attention_chunk = 64;

/// Element [batch b, token t, head h, feature e] of q is at q[(b * length + t) * q_stride + h * head_width + e]; k, v
/// and out likewise. Key/value head h is that of query head h.
struct LinearAttentionShape {
  std::int64_t batch, length, heads, head_width;
  std::int64_t q_stride, k_stride, v_stride, out_stride;  ///< elements from one token to the next
  double scale = 1;                                       ///< usually 1 / sqrt(head_width)
  bool reverse = false;  ///< tokens come from the last to the first; out, dq, dk, dv and dlog_decay are added to

  constexpr std::int64_t chunks() const { return (length + linear_attention_chunk - 1) / linear_attention_chunk; }
  /// Heads of all sequences: each has a state.
  constexpr std::int64_t states() const { return batch * heads; }
  /// Of in_order(): the row of the token that comes as number t, in strides; rows of decays are `decay_stride()` apart.
  constexpr std::int64_t row(std::int64_t sequence, std::int64_t t) const {
    return (reverse ? -sequence : sequence) * length + t;
  }
  constexpr std::int64_t decay_stride() const { return reverse ? -heads : heads; }
};

template <class T>
struct LinearAttentionForward {
  LinearAttentionShape shape;
  const T* q;  ///< may be null if out is
  const T* k;
  const T* v;
  const Accumulate<T>* log_decay;        ///< g [batch * length, heads]
  const Accumulate<T>* state = nullptr;  ///< [batch, heads, E, E]: before the first token; null: 0
  T* out = nullptr;                      ///< null: only the state is computed
  Accumulate<T>* last_state =
      nullptr;                     ///< [batch, heads, E, E]: after the last token; may be `state`; null: not wanted
  Accumulate<T>* total = nullptr;  ///< [batch, heads]: the sum of g over the tokens; null: not wanted
  void* workspace = nullptr;       ///< linear_attention_forward_workspace_bytes(), 64-byte aligned
};

template <class T>
struct LinearAttentionBackward {
  LinearAttentionShape shape;
  const T* q;
  const T* k;                            ///< may be null if dq is
  const T* v;                            ///< likewise
  const T* dout;                         ///< strides as out
  const Accumulate<T>* log_decay;        ///< as in forward
  const Accumulate<T>* state = nullptr;  ///< likewise
  const Accumulate<T>* dlast = nullptr;  ///< [batch, heads, E, E]: the gradient of the last state; null: 0
  T* dq = nullptr;                       ///< strides as q; overwritten; null: only dstate is computed
  T* dk = nullptr;                       ///< strides as k; overwritten
  T* dv = nullptr;                       ///< strides as v; overwritten
  Accumulate<T>* dlog_decay = nullptr;   ///< [batch * length, heads]; overwritten
  Accumulate<T>* dstate = nullptr;       ///< [batch, heads, E, E]: the gradient of `state`; null: not wanted
  void* workspace = nullptr;             ///< linear_attention_backward_workspace_bytes(), 64-byte aligned
};

/// Moves a pointer to the first token, of rows `stride` apart, to the token that comes first. null stays null.
template <class T>
void to_first(const LinearAttentionShape& s, std::int64_t stride, T*& tokens) {
  if (s.reverse && tokens) tokens += (s.length - 1) * stride;
}

/// The arguments as kernels read them: in reverse, pointers are to the last token of the first sequence, and strides
/// negative.
template <class Args>
Args in_order(Args args) {
  LinearAttentionShape& s = args.shape;
  to_first(s, s.q_stride, args.q);
  to_first(s, s.k_stride, args.k);
  to_first(s, s.v_stride, args.v);
  to_first(s, s.heads, args.log_decay);
  if constexpr (requires { args.dout; }) {
    to_first(s, s.out_stride, args.dout);
    to_first(s, s.q_stride, args.dq);
    to_first(s, s.k_stride, args.dk);
    to_first(s, s.v_stride, args.dv);
    to_first(s, s.heads, args.dlog_decay);
  } else {
    to_first(s, s.out_stride, args.out);
  }
  for (std::int64_t* stride : {&s.q_stride, &s.k_stride, &s.v_stride, &s.out_stride})
    if (s.reverse) *stride = -*stride;
  return args;
}

/// state = exp(total) state + next: the state behind tokens whose own state, from 0, is `next`, and whose decays have
/// the sum `total`. For gradients the same from right to left.
template <class A>
struct CarryState {
  std::int64_t states, elements;  ///< elements of one state: E * E
  const A* next;                  ///< [states, elements]
  const A* total;                 ///< [states]
  A* state;                       ///< [states, elements]
};

/// Linear in the length. Pointers are not read.
template <class T>
std::int64_t linear_attention_forward_workspace_bytes(Cpu, const LinearAttentionShape&);
template <class T>
std::int64_t linear_attention_forward_workspace_bytes(Cuda, const LinearAttentionShape&);
template <class T>
std::int64_t linear_attention_backward_workspace_bytes(Cpu, const LinearAttentionShape&);
template <class T>
std::int64_t linear_attention_backward_workspace_bytes(Cuda, const LinearAttentionShape&);

template <class T>
void linear_attention_forward(Cpu, const LinearAttentionForward<T>&);
template <class T>
void linear_attention_forward(Cuda, const LinearAttentionForward<T>&);
template <class T>
void linear_attention_backward(Cpu, const LinearAttentionBackward<T>&);
template <class T>
void linear_attention_backward(Cuda, const LinearAttentionBackward<T>&);
template <class A>
void carry_state(Cpu, const CarryState<A>&);
template <class A>
void carry_state(Cuda, const CarryState<A>&);

/// Twice the multiply-adds of forward; backward has 2.5 times as many. `state` alone: linear_attention_state_flops().
constexpr double linear_attention_state_flops(const LinearAttentionShape& s) {
  return 2.0 * static_cast<double>(s.states() * s.length) * static_cast<double>(s.head_width * s.head_width);
}
constexpr double linear_attention_flops(const LinearAttentionShape& s) {
  const std::int64_t whole = s.length / linear_attention_chunk, rest = s.length % linear_attention_chunk;
  const std::int64_t pairs = whole * linear_attention_chunk * (linear_attention_chunk + 1) / 2 + rest * (rest + 1) / 2;
  return 4.0 * static_cast<double>(s.states() * pairs * s.head_width) + 2 * linear_attention_state_flops(s);
}

}  // namespace choir::kernels
