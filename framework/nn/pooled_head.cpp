#include "framework/nn/pooled_head.h"

#include "framework/ops/elementwise.h"
#include "framework/ops/pool.h"

namespace choir {

PooledHead::PooledHead(const VocabularyTable& table, const kernels::Run& positions, const TensorShare& share,
                       ParameterStore& store)
    : positions_(positions), head_(table, share, store) {}

Tensor PooledHead::loss(const Tensor& x, const Tensor& targets, const Tensor& loss_sum, const Tensor& right,
                        double scale, bool gradient, Context& context) const {
  Runtime& runtime = context.runtime;
  const kernels::RowMap map = context.rows.share_map();
  const Tensor& documents = context.documents.ranges;
  const Tensor means = ops::pool(runtime, x, map, positions_, documents);
  Stream& stream = runtime.device.compute();
  context.mesh.context->all_reduce(means, Reduce::sum, stream, "pool");
  if (context.rows.is_split()) context.mesh.tensor->all_reduce(means, Reduce::sum, stream, "pool");
  const Tensor pooled = runtime.empty({means.rows(), means.width()}, x.dtype());
  ops::narrow(runtime, means, pooled);

  Context of_sequences = context;  // a row for each, on every rank
  of_sequences.rows = whole_rows(context.rows.sequences, 1, context.rows.first_sample);
  const Tensor dpooled = head_.loss(pooled, targets, loss_sum, right, scale, gradient, of_sequences);
  if (!gradient) return {};
  context.mesh.context->all_reduce(dpooled, Reduce::sum, stream, "pool");  // of one rank; the others have no targets
  return ops::pool_backward(runtime, dpooled, x.rows(), map, positions_, documents);
}

}  // namespace choir
