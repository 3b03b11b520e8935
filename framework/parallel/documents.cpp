#include "framework/parallel/documents.h"

#include <algorithm>

#include "framework/ops/elementwise.h"

namespace choir {

SeparateDocuments upload_documents(Runtime& runtime, const std::vector<kernels::DocumentRange>& ranges,
                                   const Rows& rows) {
  std::vector<std::int32_t> positions(
      static_cast<std::size_t>(std::max(rows.count(), rows.share().block * rows.split)));
  if (!runtime.device.counts_only())
    for (std::int64_t row = 0; row < rows.count(); ++row) {
      const auto [sequence, position] = rows.map().place(row);
      const auto& document = ranges[static_cast<std::size_t>(sequence * rows.length + position)];
      positions[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(position) - document.begin;
    }
  SeparateDocuments documents{.ranges = runtime.empty({rows.sequences * rows.length, 2}, DType::i32),
                              .positions = ops::to_device(runtime, positions, DType::i32)};
  ops::upload(runtime, ranges.data(), documents.ranges);
  return documents;
}

}  // namespace choir
