#include "framework/parallel/expert.h"

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// Calls body(slots of an expert held in `blocks`, the same in `experts`), each [ranks, n * D], of blocks
/// [ranks][most experts of a rank][n * D] and experts [experts held][ranks][n * D].
template <class Body>
void for_each_expert(const Tensor& blocks, const Tensor& experts, const kernels::ExpertPlaces& places,
                     std::int64_t held, const Body& body) {
  const std::int64_t of_expert = blocks.count() / places.count();
  const Tensor by_rank = blocks.reshape({places.ranks, places.most() * of_expert});
  const Tensor by_expert = experts.reshape({held * places.ranks, of_expert});
  for (std::int64_t i = 0; i < held; ++i)
    body(by_rank.slice_columns(i * of_expert, (i + 1) * of_expert),
         by_expert.slice_rows(i * places.ranks, (i + 1) * places.ranks));
}

}  // namespace

Tensor dispatch(const Tensor& slots, const kernels::ExpertPlaces& places, Context& context, const char* label) {
  Communicator& axis = *context.mesh.expert;
  if (axis.size() == 1) return slots;
  Runtime& runtime = context.runtime;
  const std::int64_t held = places.held(axis.rank());
  const Tensor received = runtime.empty(slots.shape(), slots.dtype());
  axis.all_to_all(slots, received, runtime.device.compute(), label);
  Tensor experts = runtime.empty({held * places.ranks * (slots.rows() / places.count()), slots.width()}, slots.dtype());
  for_each_expert(received, experts, places, held,
                  [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
  return experts;
}

Tensor collect(const Tensor& results, const kernels::ExpertPlaces& places, Context& context, const char* label) {
  Communicator& axis = *context.mesh.expert;
  if (axis.size() == 1) return results;
  Runtime& runtime = context.runtime;
  const std::int64_t held = places.held(axis.rank());
  const std::int64_t of_expert = results.rows() / (held * places.ranks);
  const Tensor blocks = runtime.empty({places.count() * of_expert, results.width()}, results.dtype());
  if (held < places.most()) ops::fill(runtime, blocks, 0.0f);
  for_each_expert(blocks, results, places, held,
                  [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  Tensor slots = runtime.empty(blocks.shape(), blocks.dtype());
  axis.all_to_all(blocks, slots, runtime.device.compute(), label);
  return slots;
}

Tensor gather_counts(const Tensor& counts, Context& context, const char* label) {
  Communicator& axis = *context.mesh.context;
  if (axis.size() == 1) return counts.reshape({counts.count()});
  Tensor all = context.runtime.empty({axis.size() * counts.count()}, counts.dtype());
  axis.all_gather(counts, all, context.runtime.device.compute(), label);
  return all;
}

}  // namespace choir
