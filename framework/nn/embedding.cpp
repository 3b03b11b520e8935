#include "framework/nn/embedding.h"

#include "framework/ops/embedding.h"

namespace choir {

VocabularySlice vocabulary_slice(std::int64_t vocabulary, const TensorShare& share) {
  const Slice slice = even_slice(vocabulary, share.size, share.rank);
  const std::int64_t largest = even_slice(vocabulary, share.size, 0).count();
  return {slice.begin, slice.end, (largest + 7) / 8 * 8};
}

Weight* add_vocabulary_table(const std::string& name, std::int64_t vocabulary, std::int64_t width, float deviation,
                             const TensorShare& share, ParameterStore& store) {
  const VocabularySlice slice = vocabulary_slice(vocabulary, share);
  Weight* table = store.add_weight(slice.rows, width, true);
  store.add({.name = name,
             .shape = {vocabulary, width},
             .held = {slice.begin, slice.end, 0, width},
             .owned_end = slice.count(),
             .initial = {0, deviation},
             .weight = table});
  return table;
}

Embedding::Embedding(std::int64_t vocabulary, std::int64_t width, std::int64_t positions, double dropout,
                     float deviation, const TensorShare& share, ParameterStore& store)
    : slice_(vocabulary_slice(vocabulary, share)), dropout_(dropout) {
  token_ = add_vocabulary_table("embedding.token.weight", vocabulary, width, deviation, share, store);
  if (positions == 0) return;
  position_ = store.add_weight(positions, width, true);
  store.add({.name = "embedding.position.weight",
             .shape = {positions, width},
             .held = {0, positions, 0, width},
             .owned_end = share.rank == 0 ? positions : 0,
             .tensor_sum = share.whole_tensor_sum(),
             .initial = {0, deviation},
             .weight = position_});
}

ops::Dropout Embedding::dropout(const Context& context) const { return row_dropout(context, dropout_, "embedding"); }

Tensor Embedding::look_up(const Tensor& ids, Context& context) const {
  return leave(ops::embedding(context.runtime, ids, token_->value.slice_rows(0, slice_.count()), slice_.begin), context,
               "embedding");
}

Tensor Embedding::forward(const Tensor& ids, Saved& saved, Context& context) const {
  saved.ids = keep(ids);
  Tensor x = look_up(ids, context);
  if (position_)
    x = ops::add_position(context.runtime, x, position_->value, context.length, row_share(context).begin, 0);
  const ops::Dropout dropped = dropout(context);
  return dropped.p > 0 ? ops::residual(context.runtime, {}, x, {}, dropped) : x;
}

void Embedding::backward(const Tensor& dx, const Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor d = ops::residual_backward(runtime, dx, dropout(context));
  if (position_) ops::add_position_backward(runtime, d, position_->gradient, context.length, row_share(context).begin);
  ops::embedding_backward(runtime, saved.ids, leave_backward(d, context, "embedding"),
                          token_->gradient.slice_rows(0, slice_.count()), slice_.begin);
}

Tensor Embedding::generate(const Tensor& ids, std::int64_t position, Context& context) const {
  const Tensor x = look_up(ids, context);
  return position_ ? ops::add_position(context.runtime, x, position_->value, x.rows(), 0, position) : x;
}

}  // namespace choir
