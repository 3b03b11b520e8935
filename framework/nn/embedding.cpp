#include "framework/nn/embedding.h"

#include <algorithm>

#include "framework/ops/elementwise.h"
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

Places::Places(const std::string& name, const LearnedPositions& positions, std::int64_t width, float deviation,
               double dropout, const TensorShare& share, ParameterStore& store)
    : name_(name), dropout_(dropout), grid_(positions.grid), texts_(positions.texts) {
  const auto add = [&](Of of, const char* table, std::int64_t count) {
    Weight* weight = store.add_weight(count, width, true);
    store.add({.name = name + table,
               .shape = {count, width},
               .held = {0, count, 0, width},
               .owned_end = share.rank == 0 ? count : 0,
               .tensor_sum = share.whole_tensor_sum(),
               .initial = {0, deviation},
               .weight = weight});
    tables_.push_back({of, weight});
  };
  if (texts_ > 1) add(Of::text, ".text.weight", texts_);
  if (positions.count > 0 && !grid_.is_given()) add(Of::position, ".position.weight", positions.count);
  if (positions.count == 0 || !grid_.is_given()) return;
  add(Of::row, ".position.row.weight", grid_.first + grid_.rows);
  add(Of::column, ".position.column.weight", grid_.first + grid_.columns);
}

Tensor Places::indices(const Table& table, std::int64_t rows, Context& context) const {
  const std::int64_t first = context.rows.share().begin;
  if (table.of == Of::position)
    return context.documents.positions ? context.documents.positions.slice_columns(first, first + rows) : Tensor{};
  const auto index = [&](const kernels::RowMap::Place& at) {
    if (table.of == Of::text) return (context.rows.first_sample + at.sequence) % texts_;
    const kernels::Grid::Place square = grid_.place(at.position);
    return table.of == Of::row ? square.row : square.column;
  };
  std::vector<std::int32_t> of_rows(static_cast<std::size_t>(rows));  // 0 in the padding of the last share
  for (std::int64_t row = 0; row < std::min(rows, context.rows.count() - first); ++row)
    of_rows[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(index(context.rows.map().place(first + row)));
  return ops::to_device(context.runtime, of_rows, DType::i32);
}

Tensor Places::forward(const Tensor& x, Context& context) const {
  Runtime& runtime = context.runtime;
  Tensor placed = x;
  for (const Table& table : tables_)
    placed = ops::add_position(runtime, placed, table.weight->value, context.rows.share_map(),
                               indices(table, x.rows(), context));
  const ops::Dropout dropped = row_dropout(context, dropout_, name_);
  return dropped.p > 0 ? ops::residual(runtime, {}, placed, {}, dropped) : placed;
}

Tensor Places::backward(const Tensor& dx, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor d = ops::residual_backward(runtime, dx, row_dropout(context, dropout_, name_));
  for (const Table& table : tables_) {
    if (const Tensor given = indices(table, d.rows(), context))
      ops::embedding_backward(runtime, given, d, table.weight->gradient, 0);
    else
      ops::add_position_backward(runtime, d, table.weight->gradient, context.rows.share_map());
  }
  return d;
}

Embedding::Embedding(const std::string& name, const VocabularyTable& table, const LearnedPositions& positions,
                     double dropout, const TensorShare& share, ParameterStore& store)
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
