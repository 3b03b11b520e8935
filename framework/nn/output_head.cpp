#include "framework/nn/output_head.h"

#include <algorithm>

#include "framework/ops/cross_entropy.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"

namespace choir {

OutputHead::OutputHead(const VocabularyTable& table, const TensorShare& share, ParameterStore& store)
    : vocabulary_(table.vocabulary),
      slice_(vocabulary_slice(table.vocabulary, share)),
      weight_(vocabulary_table(table, share, store)) {}

// The weight gradient reads and writes its f32 sums [V, D] once a chunk: 2 r V D operations and 8 V D bytes of r rows,
// r / 4 operations a byte. In the time of a byte of memory a CPU core does 4 (f32) to 8 (bf16) operations, by `choir
// bench train --profile`, and an H100 295, by its data sheet (989 TFLOP/s in bf16, 3.35 TB/s): r / 4 is above either.
//
// The more rows, the fewer passes over the sums. On a CPU, 2/3 of the width let the logits in f32 and their gradient,
// at most 8 r V bytes, take a third of what the table takes with its gradient and moments, 16 V D bytes; more than 1024
// rows bring nothing.
std::int64_t OutputHead::chunk_rows(std::int64_t rows, std::int64_t columns, std::int64_t width, DeviceKind device) {
  constexpr std::int64_t elements = 1 << 20;
  const std::int64_t least = device == DeviceKind::cpu ? std::clamp<std::int64_t>(2 * width / 3, 256, 1024) : 2048;
  const std::int64_t chunks = std::max<std::int64_t>(1, (rows * columns + elements - 1) / elements);
  const std::int64_t even = (rows + chunks - 1) / chunks;
  return std::min(rows, std::max<std::int64_t>(least, (even + 15) / 16 * 16));
}

Tensor OutputHead::loss(const Tensor& x, const Tensor& targets, const Tensor& loss_sum, const Tensor& right,
                        double scale, bool gradient, Context& context) const {
  Runtime& runtime = context.runtime;
  Communicator& axis = *context.mesh.tensor;
  Stream& stream = runtime.device.compute();
  const Tensor all = enter(x, context, "head");
  const std::int64_t rows = all.rows();
  const std::int64_t chunk = chunk_rows(rows, weight_->value.rows(), all.width(), runtime.device.kind());
  Tensor dx = gradient ? runtime.empty({rows, all.width()}, all.dtype()) : Tensor{};
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t end = std::min(rows, begin + chunk);
    const Tensor x_chunk = all.slice_rows(begin, end), targets_chunk = targets.slice_columns(begin, end);
    const Tensor logits =
        ops::linear(runtime, "head", x_chunk, weight_->value, {}, accumulate_type(runtime.compute_type));
    const Tensor max = ops::cross_entropy_max(runtime, logits, slice_.count());
    axis.all_reduce(max, Reduce::max, stream, "head max");
    const Tensor sum_and_target =
        ops::cross_entropy_sum(runtime, logits, max, targets_chunk, slice_.count(), slice_.begin);
    axis.all_reduce(sum_and_target, Reduce::sum, stream, "head sum");
    const Tensor dlogits = ops::cross_entropy_gradient(runtime, logits, max, sum_and_target, targets_chunk, loss_sum,
                                                       right, slice_.count(), slice_.begin, scale, gradient);
    if (!gradient) continue;
    ops::linear_input_gradient(runtime, "head", dlogits, weight_->value, dx.slice_rows(begin, end));
    ops::linear_weight_gradient(runtime, "head", dlogits, x_chunk, weight_->gradient);
  }
  if (!gradient) return {};
  return enter_backward(dx, context, "head").wait(runtime);
}

Tensor OutputHead::logits(const Tensor& x, Context& context) const {
  Runtime& runtime = context.runtime;
  Communicator& axis = *context.mesh.tensor;
  const Tensor all = enter(x, context, "head");
  const Tensor mine = ops::linear(runtime, "head", all, weight_->value, {}, accumulate_type(runtime.compute_type));
  const Tensor gathered = runtime.empty({axis.size(), mine.rows(), mine.width()}, mine.dtype());
  axis.all_gather(mine, gathered.reshape({axis.size() * mine.rows(), mine.width()}), runtime.device.compute(), "head");
  const Tensor result = runtime.empty({mine.rows(), vocabulary_}, mine.dtype());
  for (std::int64_t rank = 0; rank < axis.size(); ++rank) {
    const Slice slice = even_slice(vocabulary_, axis.size(), rank);
    ops::copy(runtime,
              gathered.slice_rows(rank * mine.rows(), (rank + 1) * mine.rows()).slice_columns(0, slice.count()),
              result.slice_columns(slice.begin, slice.end));
  }
  return result;
}

}  // namespace choir
