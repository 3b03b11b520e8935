// Linear attention over tensors (kernels/linear_attention.h): q, k, v and out [B*T, H*E], with any row strides, decays
// [B*T, H] and states [B*H, E*E]. Decays and states are f32 (f64 of f64). An empty state is 0.
//
// With the logarithms of rates, log_rate [B*T, H], a state changes by the delta rule (kernels/delta_attention.h).
// Without it scores have a factor of 1 / sqrt(E); with it q and k are at unit length, and the factor is 1.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/decay.h"
#include "kernels/linear_attention.h"
#include "kernels/rows.h"

namespace choir::ops {

struct LinearAttentionOptions {
  std::int64_t batch = 1, heads = 1, head_width = 1;
  bool reverse = false;  ///< from the last token to the first; out and gradients of tokens are added to
};

/// The logarithms of the decays [N, H] of z [N, H] (kernels/decay.h). `documents` [B * T, 2] i32: a
/// kernels::DocumentRange for each position; empty: a sequence is one.
Tensor decay(Runtime&, const Tensor& z, const kernels::RowMap& rows, const Tensor& documents,
             double root = kernels::decay_root);
/// The gradient of z.
Tensor decay_backward(Runtime&, const Tensor& log_decay, const Tensor& dlog_decay, double root = kernels::decay_root);

// In reverse the state before the tokens is the one that the last of them reads, and that after them is for the token
// before the first.

/// Writes out and, unless it is empty, the state after the last token. `last_state` may be `state`.
void linear_attention(Runtime&, const LinearAttentionOptions&, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& log_decay, const Tensor& state, const Tensor& out, const Tensor& last_state,
                      const Tensor& log_rate = {});
/// Writes dq, dk, dv, dlog_decay and dlog_rate. `dlast` is the gradient of the state after the last token; empty: 0.
void linear_attention_backward(Runtime&, const LinearAttentionOptions&, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& dout, const Tensor& log_decay, const Tensor& state,
                               const Tensor& dlast, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                               const Tensor& dlog_decay, const Tensor& log_rate = {}, const Tensor& dlog_rate = {});

/// Writes the state that these tokens leave if it is 0 before them, and `total`: the sums of their log_decay [B*H], of
/// the delta rule the product of their transitions [B*H, E*E].
void linear_attention_state(Runtime&, const LinearAttentionOptions&, const Tensor& k, const Tensor& v,
                            const Tensor& log_decay, const Tensor& last_state, const Tensor& total,
                            const Tensor& log_rate = {});
/// Writes the gradient of the state before these tokens, if that of the state after them is 0. `k` is read by the delta
/// rule only.
void linear_attention_state_gradient(Runtime&, const LinearAttentionOptions&, const Tensor& q, const Tensor& k,
                                     const Tensor& dout, const Tensor& log_decay, const Tensor& dstate,
                                     const Tensor& log_rate = {});
/// state [B*H, E*E] = exp(total [B*H]) state + next, or total [B*H, E*E] state + next, with the transpose of each
/// matrix `total` if `state` is a gradient.
void carry_state(Runtime&, const Tensor& next, const Tensor& total, const Tensor& state, bool gradient = false);

}  // namespace choir::ops
