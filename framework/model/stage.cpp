#include "framework/model/stage.h"

#include <algorithm>
#include <map>
#include <utility>

#include "framework/model/families.h"
#include "framework/model/joined_rows.h"
#include "framework/model/sample.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// The stages with a part that reads the table `name`, each once, in the order of the model: the first owns the table.
std::vector<int> holders(const std::vector<PartSpec>& model, const Stage::Placement& placement,
                         const std::string& name) {
  std::vector<int> stages;
  for (std::size_t piece = 0; piece < placement.pieces.size(); ++piece)
    for (std::int64_t i = placement.pieces[piece].begin; i < placement.pieces[piece].end; ++i) {
      const auto& table = model[static_cast<std::size_t>(i)].table;
      const int stage = placement.stage_of[piece];
      const bool is_new = std::find(stages.begin(), stages.end(), stage) == stages.end();
      if (table && table->name == name && is_new) stages.push_back(stage);
    }
  return stages;
}

}  // namespace

Stage::Stage(const std::vector<PartSpec>& model, const TensorShare& share, ParameterStore& store)
    : Stage(model, {.pieces = {{0, static_cast<std::int64_t>(model.size())}}, .stage_of = {0}}, 0, share, store) {}

Stage::Stage(const std::vector<PartSpec>& model, const Placement& placement, int stage, const TensorShare& share,
             ParameterStore& store) {
  std::vector<const PartSpec*> mine;
  for (std::size_t piece = 0; piece < placement.pieces.size(); ++piece) {
    if (placement.stage_of[piece] != stage) continue;
    const std::size_t begin = mine.size();
    for (std::int64_t i = placement.pieces[piece].begin; i < placement.pieces[piece].end; ++i)
      mine.push_back(&model[static_cast<std::size_t>(i)]);
    chunks_.push_back({begin, mine.size()});
  }
  // Backward finishes this group last, with the sum over the stages.
  std::map<std::string, std::vector<int>> shared;
  for (const PartSpec* spec : mine) {
    if (!spec->table) continue;
    const std::vector<int> stages = holders(model, placement, spec->table->name);
    if (stages.size() < 2) continue;
    shared[spec->table->name] = stages;
    if (stages.front() == stage) continue;
    if (store.groups() == 0) store.begin_group();
    vocabulary_table(*spec->table, share, store, /*owned=*/false);
  }
  for (const PartSpec* spec : mine) {
    store.begin_group();
    const int own = store.groups() - 1;
    parts_.push_back(spec->make(share, store));
    std::vector<Use>& uses = uses_.emplace_back();
    for (int group = own; group < store.groups(); ++group)
      uses.push_back({.group = group, .first_user = false, .last_user = false});
    const int table = spec->table ? store.find(spec->table->name)->weight->group : own;
    if (table != own) uses.push_back({.group = table, .first_user = false, .last_user = false});
  }
  std::map<int, std::pair<Use*, Use*>> users;  // of each group, the first and the last
  for (std::vector<Use>& uses : uses_)
    for (Use& use : uses) users.try_emplace(use.group, &use, &use).first->second.second = &use;
  for (const auto& [group, first_and_last] : users) {
    first_and_last.first->first_user = true;
    first_and_last.second->last_user = true;
  }
  for (const auto& [name, stages] : shared) tables_.push_back({store.find(name), stages});
  shared_.resize(static_cast<std::size_t>(store.groups()));
  for (const SharedTable& table : tables_) shared_[static_cast<std::size_t>(table.parameter->weight->group)] = true;
}

void Stage::acquire(std::size_t part, Context& context, Shards& shards) const {
  for (const Use& use : uses_[part]) shards.acquire(use.group, context);
}

void Stage::prefetch(std::size_t part, Context& context, Shards& shards) const {
  for (const Use& use : uses_[part]) shards.prefetch(use.group, context);
}

void Stage::release(std::size_t part, Shards& shards) const {
  for (const Use& use : uses_[part]) shards.release(use.group);
}

/// Before a micro-batch adds to the gradients of `part`.
void Stage::open(std::size_t part, Context& context, Shards& shards) const {
  for (const Use& use : uses_[part])
    if (use.last_user) shards.open(use.group, context);
}

/// After it has added all that it adds to them.
void Stage::close(std::size_t part, Context& context, Shards& shards, bool last) const {
  for (const Use& use : uses_[part]) {
    if (!use.first_user) continue;
    shards.close(use.group, context);
    if (last && !shares(use.group)) shards.final(use.group, context);
  }
}

/// After the forward of a part that has saved `memory`: it leaves, and what the part before has saved has left.
static void send_away(ActivationOffload& offload, std::vector<Tensor> memory, std::vector<OffloadedPart>& parts) {
  parts.push_back(offload.begin_leaving(std::move(memory)));
  if (parts.size() > 1) offload.end_copies(parts[parts.size() - 2]);
}

/// Before the backward of the last of these parts: its memory is back, and that of the part before begins to return.
static void bring_back(ActivationOffload& offload, std::vector<OffloadedPart>& parts) {
  offload.end_copies(parts.back());
  if (parts.size() > 1) offload.begin_returning(parts[parts.size() - 2]);
}

Tensor Stage::forward(int chunk, Tensor x, const Batch& batch, const Loss& loss, Saved& saved, Context& context,
                      Shards& shards) const {
  const auto [begin, end] = chunks_[static_cast<std::size_t>(chunk)];
  for (std::size_t i = begin; i < end; ++i) {
    acquire(i, context, shards);
    if (i + 1 < end) prefetch(i + 1, context, shards);
    if (loss.gradient && parts_[i]->forward_adds_gradients()) open(i, context, shards);
    saved.parts.push_back(parts_[i]->make_saved());
    ActivationOffload* const offload = loss.gradient ? context.offload : nullptr;
    const KeptMemory kept(offload ? &context.runtime.device.allocator() : nullptr);
    x = parts_[i]->forward(x, batch, loss, *saved.parts.back(), context);
    if (offload) send_away(*offload, i + 1 < end ? kept.held() : std::vector<Tensor>{}, saved.offloaded);
    if (context.watch) (*context.watch)(false, i, x, context);
    if (!loss.gradient) saved.parts.pop_back();
    release(i, shards);
  }
  return x;
}

/// Part::backward() of the last part in `saved`. Its predecessor in the chunk, which begins at `begin`, comes next.
Tensor Stage::backward_of(std::size_t part, std::size_t begin, const Tensor& dy, Saved& saved, Context& context,
                          Shards& shards) const {
  const bool reads = parts_[part]->backward_reads_values();
  if (context.offload) bring_back(*context.offload, saved.offloaded);
  if (reads) acquire(part, context, shards);
  if (part > begin && parts_[part - 1]->backward_reads_values()) prefetch(part - 1, context, shards);
  if (!parts_[part]->forward_adds_gradients()) open(part, context, shards);
  Tensor dx = parts_[part]->backward(dy, *saved.parts.back(), context);
  if (context.watch) (*context.watch)(true, part, dx, context);
  saved.parts.pop_back();
  if (context.offload) saved.offloaded.pop_back();
  if (reads) release(part, shards);
  return dx;
}

Tensor Stage::backward(int chunk, Tensor dy, Saved& saved, Context& context, Shards& shards, bool last) const {
  const auto [begin, end] = chunks_[static_cast<std::size_t>(chunk)];
  for (std::size_t i = end; i-- > begin;) {
    dy = backward_of(i, begin, dy, saved, context, shards);
    close(i, context, shards, last);
  }
  return dy;
}

Tensor Stage::backward_without_weights(int chunk, Tensor dy, Saved& saved, Context& context, Shards& shards,
                                       bool last) const {
  const auto [begin, end] = chunks_[static_cast<std::size_t>(chunk)];
  for (std::size_t i = end; i-- > begin;) {
    context.deferred = &saved.weights.emplace_back(i, DeferredWork{}).second;
    dy = backward_of(i, begin, dy, saved, context, shards);
    if (!context.deferred->empty()) continue;
    saved.weights.pop_back();
    close(i, context, shards, last);
  }
  context.deferred = nullptr;
  return dy;
}

void Stage::weights(Saved& saved, Context& context, Shards& shards, bool last) const {
  for (; !saved.weights.empty(); saved.weights.pop_front()) {
    for (auto& work : saved.weights.front().second) {
      work(context);
      work = {};  // releases its tensors
    }
    close(saved.weights.front().first, context, shards, last);
  }
}

std::vector<KeyValueCache> Stage::make_caches(std::int64_t positions, Runtime& runtime) const {
  std::vector<KeyValueCache> caches;
  for (const auto& part : parts_) caches.push_back(part->make_cache(positions, runtime));
  return caches;
}

Tensor Stage::generate(const Batch& batch, const std::vector<KeyValueCache>& caches, Context& context,
                       Shards& shards) const {
  Tensor x;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    context.cache = &caches[i];
    acquire(i, context, shards);
    x = parts_[i]->forward(x, batch, {}, *parts_[i]->make_saved(), context);
    release(i, shards);
  }
  context.cache = nullptr;
  return x;
}

void Stage::sum_shared_tables(Context& context) const {
  Communicator& axis = *context.mesh.pipeline;
  Runtime& runtime = context.runtime;
  for (const auto& [parameter, stages] : tables_) {
    const Tensor mine = parameter->gradient();
    std::vector<Message> sends, receives;
    std::vector<Tensor> addends;
    for (const int stage : stages) {
      const bool here = stage == axis.rank();
      addends.push_back(here ? mine : runtime.empty({mine.rows(), mine.width()}, mine.dtype(), MemoryKind::workspace));
      if (here) continue;
      sends.push_back({mine, stage});
      receives.push_back({addends.back(), stage});
    }
    axis.exchange(sends, receives, runtime.device.compute(), "shared table");
    const Tensor& sum = addends.front();  // in one order, so that all copies get the same bits
    for (std::size_t i = 1; i < addends.size(); ++i) ops::accumulate(runtime, addends[i], sum);
    if (stages.front() != axis.rank()) ops::copy(runtime, sum, mine);
  }
}

PieceTimes count_costs(const std::vector<PartSpec>& model, const ModelConfig& config, const TensorShare& share) {
  struct PartCost {
    double forward = 0, backward = 0, weights = 0;
  };
  std::map<std::string, PartCost> cost_of_kind;
  PieceTimes costs;
  for (const PartSpec& spec : model) {
    const auto [cost, is_new] = cost_of_kind.try_emplace(spec.kind);
    if (is_new) {
      Device device(CountOnly{}, 1);
      CallRing ring;
      Mesh mesh = make_counting_mesh(0, {.tensor = static_cast<int>(share.size)}, device, ring);
      Runtime runtime{.device = device};
      Context context{.runtime = runtime, .mesh = mesh, .rows = whole_rows(1, config.context)};
      ParameterStore store;
      const Stage stage({spec}, {.rank = 0, .size = share.size}, store);
      Shards shards(store, {}, context);
      shards.begin_step(context);
      device.ledger().enabled = true;
      const Rows source = config.has_source() ? whole_rows(source_texts(config), config.source_length()) : no_rows();
      const BatchRows held(config, context.rows, source, /*count_only=*/true);
      context.source = held.upload_source(runtime);
      const Tensor x = runtime.empty({joined_rows(context), config.width}, runtime.compute_type);
      const Batch batch = held.upload(runtime);
      const Loss loss{.sum = runtime.empty({1}, DType::f64), .gradient = true};
      Stage::Saved saved;
      double before = 0;
      const auto counted = [&] {
        return device.ledger().total_flops() - std::exchange(before, device.ledger().total_flops());
      };
      stage.forward(0, x, batch, loss, saved, context, shards);
      cost->second.forward = counted();
      stage.backward_without_weights(0, x, saved, context, shards, false);
      cost->second.backward = counted();
      stage.weights(saved, context, shards, false);
      cost->second.weights = counted();
    }
    costs.forward.push_back(cost->second.forward);
    costs.backward.push_back(cost->second.backward);
    costs.weights.push_back(cost->second.weights);
  }
  return costs;
}

}  // namespace choir
