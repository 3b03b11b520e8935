#include "framework/nn/cross_attention.h"

#include <algorithm>
#include <array>

#include "framework/ops/attention.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

constexpr std::array projections = {Projection::query, Projection::key, Projection::value};

TokenStream stream_of(const Sources& sources, Projection projection) {
  switch (projection) {
    case Projection::query:
      return sources.queries;
    case Projection::key:
      return sources.keys;
    case Projection::value:
      break;
  }
  return sources.values;
}

/// Of q, k and v those that `stream` gives.
std::vector<ColumnPart> parts_of(TokenStream stream, const Sources& sources, std::vector<ColumnPart> qkv) {
  std::vector<ColumnPart> parts;
  for (std::size_t i = 0; i < projections.size(); ++i)
    if (stream_of(sources, projections[i]) == stream) parts.push_back(std::move(qkv[i]));
  return parts;
}

/// The context of attention that sees what has a token in the source.
Context seeing_source(const Context& context) {
  Context seeing = context;
  seeing.documents = seen_of_source(context);
  return seeing;
}

}  // namespace

CrossAttention::CrossAttention(const std::string& name, const AttentionShapeConfig& config, const Sources& sources,
                               const TensorShare& share, ParameterStore& store)
    : config_(config),
      sources_(sources),
      name_(name),
      partition_{config.heads, config.kv_heads, share.size},
      rank_(share.rank),
      of_target_(parts_of(TokenStream::target, sources, qkv_parts(name, config, partition_, share.rank)), config.width,
                 config.bias, config.deviation, store),
      of_source_(parts_of(TokenStream::source, sources, qkv_parts(name, config, partition_, share.rank)), config.width,
                 config.bias, config.deviation, store),
      out_(name + ".out", config.width, config.heads * config.head_width,
           {partition_.query(share.rank).begin * config.head_width,
            partition_.query(share.rank).end * config.head_width},
           config.bias, config.out_deviation, share, store),
      sinks_(add_sinks(name, config, partition_, share, store)),
      q_norm_(add_head_norm(name, "q_norm", config, share, store)),
      k_norm_(add_head_norm(name, "k_norm", config, share, store)) {
  if (sources.are_aligned()) return;
  config_.band = kernels::full_band();
  config_.score.alibi_heads = 0;
  config_.rotary_positions = 0;
}

AttentionSpec CrossAttention::spec(const Context& context) const {
  return attention_spec(name_, config_, partition_, rank_, sinks_, context);
}

ops::Dropout CrossAttention::dropout(const Context& context) const {
  return row_dropout(context, config_.dropout, name_);
}

std::int64_t CrossAttention::width(Projection projection) const {
  const Slice heads = projection == Projection::query ? partition_.query(rank_) : partition_.key_value(rank_);
  return heads.count() * config_.head_width;
}

template <class Body>
void CrossAttention::for_each_of(TokenStream stream, const Body& body) const {
  for (const Projection projection : projections)
    if (stream_of(sources_, projection) == stream) body(projection);
}

Tensor CrossAttention::in_product(const Tensor& x, Projection projection) const {
  std::int64_t begin = 0;
  for_each_of(stream_of(sources_, projection),
              [&](Projection other) { begin += other < projection ? width(other) : 0; });
  return x.slice_columns(begin, begin + width(projection));
}

Tensor CrossAttention::in_qkv(const Tensor& x, Projection projection) const {
  std::int64_t begin = 0;
  for (const Projection other : projections) begin += other < projection ? width(other) : 0;
  return x.slice_columns(begin, begin + width(projection));
}

std::int64_t CrossAttention::product_width(TokenStream stream) const {
  std::int64_t sum = 0;
  for_each_of(stream, [&](Projection projection) { sum += width(projection); });
  return sum;
}

/// What `stream` gives of q, k and v, side by side, of its rows `x`; the context is that of these rows.
Tensor CrossAttention::project(TokenStream stream, const Tensor& x, Saved& saved, Context& context) const {
  const bool is_target = stream == TokenStream::target;
  (is_target ? saved.x : saved.memory) = keep(x);
  const Tensor product = (is_target ? of_target_ : of_source_)
                             .forward(is_target ? "cross-attention target" : "cross-attention source",
                                      enter(x, context, name_.c_str()), context);
  for_each_of(stream, [&](Projection projection) {
    if (projection == Projection::value) return;
    const bool is_query = projection == Projection::query;
    const Tensor part = in_product(product, projection);
    if (const auto& norm = is_query ? q_norm_ : k_norm_)
      normalise_heads(*norm, config_.head_width, part, is_query ? saved.q_norm : saved.k_norm, context);
    rotate_heads(part, config_, false, context);
  });
  return product;
}

/// The gradient of the input of project() [rows held, D], pending; that of the weights is added.
PendingTensor CrossAttention::project_backward(TokenStream stream, const Tensor& dproduct, const Saved& saved,
                                               Context& context) const {
  for_each_of(stream, [&](Projection projection) {
    if (projection == Projection::value) return;
    const bool is_query = projection == Projection::query;
    const Tensor part = in_product(dproduct, projection);
    rotate_heads(part, config_, true, context);
    if (const auto& norm = is_query ? q_norm_ : k_norm_)
      normalise_heads_backward(*norm, config_.head_width, part, is_query ? saved.q_norm : saved.k_norm, context);
  });
  const bool is_target = stream == TokenStream::target;
  return enter_backward(
      (is_target ? of_target_ : of_source_)
          .backward_input(is_target ? "cross-attention target" : "cross-attention source", dproduct, context),
      context, name_.c_str());
}

/// q, k, v side by side [rows held, (H + 2 K) E held], of what the two streams give.
Tensor CrossAttention::align(const Tensor& from_target, const Tensor& from_source, Context& context) const {
  const Tensor qkv =
      context.runtime.empty({from_target.rows(), from_target.width() + from_source.width()}, from_target.dtype());
  for (const Projection projection : projections) {
    const Tensor& from = stream_of(sources_, projection) == TokenStream::target ? from_target : from_source;
    ops::copy(context.runtime, in_product(from, projection), in_qkv(qkv, projection));
  }
  return qkv;
}

/// The way back: of a gradient of q, k and v, what belongs to one stream.
Tensor CrossAttention::of_stream(TokenStream stream, const Tensor& dqkv, Context& context) const {
  const Tensor dproduct = context.runtime.empty({dqkv.rows(), product_width(stream)}, dqkv.dtype());
  for_each_of(stream, [&](Projection projection) {
    ops::copy(context.runtime, in_qkv(dqkv, projection), in_product(dproduct, projection));
  });
  return dproduct;
}

/// x [n, D] of some tokens of one sequence.
Tensor CrossAttention::attend_to_cache(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const KeyValueCache& cache = *context.cache;
  const auto [begin, end] = context.rows.runs[0];
  const std::int64_t source_length = context.source.rows.length;
  const Tensor from_target = project(TokenStream::target, x, saved, context);
  if (context.source.rows.count() > 0) {
    Context source = of_source(context);
    ops::copy(runtime, project(TokenStream::source, memory, saved, source), cache.source.slice_rows(0, source_length));
  }
  for_each_of(TokenStream::target, [&](Projection projection) {
    if (projection != Projection::query)
      ops::copy(runtime, in_product(from_target, projection), cache.aligned.slice_rows(begin, end));
  });
  // Of aligned streams, what both have.
  const std::int64_t positions = cache.aligned ? std::min(end, source_length) : source_length;
  const auto cached = [&](Projection projection) {
    const bool is_target = stream_of(sources_, projection) == TokenStream::target;
    return (is_target ? cache.aligned : in_product(cache.source, projection)).slice_rows(0, positions);
  };
  const ops::AttentionOptions options{
      .heads = partition_.query(rank_).count(),
      .kv_heads = partition_.key_value(rank_).count(),
      .head_width = config_.head_width,
      .group_size = partition_.group_size(),
      .group_offset = partition_.group_offset(rank_),
      .band = kernels::band_between(config_.band, begin, 0),
      .score = kernels::score_between(config_.score, partition_.query(rank_).begin, begin, 0)};
  Tensor lse;
  const Tensor out = ops::attention(runtime, options, in_product(from_target, Projection::query),
                                    cached(Projection::key), cached(Projection::value), lse);
  if (sinks_) ops::attention_sink(runtime, options, by_head(sinks_->value), out, lse);
  return out;
}

Tensor CrossAttention::attend_to_both(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  Context source = of_source(context);
  Tensor from_target = project(TokenStream::target, x, saved, context);
  Tensor from_source = project(TokenStream::source, memory, saved, source);
  AttentionRecord::Entry entry{.rows = context.rows, .sinks = spec(context).sinks};
  if (sources_.are_aligned()) {
    Context seeing = seeing_source(context);
    entry.qkv = align(from_target, from_source, context);
    from_target = from_source = {};
    entry.out = attend(entry.qkv, spec(context), saved.aligned, seeing);
    entry.lse = saved.aligned.lse;
  } else {
    entry.qkv = from_target;
    entry.kv_rows = source.rows;
    entry.kv = from_source;
    entry.out = attend_across(from_target, from_source, spec(context), saved.across, context);
    entry.lse = saved.across.lse;
  }
  if (context.attention) context.attention->entries[{name_, context.rows.first_sample}] = entry;
  return entry.out;
}

Tensor CrossAttention::forward(const Tensor& x, const Tensor& memory, const Tensor& residual, Saved& saved,
                               Context& context) const {
  const Tensor out =
      context.cache ? attend_to_cache(x, memory, saved, context) : attend_to_both(x, memory, saved, context);
  const Tensor y = leave(out_.forward("cross-attention out", out, context), context, name_.c_str());
  return ops::residual(context.runtime, residual, y, out_.bias(), dropout(context));
}

CrossAttention::Gradients CrossAttention::backward(const Tensor& dy, const Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor dbranch = out_.backward_residual(dy, dropout(context), nullptr, context);
  const Tensor dsum = leave_backward(dbranch, context, name_.c_str());
  const Tensor dout = out_.backward_input("cross-attention out", dsum, context);
  const bool aligned = sources_.are_aligned();
  compute_weight_gradient(context, [this, aligned, dsum,
                                    out = aligned ? saved.aligned.out : saved.across.out](Context& later) {
    out_.backward_weight("cross-attention out", dsum, aligned ? attended_here(out, spec(later), later) : out, later);
  });
  if (context.attention) context.attention->entries.at({name_, context.rows.first_sample}).dout = dout;

  Tensor dtarget, dsource;
  if (aligned) {
    Context seeing = seeing_source(context);
    const Tensor dqkv = attend_backward(dout, spec(context), saved.aligned, seeing);
    dtarget = of_stream(TokenStream::target, dqkv, context);
    dsource = of_stream(TokenStream::source, dqkv, context);
  } else {
    const AcrossGradients gradients = attend_across_backward(dout, spec(context), saved.across, context);
    dtarget = gradients.dq;
    dsource = gradients.dkv;
  }
  Context source = of_source(context);
  const PendingTensor dx = project_backward(TokenStream::target, dtarget, saved, context);
  const PendingTensor dmemory = project_backward(TokenStream::source, dsource, saved, source);
  compute_weight_gradient(context, [this, dtarget, dsource, x = saved.x, memory = saved.memory](Context& later) {
    Context later_source = of_source(later);
    of_target_.backward_weight("cross-attention target", dtarget, enter(x, later, name_.c_str()), later);
    of_source_.backward_weight("cross-attention source", dsource, enter(memory, later_source, name_.c_str()),
                               later_source);
  });
  return {.dx = dx.wait(runtime), .dmemory = dmemory.wait(runtime)};
}

void CrossAttention::add_to_cache(KeyValueCache& cache, std::int64_t positions, std::int64_t source_positions,
                                  Runtime& runtime) const {
  cache.source =
      runtime.empty({source_positions, product_width(TokenStream::source)}, runtime.compute_type, MemoryKind::saved);
  if (sources_.are_aligned())
    cache.aligned = runtime.empty({positions, width(Projection::key)}, runtime.compute_type, MemoryKind::saved);
}

}  // namespace choir
