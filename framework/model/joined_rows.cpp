#include "framework/model/joined_rows.h"

#include "framework/ops/elementwise.h"

namespace choir {

Tensor join_rows(const Tensor& source, const Tensor& target, Context& context) {
  const std::int64_t before = context.source.rows.share().block;
  if (before == 0) return target;
  Runtime& runtime = context.runtime;
  Tensor both = runtime.empty({before + target.rows(), target.width()}, target.dtype());
  if (source)
    ops::copy(runtime, source, source_rows(both, context));
  else
    ops::fill(runtime, source_rows(both, context), 0.0f);
  ops::copy(runtime, target, target_rows(both, context));
  return both;
}

}  // namespace choir
