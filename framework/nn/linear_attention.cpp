#include "framework/nn/linear_attention.h"

#include <algorithm>

#include "framework/ops/linear_attention.h"

namespace choir {

/// Of the norm of o. The first token of a document reads its own value times q . k, of which a norm leaves the
/// direction and the sign: with a small epsilon it would enlarge rounding where q . k is near zero, and the losses of
/// two layouts would differ by 1e-3 after 20 steps (by 1e-7 with this one).
constexpr double least_epsilon = 1e-2;

static Slice columns_of(const Slice& heads, std::int64_t head_width) {
  return {heads.begin * head_width, heads.end * head_width};
}

LinearAttention::LinearAttention(const std::string& name, const AttentionShapeConfig& config, bool delta,
                                 const TensorShare& share, ParameterStore& store)
    : config_(config),
      name_(name),
      partition_{config.heads, config.heads, share.size},
      rank_(share.rank),
      qkv_(qkv_parts(name, config, partition_, share.rank), config.width, config.bias, config.deviation, store),
      out_(name + ".out", config.width, config.heads * config.head_width,
           columns_of(partition_.query(share.rank), config.head_width), config.bias, config.out_deviation, share,
           store),
      norms_(name, config, share, store),
      out_norm_(name + ".out_norm", config.head_width, /*rms=*/true, /*bias=*/false,
                std::max(config.norm_epsilon, least_epsilon), share, store,
                /*of_heads=*/true),
      decay_(add_head_gate(name + ".decay", "attention decay", kernels::decay_root,
                           {config.heads, config.width, partition_.query(share.rank), config.deviation, {2, 1.5f}},
                           store)) {
  if (delta)
    rate_ = add_head_gate(name + ".rate", "attention rate", /*root=*/1,
                          {config.heads, config.width, partition_.query(share.rank), config.deviation, {0, 0}}, store);
}

Tensor LinearAttention::part_of(const Tensor& qkv, int which) const {
  const std::int64_t width = heads() * config_.head_width;
  return qkv.slice_columns(which * width, (which + 1) * width);
}

AttentionSpec LinearAttention::spec(const Context& context) const {
  return attention_spec(name_, config_, partition_, rank_, nullptr, context);
}

Tensor LinearAttention::attend_to_cache(const Tensor& qkv, const Tensor& log_decay, const Tensor& log_rate,
                                        const Context& context) const {
  const Tensor out = context.runtime.empty({qkv.rows(), heads() * config_.head_width}, qkv.dtype());
  const Tensor& state = context.cache->state;
  const bool begins = context.rows.runs[0].begin == 0;  // what an earlier text has left is not read
  ops::linear_attention(context.runtime, {.batch = 1, .heads = heads(), .head_width = config_.head_width},
                        part_of(qkv, 0), part_of(qkv, 1), part_of(qkv, 2), log_decay, begins ? Tensor{} : state, out,
                        state, log_rate);
  return out;
}

ops::Dropout LinearAttention::dropout(const Context& context) const {
  return row_dropout(context, config_.dropout, name_);
}

void LinearAttention::attend_heads(const Tensor& x, Saved& saved, Context& context) const {
  saved.x = keep(x);
  const Tensor all = enter(x, context, name_.c_str());
  const Tensor qkv = qkv_.forward("attention qkv", all, context);
  const Tensor log_decay = decay_.forward(all, context.documents.ranges, context);
  const Tensor log_rate = rate_ ? rate_->forward(all, {}, context) : Tensor{};
  norms_.forward(part_of(qkv, 0), part_of(qkv, 1), saved.norms, context);
  rotate_heads(qkv.slice_columns(0, 2 * heads() * config_.head_width), config_, false, context);
  const Tensor out = context.cache ? attend_to_cache(qkv, log_decay, log_rate, context)
                                   : attend_to_states(qkv, log_decay, log_rate, spec(context), saved.attended, context);
  saved.out = keep(
      out_norm_.forward(out.reshape({out.count() / config_.head_width, config_.head_width}), saved.out_norm, context)
          .reshape({out.rows(), out.width()}));
  if (context.attention)
    context.attention->entries[{name_, context.rows.first_sample}] = {
        .rows = context.rows, .qkv = qkv, .out = saved.out, .log_decay = log_decay, .log_rate = log_rate};
}

ops::Branch LinearAttention::forward(const Tensor& x, Saved& saved, Context& context) const {
  attend_heads(x, saved, context);
  const Tensor y = out_.forward("attention out", saved.out, context, name_.c_str());
  return {y, out_.bias(), dropout(context)};
}

void LinearAttention::forget(Saved& saved) const { forget_all_but_input(saved); }

void LinearAttention::compute_again(Saved& saved, Context& context) const {
  const Tensor x = saved.x;
  attend_heads(x, saved, context);
}

Tensor LinearAttention::backward(const Tensor& dy, const Saved& saved, Context& context, Tensor* sum_of_dy) const {
  Runtime& runtime = context.runtime;
  const Tensor dbranch = out_.backward_residual(dy, dropout(context), sum_of_dy, context);
  const Tensor dsum = leave_backward(dbranch, context, name_.c_str());
  const Tensor dnormed = out_.backward_input("attention out", dsum, context);
  compute_weight_gradient(context, [this, dsum, out = saved.out](Context& later) {
    out_.backward_weight("attention out", dsum, out, later);
  });
  if (context.attention) context.attention->entries.at({name_, context.rows.first_sample}).dout = dnormed;
  const Tensor dout = out_norm_
                          .backward(dnormed.reshape({dnormed.count() / config_.head_width, config_.head_width}), {},
                                    saved.out_norm, context)
                          .reshape({dnormed.rows(), dnormed.width()});
  const auto [dqkv, dlog_decay, dlog_rate] = attend_to_states_backward(dout, spec(context), saved.attended, context);
  rotate_heads(dqkv.slice_columns(0, 2 * heads() * config_.head_width), config_, true, context);
  norms_.backward(part_of(dqkv, 0), part_of(dqkv, 1), saved.norms, context);
  const Tensor dz = decay_.backward(saved.attended.log_decay, dlog_decay, context);
  const Tensor of_decay = decay_.backward_input(dz, context);
  const Tensor of_qkv = qkv_.backward_input("attention qkv", dqkv, context);
  Tensor of_all = ops::residual(runtime, of_decay, of_qkv, {}, {});
  Tensor dz_rate;
  if (rate_) {
    dz_rate = rate_->backward(saved.attended.log_rate, dlog_rate, context);
    of_all = ops::residual(runtime, rate_->backward_input(dz_rate, context), of_all, {}, {});
  }
  const PendingTensor dx = enter_backward(of_all, context, name_.c_str());
  compute_weight_gradient(context, [this, dqkv = dqkv, dz, dz_rate, x = saved.x](Context& later) {
    const Tensor all = enter(x, later, name_.c_str());
    qkv_.backward_weight("attention qkv", dqkv, all, later);
    decay_.backward_weight(dz, all, later);
    if (rate_) rate_->backward_weight(dz_rate, all, later);
  });
  return dx.wait(runtime);
}

KeyValueCache LinearAttention::make_cache(std::int64_t, Runtime& runtime) const {
  return {.state = runtime.empty({heads(), config_.head_width * config_.head_width},
                                 accumulate_type(runtime.compute_type), MemoryKind::saved)};
}

}  // namespace choir
