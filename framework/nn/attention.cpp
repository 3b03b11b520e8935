#include "framework/nn/attention.h"

#include <algorithm>

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/head_slots.h"

namespace choir {

static Slice times(const Slice& heads, std::int64_t head_width) {
  return {heads.begin * head_width, heads.end * head_width};
}

std::vector<ColumnPart> qkv_parts(const std::string& name, const AttentionShapeConfig& c, const HeadPartition& p,
                                  std::int64_t rank) {
  const Slice q = times(p.query(rank), c.head_width);
  const Slice kv = times(p.key_value(rank), c.head_width), owned = times(p.owned_key_value(rank), c.head_width);
  return {{name + ".q", c.heads * c.head_width, q, q, false},
          {name + ".k", c.kv_heads * c.head_width, kv, owned, p.any_shared()},
          {name + ".v", c.kv_heads * c.head_width, kv, owned, p.any_shared()}};
}

Weight* add_sinks(const std::string& name, const AttentionShapeConfig& config, const HeadPartition& partition,
                  const TensorShare& share, ParameterStore& store) {
  if (!config.sinks) return nullptr;
  const Slice held = partition.query(share.rank);
  Weight* sinks = store.add_weight(held.count(), 1, false);
  store.add({.name = name + ".sinks",
             .shape = {config.heads},
             .held = {held.begin, held.end, 0, 1},
             .owned_end = held.count(),
             .initial = {0, config.deviation},
             .decays = false,
             .weight = sinks});
  return sinks;
}

HeadNorms::HeadNorms(const std::string& name, const AttentionShapeConfig& config, const TensorShare& share,
                     ParameterStore& store)
    : head_width_(config.head_width) {
  const auto add = [&](const char* which) {
    return Norm(name + which, config.head_width, /*rms=*/true, /*bias=*/false, config.norm_epsilon, share, store,
                /*of_heads=*/true);
  };
  if (!config.norm) return;
  q_ = add(".q_norm");
  k_ = add(".k_norm");
}

void HeadNorms::forward(const Tensor& q, const Tensor& k, Saved& saved, Context& context) const {
  if (q_ && q) normalise_heads(*q_, head_width_, q, saved.q, context);
  if (k_ && k) normalise_heads(*k_, head_width_, k, saved.k, context);
}

void HeadNorms::backward(const Tensor& dq, const Tensor& dk, const Saved& saved, Context& context) const {
  if (q_ && dq) normalise_heads_backward(*q_, head_width_, dq, saved.q, context);
  if (k_ && dk) normalise_heads_backward(*k_, head_width_, dk, saved.k, context);
}

Tensor by_head(const Tensor& weight) { return weight ? weight.reshape({weight.count()}) : Tensor{}; }

void rotate_heads(const Tensor& x, const AttentionShapeConfig& config, bool inverse, Context& context) {
  if (config.rotary_positions == 0) return;
  const Tensor table = ops::rotary_table(context.runtime, config.rotary_positions, config.head_width,
                                         config.rotary_base, config.rotary_grid);
  ops::rotary(context.runtime, x, table, config.head_width, context.rows.map(), inverse, context.documents.positions);
}

AttentionSpec attention_spec(const std::string& name, const AttentionShapeConfig& config,
                             const HeadPartition& partition, std::int64_t rank, const Weight* sinks,
                             const Context& context) {
  return {.heads = partition,
          .tensor_rank = rank,
          .head_width = config.head_width,
          .band = config.band,
          .score = config.score,
          .dropout = {.p = context.training ? config.probability_dropout : 0,
                      .key = random_key(context.runtime.seed, name + ".probabilities"),
                      .scalars = context.runtime.step_scalars(),
                      .heads = config.heads,
                      .length = std::max(context.rows.length, context.source.rows.length),
                      .first_sample = context.rows.first_sample},
          .sinks = sinks ? by_head(sinks->value) : Tensor{},
          .sink_gradient = sinks ? by_head(sinks->gradient) : Tensor{},
          .routing = config.routing};
}

Attention::Attention(const std::string& name, const AttentionShapeConfig& config, const TensorShare& share,
                     ParameterStore& store)
    : config_(config),
      name_(name),
      partition_{config.heads, config.kv_heads, share.size},
      rank_(share.rank),
      qkv_(qkv_parts(name, config, partition_, share.rank), config.width, config.bias, config.deviation, store),
      out_(name + ".out", config.width, config.heads * config.head_width,
           times(partition_.query(share.rank), config.head_width), config.bias, config.out_deviation, share, store),
      sinks_(add_sinks(name, config, partition_, share, store)),
      norms_(name, config, share, store) {
  if (config.routing.chosen > 0)
    router_.emplace(name, config.width, config.heads, config.deviation, config.routing, share, store);
}

Tensor Attention::q_of(const Tensor& qkv) const {
  return qkv.slice_columns(0, partition_.query(rank_).count() * config_.head_width);
}

Tensor Attention::k_of(const Tensor& qkv) const {
  const std::int64_t begin = partition_.query(rank_).count() * config_.head_width;
  return qkv.slice_columns(begin, begin + partition_.key_value(rank_).count() * config_.head_width);
}

void Attention::rotate(const Tensor& qkv, bool inverse, Context& context) const {
  const std::int64_t heads = partition_.query(rank_).count() + partition_.key_value(rank_).count();
  const Tensor q_and_k = qkv.slice_columns(0, heads * config_.head_width);  // side by side: one call turns both
  rotate_heads(q_and_k, config_, inverse, context);
}

AttentionSpec Attention::spec(const Context& context) const {
  return attention_spec(name_, config_, partition_, rank_, sinks_, context);
}

/// qkv [n, ...] of the next n tokens of one sequence: adds their keys and values to the cache.
Tensor Attention::attend_to_cache(const Tensor& qkv, const KeyValueCache& cache, const Saved& saved,
                                  Context& context) const {
  Runtime& runtime = context.runtime;
  const auto [begin, end] = context.rows.runs[0];
  const std::int64_t heads = partition_.query(rank_).count(), kv_heads = partition_.key_value(rank_).count();
  const std::int64_t q = heads * config_.head_width, kv = kv_heads * config_.head_width;
  ops::copy(runtime, qkv.slice_columns(q, q + kv), cache.keys.slice_rows(begin, end));
  ops::copy(runtime, qkv.slice_columns(q + kv, q + 2 * kv), cache.values.slice_rows(begin, end));
  const ops::AttentionOptions all{
      .heads = heads,
      .kv_heads = kv_heads,
      .head_width = config_.head_width,
      .group_size = partition_.group_size(),
      .group_offset = partition_.group_offset(rank_),
      .band = kernels::band_between(config_.band, begin, 0),
      .score = kernels::score_between(config_.score, partition_.query(rank_).begin, begin, 0),
      .documents = context.documents.ranges,
      .first_query = begin};
  const ops::HeadRows& chosen = saved.router.rows;
  const ops::AttentionOptions options = router_ ? options_of_slots(all, chosen, spec(context), context.rows) : all;
  const Tensor queries = qkv.slice_columns(0, q);
  Tensor lse;
  const Tensor out = ops::attention(runtime, options, router_ ? to_slots(runtime, queries, {}, chosen) : queries,
                                    cache.keys.slice_rows(0, end), cache.values.slice_rows(0, end), lse);
  if (sinks_) ops::attention_sink(runtime, options, by_head(sinks_->value), out, lse);
  return router_ ? from_slots(runtime, out, chosen.gates, chosen) : out;
}

ops::Dropout Attention::dropout(const Context& context) const { return row_dropout(context, config_.dropout, name_); }

Tensor Attention::attend_heads(const Tensor& x, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  saved.x = keep(x);
  Tensor all = enter(x, context, name_.c_str());
  const Tensor qkv = qkv_.forward("attention qkv", all, context);
  if (router_) router_->choose(all, spec(context), saved.router, context);
  all = {};
  norms_.forward(q_of(qkv), k_of(qkv), saved.norms, context);
  rotate(qkv, false, context);
  const Tensor out = context.cache ? attend_to_cache(qkv, *context.cache, saved, context)
                     : router_     ? attend_chosen(qkv, saved.router.rows, spec(context), saved.attended, context)
                                   : attend(qkv, spec(context), saved.attended, context);
  if (context.attention)
    context.attention->entries[{name_, context.rows.first_sample}] = {
        .rows = context.rows,
        .qkv = qkv,
        .out = out,
        .lse = router_ ? lse_of_rows(runtime, saved.attended.lse, saved.router.rows, context.rows) : saved.attended.lse,
        .sinks = spec(context).sinks};
  return out;
}

ops::Branch Attention::forward(const Tensor& x, Saved& saved, Context& context) const {
  const Tensor out = attend_heads(x, saved, context);
  const Tensor y = out_.forward("attention out", out, context, name_.c_str());
  return {y, out_.bias(), dropout(context)};
}

void Attention::forget(Saved& saved) const { forget_all_but_input(saved); }

void Attention::compute_again(Saved& saved, Context& context) const {
  const Tensor x = saved.x;
  attend_heads(x, saved, context);
}

Tensor Attention::backward(const Tensor& dy, const Saved& saved, Context& context, Tensor* sum_of_dy) const {
  Runtime& runtime = context.runtime;
  const Tensor dbranch = out_.backward_residual(dy, dropout(context), sum_of_dy, context);
  const Tensor dsum = leave_backward(dbranch, context, name_.c_str());
  const Tensor dout = out_.backward_input("attention out", dsum, context);
  compute_weight_gradient(context, [this, dsum, out = saved.attended.out, chosen = saved.router.rows](Context& later) {
    const Tensor all =
        router_ ? from_slots(later.runtime, out, chosen.gates, chosen) : attended_here(out, spec(later), later);
    out_.backward_weight("attention out", dsum, all, later);
  });

  if (context.attention) context.attention->entries.at({name_, context.rows.first_sample}).dout = dout;
  Tensor dqkv, of_router;
  if (router_) {
    const ChosenGradients gradients =
        attend_chosen_backward(dout, saved.router.rows, spec(context), saved.attended, context);
    dqkv = gradients.dqkv;
    of_router = router_->backward(gradients.dgates, saved.x, spec(context), saved.router, context);
  } else {
    dqkv = attend_backward(dout, spec(context), saved.attended, context);
  }
  rotate(dqkv, true, context);
  norms_.backward(q_of(dqkv), k_of(dqkv), saved.norms, context);

  Tensor dall = qkv_.backward_input("attention qkv", dqkv, context);
  if (router_) dall = ops::residual(runtime, of_router, dall, {}, {});
  const PendingTensor dx = enter_backward(dall, context, name_.c_str());
  compute_weight_gradient(context, [this, dqkv, x = saved.x](Context& later) {
    qkv_.backward_weight("attention qkv", dqkv, enter(x, later, name_.c_str()), later);
  });
  return dx.wait(runtime);
}

KeyValueCache Attention::make_cache(std::int64_t positions, Runtime& runtime) const {
  const std::int64_t width = partition_.key_value(rank_).count() * config_.head_width;
  return {.keys = runtime.empty({positions, width}, runtime.compute_type, MemoryKind::saved),
          .values = runtime.empty({positions, width}, runtime.compute_type, MemoryKind::saved),
          .choices = {},
          .head_choices = router_ ? router_->make_cache(runtime) : Tensor{},
          .source = {}};
}

}  // namespace choir
