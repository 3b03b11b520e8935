#include "framework/nn/embedding.h"

#include "framework/ops/embedding.h"

namespace choir {

VocabularySlice vocabulary_slice(std::int64_t vocabulary, const TensorShare& share) {
  const Slice slice = even_slice(vocabulary, share.size, share.rank);
  const std::int64_t largest = even_slice(vocabulary, share.size, 0).count();
  return {slice.begin, slice.end, (largest + 7) / 8 * 8};
}

Weight* vocabulary_table(const VocabularyTable& table, const TensorShare& share, ParameterStore& store, bool owned) {
  if (const Parameter* there = store.find(table.name)) return there->weight;
  const VocabularySlice slice = vocabulary_slice(table.vocabulary, share);
  Weight* weight = store.add_weight(slice.rows, table.width, true);
  store.add({.name = table.name,
             .shape = {table.vocabulary, table.width},
             .held = {slice.begin, slice.end, 0, table.width},
             .owned_end = owned ? slice.count() : 0,
             .initial = {0, table.deviation},
             .weight = weight});
  return weight;
}

Places::Places(const std::string& name, std::int64_t positions, std::int64_t width, float deviation, double dropout,
               const TensorShare& share, ParameterStore& store)
    : name_(name), dropout_(dropout) {
  if (positions == 0) return;
  position_ = store.add_weight(positions, width, true);
  store.add({.name = name + ".position.weight",
             .shape = {positions, width},
             .held = {0, positions, 0, width},
             .owned_end = share.rank == 0 ? positions : 0,
             .tensor_sum = share.whole_tensor_sum(),
             .initial = {0, deviation},
             .weight = position_});
}

/// Of the rows of x, in their documents; empty if a sequence is one document.
static Tensor positions_of(const Tensor& x, const Context& context) {
  const std::int64_t first = context.rows.share().begin;
  return context.documents.positions ? context.documents.positions.slice_columns(first, first + x.rows()) : Tensor{};
}

Tensor Places::forward(const Tensor& x, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor placed =
      position_ ? ops::add_position(runtime, x, position_->value, context.rows.share_map(), positions_of(x, context))
                : x;
  const ops::Dropout dropped = row_dropout(context, dropout_, name_);
  return dropped.p > 0 ? ops::residual(runtime, {}, placed, {}, dropped) : placed;
}

Tensor Places::backward(const Tensor& dx, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor d = ops::residual_backward(runtime, dx, row_dropout(context, dropout_, name_));
  if (position_ && context.documents.positions)
    ops::embedding_backward(runtime, positions_of(d, context), d, position_->gradient, 0);
  else if (position_)
    ops::add_position_backward(runtime, d, position_->gradient, context.rows.share_map());
  return d;
}

Embedding::Embedding(const std::string& name, const VocabularyTable& table, std::int64_t positions, double dropout,
                     const TensorShare& share, ParameterStore& store)
    : slice_(vocabulary_slice(table.vocabulary, share)),
      token_(vocabulary_table(table, share, store)),
      places_(name, positions, table.width, table.deviation, dropout, share, store) {}

Tensor Embedding::forward(const Tensor& ids, Saved& saved, Context& context) const {
  saved.ids = keep(ids);
  const Tensor table = token_->value.slice_rows(0, slice_.count());
  return places_.forward(leave(ops::embedding(context.runtime, ids, table, slice_.begin), context, "embedding"),
                         context);
}

void Embedding::backward(const Tensor& dx, const Saved& saved, Context& context) const {
  ops::embedding_backward(context.runtime, saved.ids,
                          leave_backward(places_.backward(dx, context), context, "embedding"),
                          token_->gradient.slice_rows(0, slice_.count()), slice_.begin);
}

}  // namespace choir
