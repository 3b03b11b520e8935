// What lies between two parts of a model with a source: in one tensor the rows of the source that are held, and behind
// them those of the targets. So the source goes from part to part, and from stage to stage, as everything does. Of a
// model without a source there are the rows of Context::rows alone.
#pragma once

#include "framework/comm/context.h"

namespace choir {

/// The rows of such a tensor.
inline std::int64_t joined_rows(const Context& context) {
  return context.source.rows.share().block + context.rows.share().block;
}

inline Tensor source_rows(const Tensor& x, const Context& context) {
  return x.slice_rows(0, context.source.rows.share().block);
}
inline Tensor target_rows(const Tensor& x, const Context& context) {
  return x.slice_rows(context.source.rows.share().block, x.rows());
}

/// A tensor of both; `target` itself if no row of the source is held. An empty `source` is one of zeros.
Tensor join_rows(const Tensor& source, const Tensor& target, Context&);

}  // namespace choir
