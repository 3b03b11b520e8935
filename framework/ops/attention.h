// Attention over tensors: q [B*Tq, H*E], k and v [B*Tk, K*E]; any row strides, so they may be columns of one buffer.
#pragma once

#include "framework/core/runtime.h"
#include "kernels/attention.h"
#include "kernels/grid.h"
#include "kernels/rows.h"

namespace choir::ops {

/// What the tensors do not say. Group size and offset: kernels/attention.h; the band: kernels/band.h; the score:
/// kernels/score.h; dropout: kernels/dropout.h.
struct AttentionOptions {
  std::int64_t batch = 1, heads = 1, kv_heads = 1, head_width = 1;
  std::int64_t group_size = 1, group_offset = 0;
  kernels::Band band;      ///< the keys that each query sees, by their numbers in these tensors
  kernels::Score score{};  ///< of a query and a key, likewise
  Tensor documents{};      ///< [B * T, 2] i32: a kernels::DocumentRange for each position; empty: not separate
  std::int64_t first_query = 0, first_key = 0;  ///< positions of query 0 and key 0; only documents need them
  bool documents_of_heads = false;              ///< documents [B * H * T, 2]: each head has ranges of its own
  double counted_share = 1;                     ///< of the pairs of the band: documents are data, and leave out more
  kernels::AttentionDropout dropout{};          ///< of the probabilities of these tensors
};

/// Writes out [B*Tq, H*E] and lse [B, H, Tq].
void attention(Runtime&, const AttentionOptions&, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
               const Tensor& lse);
/// The same in new tensors: returns out.
Tensor attention(Runtime&, const AttentionOptions&, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& lse);

/// Attention over more keys: adds a part, out [B*Tq, H*E] and lse [B, H, Tq], to a total of the same shapes, in f32
/// (f64 of f64), that begins as zeros and -inf (kernels/attention_merge.h).
void merge_attention(Runtime&, const AttentionOptions&, const Tensor& part, const Tensor& part_lse, const Tensor& total,
                     const Tensor& total_lse);

/// Gives each head a logit, sinks [H], that brings no value: changes out [B*Tq, H*E] and lse [B, H, Tq] as
/// kernels/attention_sink.h says.
void attention_sink(Runtime&, const AttentionOptions&, const Tensor& sinks, const Tensor& out, const Tensor& lse);
/// dsinks [H] +=, by the changed out and lse, by which attention_backward() is that of attention with sinks.
void attention_sink_backward(Runtime&, const AttentionOptions&, const Tensor& sinks, const Tensor& out,
                             const Tensor& lse, const Tensor& dout, const Tensor& dsinks);

/// Writes dq, dk, dv, shaped and strided like q, k, v.
void attention_backward(Runtime&, const AttentionOptions&, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                        const Tensor& dv);

/// Rotates the heads of x [N, heads * E] in place, each row by its position.
/// `table` [positions, E] as kernels/rotary.h makes it. `inverse` is the backward. `positions` [N] i32 or longer, if
/// given, are the positions instead of those of `rows`.
void rotary(Runtime&, const Tensor& x, const Tensor& table, std::int64_t head_width, const kernels::RowMap& rows,
            bool inverse, const Tensor& positions = {});

/// The table of kernels/rotary.h for `positions` positions. Made by the first call and kept by the runtime.
Tensor rotary_table(Runtime&, std::int64_t positions, std::int64_t head_width, double base,
                    const kernels::Grid& grid = {});

}  // namespace choir::ops
