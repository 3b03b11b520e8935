#include "framework/nn/cross_attention.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "framework/nn/text_rows.h"
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

/// The streams that an encoder gives and `sources` read, in the order of their texts.
std::vector<TokenStream> streams_of_memory(const Sources& sources) {
  if (sources.read(TokenStream::second_source)) return {TokenStream::source, TokenStream::second_source};
  return {TokenStream::source};
}

std::vector<ColumnLinear> make_texts(const std::vector<TokenStream>& streams, const Sources& sources,
                                     const std::vector<ColumnPart>& qkv, const AttentionShapeConfig& config,
                                     ParameterStore& store) {
  std::vector<ColumnLinear> texts;
  for (const TokenStream stream : streams)
    texts.emplace_back(parts_of(stream, sources, qkv), config.width, config.bias, config.deviation, store);
  return texts;
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
      streams_(streams_of_memory(sources)),
      of_texts_(make_texts(streams_, sources, qkv_parts(name, config, partition_, share.rank), config, store)),
      out_(name + ".out", config.width, config.heads * config.head_width,
           {partition_.query(share.rank).begin * config.head_width,
            partition_.query(share.rank).end * config.head_width},
           config.bias, config.out_deviation, share, store),
      sinks_(add_sinks(name, config, partition_, share, store)),
      norms_(name, config, share, store) {
  config_.routing = {};
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

CrossAttention::Side CrossAttention::side_of(Projection projection) const {
  return stream_of(sources_, projection) == TokenStream::target ? Side::target : Side::source;
}

template <class Body>
void CrossAttention::for_each_of(Side side, const Body& body) const {
  for (const Projection projection : projections)
    if (side_of(projection) == side) body(projection);
}

Tensor CrossAttention::in_product(const Tensor& x, Projection projection) const {
  std::int64_t begin = 0;
  for_each_of(side_of(projection), [&](Projection other) { begin += other < projection ? width(other) : 0; });
  return x.slice_columns(begin, begin + width(projection));
}

Tensor CrossAttention::in_qkv(const Tensor& x, Projection projection) const {
  std::int64_t begin = 0;
  for (const Projection other : projections) begin += other < projection ? width(other) : 0;
  return x.slice_columns(begin, begin + width(projection));
}

std::int64_t CrossAttention::product_width(Side side) const {
  std::int64_t sum = 0;
  for_each_of(side, [&](Projection projection) { sum += width(projection); });
  return sum;
}

/// The context of attention: of the source it has the rows that keys and values are of, those of one text.
Context CrossAttention::reading(const Context& context) const {
  Context one = context;
  one.source.rows = rows_of_a_text(context.source.rows, texts());
  return one;
}

/// Norms and rotary of what a side gives of q and k, in place; the context is that of its rows.
void CrossAttention::place(Side side, const Tensor& product, Saved& saved, Context& context) const {
  for_each_of(side, [&](Projection projection) {
    if (projection == Projection::value) return;
    const bool is_query = projection == Projection::query;
    const Tensor part = in_product(product, projection);
    norms_.forward(is_query ? part : Tensor{}, is_query ? Tensor{} : part, saved.norms, context);
    rotate_heads(part, config_, false, context);
  });
}

void CrossAttention::place_backward(Side side, const Tensor& dproduct, const Saved& saved, Context& context) const {
  for_each_of(side, [&](Projection projection) {
    if (projection == Projection::value) return;
    const bool is_query = projection == Projection::query;
    const Tensor part = in_product(dproduct, projection);
    rotate_heads(part, config_, true, context);
    norms_.backward(is_query ? part : Tensor{}, is_query ? Tensor{} : part, saved.norms, context);
  });
}

/// What x gives of q, k and v, side by side [N, ...].
Tensor CrossAttention::project_target(const Tensor& x, Saved& saved, Context& context) const {
  saved.x = keep(x);
  const Tensor product = of_target_.forward("cross-attention target", enter(x, context, name_.c_str()), context);
  place(Side::target, product, saved, context);
  return product;
}

/// What the memory gives of k and v, side by side, for the rows of reading(); each text its own. The context is that of
/// the decoder's rows.
Tensor CrossAttention::project_source(const Tensor& memory, Saved& saved, Context& context) const {
  Context source = of_source(context), one = of_source(reading(context));
  saved.memory = keep(memory);
  const Tensor all = enter(memory, source, name_.c_str());
  std::vector<Tensor> products;
  for (std::size_t text = 0; text < of_texts_.size(); ++text)
    products.push_back(of_texts_[text].forward(
        "cross-attention source",
        text_rows(context.runtime, all, source.rows, texts(), static_cast<std::int64_t>(text)), one));
  Tensor product = products[0];
  if (texts() > 1) {
    product = context.runtime.empty({product.rows(), product_width(Side::source)}, product.dtype());
    for_each_of(Side::source, [&](Projection projection) {
      const auto text = std::ranges::find(streams_, stream_of(sources_, projection)) - streams_.begin();
      ops::copy(context.runtime, products[static_cast<std::size_t>(text)], in_product(product, projection));
    });
  }
  place(Side::source, product, saved, one);
  return product;
}

/// Of what the memory gives, the columns of one text.
Tensor CrossAttention::of_text(const Tensor& product, std::int64_t text, Context& context) const {
  if (texts() == 1) return product;
  Tensor part;
  for_each_of(Side::source, [&](Projection projection) {
    if (stream_of(sources_, projection) == streams_[static_cast<std::size_t>(text)])
      part = ops::contiguous(context.runtime, in_product(product, projection));
  });
  return part;
}

/// The gradient of x [rows held, D], pending; that of the weights is computed elsewhere.
PendingTensor CrossAttention::project_target_backward(const Tensor& dproduct, const Saved& saved,
                                                      Context& context) const {
  place_backward(Side::target, dproduct, saved, context);
  return enter_backward(of_target_.backward_input("cross-attention target", dproduct, context), context, name_.c_str());
}

/// The same of the memory.
PendingTensor CrossAttention::project_source_backward(const Tensor& dproduct, const Saved& saved,
                                                      Context& context) const {
  Context source = of_source(context), one = of_source(reading(context));
  place_backward(Side::source, dproduct, saved, one);
  std::vector<Tensor> gradients;
  for (std::int64_t text = 0; text < texts(); ++text)
    gradients.push_back(of_texts_[static_cast<std::size_t>(text)].backward_input(
        "cross-attention source", of_text(dproduct, text, context), one));
  return enter_backward(join_texts(context.runtime, gradients, source.rows), source, name_.c_str());
}

/// q, k, v side by side [rows held, (H + 2 K) E held], of what the two sides give.
Tensor CrossAttention::align(const Tensor& from_target, const Tensor& from_source, Context& context) const {
  const Tensor qkv =
      context.runtime.empty({from_target.rows(), from_target.width() + from_source.width()}, from_target.dtype());
  for (const Projection projection : projections) {
    const Tensor& from = side_of(projection) == Side::target ? from_target : from_source;
    ops::copy(context.runtime, in_product(from, projection), in_qkv(qkv, projection));
  }
  return qkv;
}

/// The way back: of a gradient of q, k and v, what belongs to one side.
Tensor CrossAttention::of_side(Side side, const Tensor& dqkv, Context& context) const {
  const Tensor dproduct = context.runtime.empty({dqkv.rows(), product_width(side)}, dqkv.dtype());
  for_each_of(side, [&](Projection projection) {
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
  const Tensor from_target = project_target(x, saved, context);
  if (context.source.rows.count() > 0)
    ops::copy(runtime, project_source(memory, saved, context), cache.source.slice_rows(0, source_length));
  for_each_of(Side::target, [&](Projection projection) {
    if (projection != Projection::query)
      ops::copy(runtime, in_product(from_target, projection), cache.aligned.slice_rows(begin, end));
  });
  // Of aligned streams, what both have.
  const std::int64_t positions = cache.aligned ? std::min(end, source_length) : source_length;
  const auto cached = [&](Projection projection) {
    return (side_of(projection) == Side::target ? cache.aligned : in_product(cache.source, projection))
        .slice_rows(0, positions);
  };
  const ops::AttentionOptions options{
      .heads = partition_.query(rank_).count(),
      .kv_heads = partition_.key_value(rank_).count(),
      .head_width = config_.head_width,
      .group_size = partition_.group_size(),
      .group_offset = partition_.group_offset(rank_),
      .band = kernels::band_between(config_.band, begin, 0),
      .score = kernels::score_between(config_.score, partition_.query(rank_).begin, begin, 0),
      .documents = context.source.seen,
      .first_query = seen_of_source(context).first_query + begin};
  Tensor lse;
  const Tensor out = ops::attention(runtime, options, in_product(from_target, Projection::query),
                                    cached(Projection::key), cached(Projection::value), lse);
  if (sinks_) ops::attention_sink(runtime, options, by_head(sinks_->value), out, lse);
  return out;
}

Tensor CrossAttention::attend_to_both(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  Context one = reading(context);
  Tensor from_target = project_target(x, saved, context);
  Tensor from_source = project_source(memory, saved, context);
  AttentionRecord::Entry entry{.rows = context.rows, .sinks = spec(context).sinks};
  if (sources_.are_aligned()) {
    Context seeing = seeing_source(context);
    entry.qkv = align(from_target, from_source, context);
    from_target = from_source = {};
    entry.out = attend(entry.qkv, spec(context), saved.aligned, seeing);
    entry.lse = saved.aligned.lse;
  } else {
    entry.qkv = from_target;
    entry.kv_rows = one.source.rows;
    entry.kv = from_source;
    entry.out = attend_across(from_target, from_source, spec(context), saved.across, one);
    entry.lse = saved.across.lse;
  }
  if (context.attention) context.attention->entries[{name_, context.rows.first_sample}] = entry;
  return entry.out;
}

ops::Branch CrossAttention::forward(const Tensor& x, const Tensor& memory, Saved& saved, Context& context) const {
  const Tensor out =
      context.cache ? attend_to_cache(x, memory, saved, context) : attend_to_both(x, memory, saved, context);
  const Tensor y = out_.forward("cross-attention out", out, context, name_.c_str());
  return {y, out_.bias(), dropout(context)};
}

void CrossAttention::forget(Saved& saved) const {
  Saved kept;
  kept.x = saved.x;
  kept.memory = saved.memory;
  saved = std::move(kept);
}

void CrossAttention::compute_again(Saved& saved, Context& context) const {
  const Tensor x = saved.x, memory = saved.memory;
  attend_to_both(x, memory, saved, context);
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
    dtarget = of_side(Side::target, dqkv, context);
    dsource = of_side(Side::source, dqkv, context);
  } else {
    Context one = reading(context);
    const AcrossGradients gradients = attend_across_backward(dout, spec(context), saved.across, one);
    dtarget = gradients.dq;
    dsource = gradients.dkv;
  }
  const PendingTensor dx = project_target_backward(dtarget, saved, context);
  const PendingTensor dmemory = project_source_backward(dsource, saved, context);
  compute_weight_gradient(context, [this, dtarget, dsource, x = saved.x, memory = saved.memory](Context& later) {
    Context source = of_source(later), one = of_source(reading(later));
    of_target_.backward_weight("cross-attention target", dtarget, enter(x, later, name_.c_str()), later);
    const Tensor all = enter(memory, source, name_.c_str());
    for (std::int64_t text = 0; text < texts(); ++text)
      of_texts_[static_cast<std::size_t>(text)].backward_weight(
          "cross-attention source", of_text(dsource, text, later),
          text_rows(later.runtime, all, source.rows, texts(), text), one);
  });
  return {.dx = dx.wait(runtime), .dmemory = dmemory.wait(runtime)};
}

void CrossAttention::add_to_cache(KeyValueCache& cache, std::int64_t positions, std::int64_t source_positions,
                                  Runtime& runtime) const {
  cache.source =
      runtime.empty({source_positions, product_width(Side::source)}, runtime.compute_type, MemoryKind::saved);
  if (sources_.are_aligned())
    cache.aligned = runtime.empty({positions, width(Projection::key)}, runtime.compute_type, MemoryKind::saved);
}

}  // namespace choir
