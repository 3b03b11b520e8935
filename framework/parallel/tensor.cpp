#include "framework/parallel/tensor.h"

#include <algorithm>

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// x [N, D] as sum_rows() takes it: padded to whole blocks of rows with zeros; the same handle if no row is missing.
/// Runs on the compute stream, whichever stream the sum runs on.
Tensor pad_rows(const Tensor& x, Context& context) {
  Runtime& runtime = context.runtime;
  const std::int64_t rows = context.rows.is_split() ? context.rows.share().block * context.rows.split : x.rows();
  if (x.rows() == rows) return ops::contiguous(runtime, x);
  Tensor padded = runtime.empty({rows, x.width()}, x.dtype());
  ops::copy(runtime, x, padded.slice_rows(0, x.rows()));
  ops::fill(runtime, padded.slice_rows(x.rows(), rows), 0.0f);
  return padded;
}

Tensor gather_rows(const Tensor& x, Context& context, const char* label) {
  if (!context.rows.is_split()) return x;
  Communicator& axis = *context.mesh.tensor;
  Runtime& runtime = context.runtime;
  Tensor all = runtime.empty({x.rows() * axis.size(), x.width()}, x.dtype());
  axis.all_gather(x, all, runtime.device.compute(), label);
  return all.slice_rows(0, context.rows.count());
}

/// The tensor that gets the sum of partial [N, D]: `partial` itself, or one for the rows held. Its memory is allocated
/// in the order of the compute stream, whichever stream the sum runs on.
Tensor place_of_sum(const Tensor& partial, Context& context) {
  if (!context.rows.is_split()) return partial;
  return context.runtime.empty({context.rows.share().block, partial.width()}, partial.dtype());
}

/// sum = the sum over ranks of partial [N, D], padded, on the rows held; enqueued on `stream`.
void sum_rows(const Tensor& partial, const Tensor& sum, Context& context, Stream& stream, const char* label) {
  Communicator& axis = *context.mesh.tensor;
  if (context.rows.is_split())
    axis.reduce_scatter(partial, sum, Reduce::sum, stream, label);
  else
    axis.all_reduce(sum, Reduce::sum, stream, label);
}

}  // namespace

ops::Dropout row_dropout(const Context& context, double p, std::string_view what) {
  return ops::dropout_for(context.runtime, context.training ? p : 0.0, what, context.rows.share_map());
}

Tensor enter(const Tensor& x, Context& context, const char* label) { return gather_rows(x, context, label); }

const Tensor& PendingTensor::wait(Runtime& runtime) const {
  done.wait(runtime.device.compute());
  return tensor;
}

PendingTensor enter_backward(const Tensor& dx, Context& context, const char* label) {
  const Tensor partial = pad_rows(dx, context);                                 // before `ready`: the sum reads it,
  PendingTensor pending{.tensor = place_of_sum(partial, context), .done = {}};  // and writes this
  Stream& communicate = context.mesh.tensor->stream();
  Event ready;
  ready.record(context.runtime.device.compute());
  ready.wait(communicate);
  sum_rows(partial, pending.tensor, context, communicate, label);
  pending.done.record(communicate);
  return pending;
}

Tensor leave(const Tensor& partial, Context& context, const char* label) {
  const Tensor padded = pad_rows(partial, context), sum = place_of_sum(padded, context);
  sum_rows(padded, sum, context, context.runtime.device.compute(), label);
  return sum;
}

Tensor multiply_and_leave(std::int64_t pieces, std::int64_t rows, std::int64_t width, DType type,
                          const MultiplyRows& multiply, Context& context, const char* label) {
  Runtime& runtime = context.runtime;
  Stream &compute = runtime.device.compute(), &communicate = context.mesh.tensor->stream();
  const bool split = context.rows.is_split();
  const std::int64_t shares = split ? context.rows.split : 1;  // a piece has some rows of each
  const std::int64_t of_share = split ? context.rows.share().block : rows;
  const std::int64_t step = std::max<std::int64_t>(1, (of_share + pieces - 1) / pieces);
  const Tensor sum = runtime.empty({of_share, width}, type);
  for (std::int64_t begin = 0; begin < of_share; begin += step) {
    const std::int64_t count = std::min(step, of_share - begin);
    const Tensor here = sum.slice_rows(begin, begin + count);
    const Tensor partial = split ? runtime.empty({shares * count, width}, type) : here;
    const bool all = count == of_share;  // then the rows of all shares are neighbours
    for (std::int64_t share = 0; share < (all ? 1 : shares); ++share) {
      const std::int64_t first = share * of_share + begin, wanted = all ? shares * count : count;
      const std::int64_t real = std::clamp<std::int64_t>(rows - first, 0, wanted);  // the others are padding
      const Tensor to = partial.slice_rows(share * count, share * count + wanted);
      if (real > 0) multiply({first, first + real}, to.slice_rows(0, real));
      if (real < wanted) ops::fill(runtime, to.slice_rows(real, wanted), 0.0f);
    }
    // Nothing is left to overlap with the sum of the last piece, and what waits for it has waited for those before.
    const bool last = begin + count == of_share;
    if (!last) {
      Event ready;
      ready.record(compute);
      ready.wait(communicate);
    }
    sum_rows(partial, here, context, last ? compute : communicate, label);
  }
  return sum;
}

Tensor leave_backward(const Tensor& dy, Context& context, const char* label) { return gather_rows(dy, context, label); }

void sum_shared_gradients(const ParameterStore& store, int group, Context& context) {
  Communicator& axis = *context.mesh.tensor;
  Runtime& runtime = context.runtime;
  const auto in_group = [&](const Parameter& p) { return p.tensor_sum != TensorSum::none && p.weight->group == group; };
  // Whole tensors lie one after another, at the same place on every rank. A replicated part lies at its place in the
  // global tensor, which is also the same on every rank.
  std::int64_t total = 0;
  for (const Parameter& p : store.parameters())
    if (in_group(p)) total += p.global_count();
  if (total == 0 || axis.size() == 1) return;

  const Tensor packed = runtime.empty({total}, accumulate_type(runtime.compute_type), MemoryKind::workspace);
  ops::fill(runtime, packed, 0.0f);
  const auto for_each_part = [&](auto&& move) {
    std::int64_t begin = 0;
    for (const Parameter& p : store.parameters()) {
      if (!in_group(p)) continue;
      const std::int64_t at = begin + p.held.row_begin * p.held.columns();  // shared tensors are split by rows only
      move(p.gradient().reshape({p.held.count()}), packed.slice_columns(at, at + p.held.count()));
      begin += p.global_count();
    }
  };
  for_each_part([&](const Tensor& gradient, const Tensor& part) { ops::copy(runtime, gradient, part); });
  axis.all_reduce(packed, Reduce::sum, runtime.device.compute(), "shared gradients");
  for_each_part([&](const Tensor& gradient, const Tensor& part) { ops::copy(runtime, part, gradient); });
}

}  // namespace choir
