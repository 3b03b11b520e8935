#include "framework/nn/patch_embedding.h"

#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"

namespace choir {

PatchEmbedding::PatchEmbedding(const VocabularyTable& table, const LearnedPositions& positions, double dropout,
                               const TensorShare& share, ParameterStore& store)
    : slice_(vocabulary_slice(table.vocabulary, share)),
      table_(vocabulary_table(table, share, store)),
      places_("embedding", positions, table.width, table.deviation, dropout, share, store) {}

// The rows of the table are the inputs of the product, so y = x W, which is what a linear layer computes as the
// gradient of its input.
Tensor PatchEmbedding::forward(const Tensor& patches, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor held = runtime.empty({patches.rows(), slice_.rows}, patches.dtype());
  ops::fill(runtime, held, 0.0f);
  if (slice_.count() > 0)
    ops::copy(runtime, patches.slice_columns(slice_.begin, slice_.end), held.slice_columns(0, slice_.count()));
  saved.patches = keep(held);
  const Tensor partial = ops::linear_input_gradient(runtime, "embedding", held, table_->value);
  return places_.forward(leave(partial, context, "embedding"), context);
}

void PatchEmbedding::backward(const Tensor& dx, const Saved& saved, Context& context) const {
  const Tensor dy = leave_backward(places_.backward(dx, context), context, "embedding");
  ops::linear_weight_gradient(context.runtime, "embedding", saved.patches, dy, table_->gradient);
}

}  // namespace choir
