#include "framework/nn/output_head.h"

#include <algorithm>

#include "framework/nn/linear.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/elementwise.h"

namespace choir {

OutputHead::OutputHead(const VocabularyTable& table, const TensorShare& share, ParameterStore& store)
    : vocabulary_(table.vocabulary),
      slice_(vocabulary_slice(table.vocabulary, share)),
      weight_(vocabulary_table(table, share, store)) {
  weight_->overwritten = true;  // in a step the head comes before an embedding that has the same table
}

// The weight gradient reads and writes its f32 sums [V, D] once a chunk: 2 r V D operations and 8 V D bytes of r rows,
// r / 4 operations a byte. In the time of a byte of memory a CPU core does 4 (f32) to 8 (bf16) operations, by `choir
// bench train --profile`, and an H100 295, by its data sheet (989 TFLOP/s in bf16, 3.35 TB/s): r / 4 is above either.
//
// The more rows, the fewer passes over the sums, and the fewer times products pack the table. On a CPU more than 1024
// rows bring nothing. That many are taken if the memory is there anyway: the last block's backward, in which all else
// is still saved, holds gradients of about six times x, four of them of the hidden values of its feed-forward layer. If
// not, 2/3 of the width let the logits, at most 4 r V bytes, take a sixth of what the table takes with its gradient and
// moments, 16 V D bytes. On a GPU 8192 rows take 0.8 GB in bf16 with the vocabulary of GPT-2.
std::int64_t OutputHead::chunk_rows(const Logits& logits, std::int64_t width, DeviceKind device) {
  constexpr std::int64_t elements = 1 << 20;
  const auto& [rows, columns, vocabulary] = logits;
  const std::int64_t of_block = 6 * rows * width / vocabulary;
  const std::int64_t least =
      device == DeviceKind::cpu ? std::clamp<std::int64_t>(std::max(2 * width / 3, of_block), 256, 1024) : 8192;
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
  const std::int64_t chunk = chunk_rows({rows, weight_->value.rows(), vocabulary_}, all.width(), runtime.device.kind());
  Tensor dx = gradient ? runtime.empty({rows, all.width()}, all.dtype()) : Tensor{};
  const Tensor losses = runtime.empty({rows}, DType::f64), is_right = right ? runtime.empty({rows}, DType::f64) : right;
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t end = std::min(rows, begin + chunk);
    const Tensor x_chunk = all.slice_rows(begin, end), targets_chunk = targets.slice_columns(begin, end);
    const Tensor logits = ops::linear(runtime, "head", x_chunk, weight_->value, {}, x.dtype());
    Tensor statistics;  // empty where no other rank has logits: then the next pass makes them on its way
    if (axis.size() > 1) {
      const Tensor mine = ops::cross_entropy_statistics(runtime, logits, targets_chunk, slice_.count(), slice_.begin);
      statistics = runtime.empty({3 * axis.size(), end - begin}, mine.dtype());
      axis.all_gather(mine, statistics, stream, "head statistics");
    }
    ops::cross_entropy(runtime, logits, statistics, targets_chunk, losses.slice_columns(begin, end),
                       right ? is_right.slice_columns(begin, end) : right, slice_.count(), slice_.begin, scale,
                       gradient);
    if (!gradient) continue;
    const Tensor& dlogits = logits;  // in their place
    ops::linear_input_gradient(runtime, "head", dlogits, weight_->value, dx.slice_rows(begin, end));
    ops::linear_weight_gradient(runtime, "head", dlogits, x_chunk, weight_->gradient, {}, into_gradient(*weight_));
  }
  ops::sum_of_losses(runtime, losses, loss_sum);
  if (right) ops::sum_of_losses(runtime, is_right, right);
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
