// Linear attention by the gated delta rule: a token takes out of the state what stood at its key, in proportion to a
// rate, before it adds to it (Yang et al. 2024, Gated DeltaNet, arXiv 2412.06464).
//
//   S_t [E, E] = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t     a_t = exp(g_t), b_t = exp(log_rate_t), in (0, 1]
//   o_t [E]    = scale q_t S_t
//
// of q and k at unit length, x / sqrt(|x|^2 + 1e-6), so that no eigenvalue of I - b k^T k leaves [0, 1]. q and k below
// are those. State, g and documents are those of kernels/linear_attention.h.
//
// Values. With u_t = b_t (v_t - a_t k_t S_{t-1}) the rule is that of linear attention with u in the place of v:
//
//   S_t = a_t S_{t-1} + k_t^T u_t
//
// Chunks. c, D, S and S' are those of linear attention: c_i = g_1 + ... + g_i, D_ij = exp(c_i - c_j). The values of a
// chunk are the solution of a triangular system (the WY form of a product of such transitions and its UT transform,
// Yang et al. 2024, arXiv 2406.06484, solved in place of inverted):
//
//   (I + L) U = diag(b) (V - diag(exp(c)) K S)      L_ij = b_i (k_i . k_j) D_ij for j < i, otherwise 0
//
// and o and S' follow from q, k and u.
//
// Backward. w_i is the gradient of u_i, z_i = -b_i w_i that of k_i S_{i-1} a_i, dS' that of the state behind the chunk:
//
//   (I + L^T) W = B     B_i = sum_{m >= i} scale (q_m . k_i) D_mi do_m + exp(c_last - c_i) k_i dS'
//   dS   = exp(c_last) dS' + sum_i exp(c_i) (scale q_i^T do_i + k_i^T z_i)
//   dv_i = b_i w_i      dlog_rate_i = w_i . u_i
//   dq_i = scale (sum_{j <= i} (do_i . u_j) D_ij k_j + exp(c_i) do_i S^T)
//   dk_i = write_i + read_i
//     write_j = sum_{i >= j} scale (do_i . u_j) D_ij q_i + sum_{i > j} (z_i . u_j) D_ij k_i + exp(c_last - c_j) u_j dS'^T
//     read_i  = sum_{j < i} (z_i . u_j) D_ij k_j + exp(c_i) z_i S^T
//   dc_i = q_i . dq_i + k_i . read_i - k_i . write_i, and for the last token also <S', dS'>; dg from dc as there
//
// and of x at unit length y = f x, f = 1 / sqrt(|x|^2 + 1e-6): dx = f (dy - y (y . dy)).
//
// A run of tokens changes the state before it by a matrix, the product of its transitions: S' = M S + N.
//
// In reverse, as linear attention does, each token reads the state before it takes from it and adds to it, and its
// decay comes last:
//
//   o_t        += scale q_t R_t
//   R_{t-1}     = a_t (R_t + k_t^T u_t)     u_t = b_t (v_t - k_t R_t)
//
// The formulas of chunks hold with tokens in the order in which they come, c_i without g_i, and D_ii = 0: no token reads
// itself. A token has one decay, one rate and one key for both directions.
#pragma once

#include "kernels/linear_attention.h"

namespace choir::kernels {

/// |x|^2 of q and k is as much larger.
inline constexpr double delta_norm_epsilon = 1e-6;

template <class T>
struct DeltaAttentionForward {
  LinearAttentionForward<T> linear;     ///< its total is not written
  const Accumulate<T>* log_rate;        ///< [batch * length, heads]
  Accumulate<T>* transition = nullptr;  ///< M [batch, heads, E, E]; null: not wanted
};

template <class T>
struct DeltaAttentionBackward {
  LinearAttentionBackward<T> linear;  ///< k is read also if only dstate is computed
  const Accumulate<T>* log_rate;
  Accumulate<T>* dlog_rate = nullptr;  ///< [batch * length, heads]; overwritten, in reverse added to
};

/// The arguments as kernels read them, as those of linear attention.
template <class Args>
requires requires(const Args& args) { args.linear; }
Args in_order(Args args) {
  const LinearAttentionShape shape = args.linear.shape;
  to_first(shape, shape.heads, args.log_rate);
  if constexpr (requires { args.dlog_rate; }) to_first(shape, shape.heads, args.dlog_rate);
  args.linear = in_order(args.linear);
  return args;
}

/// out = transition state + next, or transition^T state + next for gradients, which go from right to left.
template <class A>
struct CarryThrough {
  std::int64_t states, width;  ///< E
  const A* next;               ///< [states, E, E]
  const A* transition;         ///< likewise
  const A* state;              ///< likewise
  A* out;                      ///< likewise; none of the others
  bool transposed = false;
};

/// Linear in the length. Pointers are not read.
template <class T>
std::int64_t delta_attention_forward_workspace_bytes(Cpu, const LinearAttentionShape&);
template <class T>
std::int64_t delta_attention_forward_workspace_bytes(Cuda, const LinearAttentionShape&);
template <class T>
std::int64_t delta_attention_backward_workspace_bytes(Cpu, const LinearAttentionShape&);
template <class T>
std::int64_t delta_attention_backward_workspace_bytes(Cuda, const LinearAttentionShape&);

template <class T>
void delta_attention_forward(Cpu, const DeltaAttentionForward<T>&);
template <class T>
void delta_attention_forward(Cuda, const DeltaAttentionForward<T>&);
template <class T>
void delta_attention_backward(Cpu, const DeltaAttentionBackward<T>&);
template <class T>
void delta_attention_backward(Cuda, const DeltaAttentionBackward<T>&);
template <class A>
void carry_through(Cpu, const CarryThrough<A>&);
template <class A>
void carry_through(Cuda, const CarryThrough<A>&);

/// Twice the multiply-adds: of out, of a state and its transition, of all gradients, of the gradient of a state. A
/// product over the pairs of a chunk is half of `pairs`, one with the states of all tokens is `states`.
struct DeltaAttentionFlops {
  double forward, state, backward, state_gradient;
};
constexpr DeltaAttentionFlops delta_attention_flops(const LinearAttentionShape& s) {
  const double states = linear_attention_state_flops(s), pairs = linear_attention_flops(s) - 2 * states;
  return {.forward = 2 * pairs + 3 * states,
          .state = 2 * (pairs + 2 * states),
          .backward = 6 * pairs + 8 * states,
          .state_gradient = 2 * pairs + 3 * states};
}

}  // namespace choir::kernels
