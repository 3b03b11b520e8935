#include "framework/nn/cross_attention.h"

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

std::vector<ColumnPart> some(std::vector<ColumnPart> parts, std::ptrdiff_t begin, std::ptrdiff_t end) {
  return {parts.begin() + begin, parts.begin() + end};
}

}  // namespace

CrossAttention::CrossAttention(const std::string& name, const AttentionShapeConfig& config, const TensorShare& share,
                               ParameterStore& store)
    : config_(config),
      name_(name),
      partition_{config.heads, config.kv_heads, share.size},
      rank_(share.rank),
      q_(some(qkv_parts(name, config, partition_, share.rank), 0, 1), config.width, config.bias, config.deviation,
         store),
      kv_(some(qkv_parts(name, config, partition_, share.rank), 1, 3), config.width, config.bias, config.deviation,
          store),
      out_(name + ".out", config.width, config.heads * config.head_width,
           {partition_.query(share.rank).begin * config.head_width,
            partition_.query(share.rank).end * config.head_width},
           config.bias, config.out_deviation, share, store),
      sinks_(add_sinks(name, config, partition_, share, store)),
      q_norm_(add_head_norm(name, "q_norm", config, share, store)),
      k_norm_(add_head_norm(name, "k_norm", config, share, store)) {
  config_.band = kernels::full_band();
  config_.score.alibi_heads = 0;
}

AttentionSpec CrossAttention::spec(const Context& context) const {
  return attention_spec(name_, config_, partition_, rank_, sinks_, context);
}

ops::Dropout CrossAttention::dropout(const Context& context) const {
  return row_dropout(context, config_.dropout, name_);
}

/// memory [rows of the source held, D] -> k, v side by side [M, 2 K E held]
Tensor CrossAttention::keys_and_values(const Tensor& memory, Saved& saved, Context& context) const {
  Context source = of_source(context);
  saved.memory = keep(memory);
  const Tensor kv = kv_.forward("cross-attention kv", enter(memory, source, name_.c_str()), source);
  if (k_norm_) normalise_heads(*k_norm_, config_.head_width, kv.slice_columns(0, key_width()), saved.k_norm, source);
  return kv;
}

/// q [n, ...] of some tokens of one sequence.
Tensor CrossAttention::attend_to_cache(const Tensor& q, const Tensor& memory, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const std::int64_t positions = context.source.rows.length, width = key_width();
  const Tensor kv = context.cache->source.slice_rows(0, positions);
  if (context.source.rows.count() > 0) ops::copy(runtime, keys_and_values(memory, saved, context), kv);
  const ops::AttentionOptions options{.heads = partition_.query(rank_).count(),
                                      .kv_heads = partition_.key_value(rank_).count(),
                                      .head_width = config_.head_width,
                                      .group_size = partition_.group_size(),
                                      .group_offset = partition_.group_offset(rank_),
                                      .band = config_.band,
                                      .score = config_.score};
  Tensor lse;
  const Tensor out =
      ops::attention(runtime, options, q, kv.slice_columns(0, width), kv.slice_columns(width, 2 * width), lse);
  if (sinks_) ops::attention_sink(runtime, options, by_head(sinks_->value), out, lse);
  return out;
}

Tensor CrossAttention::forward(const Tensor& x, const Tensor& memory, const Tensor& residual, Saved& saved,
                               Context& context) const {
  Runtime& runtime = context.runtime;
  saved.x = keep(x);
  const Tensor q = q_.forward("cross-attention q", enter(x, context, name_.c_str()), context);
  if (q_norm_) normalise_heads(*q_norm_, config_.head_width, q, saved.q_norm, context);
  const Tensor out =
      context.cache ? attend_to_cache(q, memory, saved, context)
                    : attend_across(q, keys_and_values(memory, saved, context), spec(context), saved.attended, context);
  const Tensor y = leave(out_.forward("cross-attention out", out, context), context, name_.c_str());
  return ops::residual(runtime, residual, y, out_.bias(), dropout(context));
}

CrossAttention::Gradients CrossAttention::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor dbranch = ops::residual_backward(runtime, dy, dropout(context));
  out_.backward_bias(dbranch, context);
  const Tensor dsum = leave_backward(dbranch, context, name_.c_str());
  const Tensor dout = out_.backward_input("cross-attention out", dsum, context);
  compute_weight_gradient(context, [this, dsum, out = saved.attended.out](Context& later) {
    out_.backward_weight("cross-attention out", dsum, out, later);
  });

  Context source = of_source(context);
  const auto [dq, dkv] = attend_across_backward(dout, spec(context), saved.attended, context);
  if (q_norm_) normalise_heads_backward(*q_norm_, config_.head_width, dq, saved.q_norm, context);
  if (k_norm_)
    normalise_heads_backward(*k_norm_, config_.head_width, dkv.slice_columns(0, key_width()), saved.k_norm, source);

  const PendingTensor dx = enter_backward(q_.backward_input("cross-attention q", dq, context), context, name_.c_str());
  const PendingTensor dmemory =
      enter_backward(kv_.backward_input("cross-attention kv", dkv, source), source, name_.c_str());
  compute_weight_gradient(context, [this, dq = dq, dkv = dkv, x = saved.x, memory = saved.memory](Context& later) {
    Context later_source = of_source(later);
    q_.backward_weight("cross-attention q", dq, enter(x, later, name_.c_str()), later);
    kv_.backward_weight("cross-attention kv", dkv, enter(memory, later_source, name_.c_str()), later_source);
  });
  return {.dx = dx.wait(runtime), .dmemory = dmemory.wait(runtime)};
}

Tensor CrossAttention::make_cache(std::int64_t positions, Runtime& runtime) const {
  return runtime.empty({positions, 2 * key_width()}, runtime.compute_type, MemoryKind::saved);
}

}  // namespace choir
