#include "framework/nn/linear_attention.h"

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "framework/ops/linear_attention.h"

namespace choir {

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
      q_norm_(add_head_norm(name, "q_norm", config, share, store)),
      k_norm_(add_head_norm(name, "k_norm", config, share, store)),
      out_norm_(name + ".out_norm", config.head_width, /*rms=*/true, /*bias=*/false, config.norm_epsilon, share, store,
                /*of_heads=*/true) {
  const Slice held = partition_.query(share.rank);
  const auto add = [&](const char* which, Shape shape, std::int64_t columns, Initial initial) {
    const bool matrix = shape.size() > 1;
    Weight* weight = store.add_weight(held.count(), columns, matrix);
    store.add({.name = name + which,
               .shape = std::move(shape),
               .held = {held.begin, held.end, 0, columns},
               .owned_end = held.count(),
               .initial = initial,
               .decays = matrix,
               .weight = weight});
    return weight;
  };
  decay_ = add(".decay.weight", {config.heads, config.width}, config.width, {0, config.deviation});
  decay_bias_ = add(".decay.bias", {config.heads}, 1, {2, 1.5f});
  if (delta) {
    rate_ = add(".rate.weight", {config.heads, config.width}, config.width, {0, config.deviation});
    rate_bias_ = add(".rate.bias", {config.heads}, 1, {0, 0});
  }
}

AttentionSpec LinearAttention::spec(const Context& context) const {
  return attention_spec(name_, config_, partition_, rank_, nullptr, context);
}

Tensor LinearAttention::attend_to_cache(const Tensor& qkv, const Tensor& log_decay, const Tensor& log_rate,
                                        const Context& context) const {
  const std::int64_t width = heads() * config_.head_width;
  const Tensor out = context.runtime.empty({qkv.rows(), width}, qkv.dtype());
  const Tensor& state = context.cache->state;
  const bool begins = context.rows.runs[0].begin == 0;  // what an earlier text has left is not read
  ops::linear_attention(context.runtime, {.batch = 1, .heads = heads(), .head_width = config_.head_width},
                        qkv.slice_columns(0, width), qkv.slice_columns(width, 2 * width),
                        qkv.slice_columns(2 * width, 3 * width), log_decay, begins ? Tensor{} : state, out, state,
                        log_rate);
  return out;
}

ops::Dropout LinearAttention::dropout(const Context& context) const {
  return row_dropout(context, config_.dropout, name_);
}

void LinearAttention::attend_heads(const Tensor& x, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const std::int64_t width = heads() * config_.head_width;
  saved.x = keep(x);
  const Tensor all = enter(x, context, name_.c_str());
  const Tensor qkv = qkv_.forward("attention qkv", all, context);
  const Tensor log_decay = ops::decay(runtime,
                                      ops::linear(runtime, "attention decay", all, decay_->value,
                                                  by_head(decay_bias_->value), accumulate_type(runtime.compute_type)),
                                      context.rows.map(), context.documents.ranges);
  Tensor log_rate;
  if (rate_)
    log_rate = ops::decay(runtime,
                          ops::linear(runtime, "attention rate", all, rate_->value, by_head(rate_bias_->value),
                                      accumulate_type(runtime.compute_type)),
                          context.rows.map(), {}, /*root=*/1);
  if (q_norm_) {
    normalise_heads(*q_norm_, config_.head_width, qkv.slice_columns(0, width), saved.q_norm, context);
    normalise_heads(*k_norm_, config_.head_width, qkv.slice_columns(width, 2 * width), saved.k_norm, context);
  }
  rotate_heads(qkv.slice_columns(0, 2 * width), config_, false, context);
  const Tensor out = context.cache ? attend_to_cache(qkv, log_decay, log_rate, context)
                                   : attend_to_states(qkv, log_decay, log_rate, spec(context), saved.attended, context);
  saved.out = keep(
      out_norm_.forward(out.reshape({out.count() / config_.head_width, config_.head_width}), saved.out_norm, context)
          .reshape({out.rows(), out.width()}));
  if (context.attention)
    context.attention->entries[{name_, context.rows.first_sample}] = {
        .rows = context.rows, .qkv = qkv, .out = saved.out, .lse = log_decay};
}

ops::Branch LinearAttention::forward(const Tensor& x, Saved& saved, Context& context) const {
  attend_heads(x, saved, context);
  const Tensor y = leave(out_.forward("attention out", saved.out, context), context, name_.c_str());
  return {y, out_.bias(), dropout(context)};
}

void LinearAttention::forget(Saved& saved) const {
  Saved kept;
  kept.x = saved.x;
  saved = std::move(kept);
}

void LinearAttention::compute_again(Saved& saved, Context& context) const {
  const Tensor x = saved.x;
  attend_heads(x, saved, context);
}

Tensor LinearAttention::backward(const Tensor& dy, const Saved& saved, Context& context, Tensor* sum_of_dy) const {
  Runtime& runtime = context.runtime;
  const std::int64_t width = heads() * config_.head_width;
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
  rotate_heads(dqkv.slice_columns(0, 2 * width), config_, true, context);
  if (q_norm_) {
    normalise_heads_backward(*q_norm_, config_.head_width, dqkv.slice_columns(0, width), saved.q_norm, context);
    normalise_heads_backward(*k_norm_, config_.head_width, dqkv.slice_columns(width, 2 * width), saved.k_norm, context);
  }
  const auto narrow = [&](const Tensor& exact) {
    const Tensor narrowed = runtime.empty({exact.rows(), exact.width()}, dy.dtype());
    ops::narrow(runtime, exact, narrowed);
    return narrowed;
  };
  const Tensor dz = narrow(ops::decay_backward(runtime, saved.attended.log_decay, dlog_decay));
  const Tensor of_decay = ops::linear_input_gradient(runtime, "attention decay", dz, decay_->value);
  const Tensor of_qkv = qkv_.backward_input("attention qkv", dqkv, context);
  Tensor of_all = ops::residual(runtime, of_decay, of_qkv, {}, {});
  Tensor dz_rate;
  if (rate_) {
    dz_rate = narrow(ops::decay_backward(runtime, saved.attended.log_rate, dlog_rate, /*root=*/1));
    const Tensor of_rate = ops::linear_input_gradient(runtime, "attention rate", dz_rate, rate_->value);
    of_all = ops::residual(runtime, of_rate, of_all, {}, {});
  }
  const PendingTensor dx = enter_backward(of_all, context, name_.c_str());
  compute_weight_gradient(context, [this, dqkv = dqkv, dz, dz_rate, x = saved.x](Context& later) {
    const Tensor all = enter(x, later, name_.c_str());
    qkv_.backward_weight("attention qkv", dqkv, all, later);
    ops::linear_weight_gradient(later.runtime, "attention decay", dz, all, decay_->gradient,
                                by_head(decay_bias_->gradient));
    if (rate_)
      ops::linear_weight_gradient(later.runtime, "attention rate", dz_rate, all, rate_->gradient,
                                  by_head(rate_bias_->gradient));
  });
  return dx.wait(runtime);
}

KeyValueCache LinearAttention::make_cache(std::int64_t, Runtime& runtime) const {
  return {.state = runtime.empty({heads(), config_.head_width * config_.head_width},
                                 accumulate_type(runtime.compute_type), MemoryKind::saved)};
}

}  // namespace choir
