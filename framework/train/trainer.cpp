#include "framework/train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numbers>
#include <utility>

#include "framework/checkpoint/agreement.h"
#include "framework/core/error.h"
#include "framework/core/pinned_memory.h"
#include "framework/model/joined_rows.h"
#include "framework/ops/elementwise.h"
#include "framework/optim/schedule.h"
#include "kernels/verdict.h"

namespace choir {
namespace {

DType compute_type(Precision precision) {
  switch (precision) {
    case Precision::f32:
      return DType::f32;
    case Precision::bf16:
    case Precision::fp8:
      return DType::bf16;
  }
  std::abort();  // all values are above
}

TensorShare tensor_share(const Config& config, const Mesh& mesh) {
  return {.rank = mesh.tensor->rank(),
          .size = mesh.tensor->size(),
          .sequence = config.parallel.sequence,
          .expert_rank = mesh.expert->rank(),
          .expert_ranks = mesh.expert->size()};
}

std::int64_t sequences_of_micro_batch(const Config& config, const Mesh& mesh) {
  return config.parallel.micro_batch > 0 ? config.parallel.micro_batch : config.train.batch / mesh.shape.data;
}

/// Context::tensor_chunks. On a GPU a piece has at least 2048 rows, so that products lose little by having fewer.
std::int64_t tensor_chunks(const Config& config, const Mesh& mesh, const Device& device, std::int64_t micro_batch) {
  constexpr std::int64_t least_rows = 2048, most = 4;
  const MeshShape& s = mesh.shape;
  if (s.tensor == 1) return 1;  // nothing is added up
  if (config.parallel.tensor_chunks > 0) return config.parallel.tensor_chunks;
  if (device.kind() == DeviceKind::cpu) return 1;  // the processor that multiplies also adds up
  return std::clamp<std::int64_t>(micro_batch * config.model.context / s.context / least_rows, 1, most);
}

Pipeline pipeline_of(const Config& config, const Mesh& mesh, std::int64_t micro_batch) {
  return {.schedule = config.parallel.schedule,
          .stages = mesh.shape.pipeline,
          .chunks = static_cast<int>(config.parallel.chunks_of_stage()),
          .micro_batches = static_cast<int>(config.train.batch / mesh.shape.data / micro_batch)};
}

/// The stretches that parallel.stages names, or those of cut_by_time(); on the stages of the pipeline.
Stage::Placement place(const std::vector<PartSpec>& model, const Pipeline& pipeline, const Config& config,
                       const TensorShare& share) {
  Stage::Placement placement;
  std::int64_t begin = 0;
  for (const std::int64_t parts : config.parallel.stages) {
    placement.pieces.push_back({begin, begin + parts});
    begin += parts;
  }
  if (placement.pieces.empty()) placement.pieces = cut_by_time(pipeline, count_costs(model, config.model, share));
  for (int piece = 0; piece < pipeline.pieces(); ++piece) placement.stage_of.push_back(pipeline.stage_of(piece));
  return placement;
}

/// The sum over the ranks with other rows of the batch, and over the stages: those that do not compute `x` have zeros.
/// Collective.
void sum_over_rows_and_stages(const Tensor& x, Mesh& mesh, const char* label) {
  Stream& stream = mesh.gradient->device().compute();
  mesh.gradient->all_reduce(x, Reduce::sum, stream, label);
  mesh.pipeline->all_reduce(x, Reduce::sum, stream, label);
}

/// What was built is what was asked for: the stages together have all parts of the model. Collective.
void check_placement(const Mesh& mesh, std::int64_t held, std::size_t asked) {
  Device& device = mesh.pipeline->device();
  Runtime runtime{.device = device};
  double parts = static_cast<double>(held);
  const Tensor sum = ops::to_device(runtime, std::vector<double>{parts}, DType::f64);
  mesh.pipeline->all_reduce(sum, Reduce::sum, device.compute(), "parts of the model");
  ops::download(runtime, sum, &parts);
  if (!device.counts_only() && parts != static_cast<double>(asked))
    throw Error({.what = fmt::format("the pipeline stages hold {} parts, but the model has {}", parts, asked),
                 .why = "this is a mistake in the program"});
}

}  // namespace

std::string describe_layout(const ParallelConfig& p, const MeshShape& shape, ContextKind context_kind) {
  std::string text = fmt::format("tensor {}{}", shape.tensor, p.sequence ? " with sequence" : "");
  if (shape.context > 1) text += fmt::format(", context {} ({})", shape.context, name_of(context_kind));
  if (shape.pipeline > 1) text += fmt::format(", pipeline {} ({})", shape.pipeline, name_of(p.schedule));
  if (shape.expert > 1) text += fmt::format(", expert {}", shape.expert);
  text += fmt::format(", data {}", shape.data);
  if (p.zero > 0) text += fmt::format(", zero {}", p.zero);
  if (shape.shard > 0) text += fmt::format(", shard {}", shape.shard);
  return text;
}

MeshShape mesh_shape(const Config& config, std::int64_t ranks) {
  const ParallelConfig& p = config.parallel;
  return {.tensor = static_cast<int>(p.tensor),
          .context = static_cast<int>(p.context),
          .data = static_cast<int>(ranks / p.ranks_of_a_copy()),
          .pipeline = static_cast<int>(p.pipeline),
          .shard = static_cast<int>(p.shard),
          .expert = static_cast<int>(p.expert)};
}

static Rows held_rows(Rows whole, const Config& config, const MeshShape& shape, const MeshShape::Coordinates& at) {
  if (config.parallel.sequence) {
    whole.split = shape.tensor;
    whole.part = at.tensor;
  }
  return context_rows(whole, shape.context, at.context);
}

Rows rows_at(const Config& config, const MeshShape& shape, const MeshShape::Coordinates& at, std::int64_t first_sample,
             std::int64_t sequences) {
  return held_rows(whole_rows(sequences, config.model.context, first_sample), config, shape, at);
}

Rows source_rows_at(const Config& config, const MeshShape& shape, const MeshShape::Coordinates& at,
                    std::int64_t first_sample, std::int64_t sequences) {
  if (!config.model.has_source()) return no_rows();
  const std::int64_t texts = source_texts(config.model);
  return held_rows(whole_rows(texts * sequences, config.model.source_length(), texts * first_sample), config, shape,
                   at);
}

Trainer::Trainer(const Config& config, Device& device, Mesh& mesh, bool inference)
    : config_(config),
      mesh_(mesh),
      runtime_{.device = device, .seed = config.train.seed, .compute_type = compute_type(config.train.precision)},
      share_(tensor_share(config, mesh)),
      micro_batch_(sequences_of_micro_batch(config, mesh)),
      tensor_chunks_(tensor_chunks(config, mesh, device, micro_batch_)),
      pipeline_(pipeline_of(config, mesh, micro_batch_)),
      model_(make_parts(config.model, config.train.recompute)),
      placement_(place(model_, pipeline_, config, share_)),
      stage_(model_, placement_, mesh.here.pipeline, share_, store_),
      results_{Readback(device), Readback(device)} {
  check_placement(mesh, stage_.parts(), model_.size());
  runtime_.scalars = runtime_.empty({sizeof(kernels::StepScalars)}, DType::u8, MemoryKind::optimizer);
  loss_sum_ = runtime_.empty({1}, DType::f64, MemoryKind::optimizer);
  right_ = runtime_.empty({1}, DType::f64, MemoryKind::optimizer);
  if (config.model.blocks_with_experts() > 0) expert_sums_ = runtime_.empty({3}, DType::f64, MemoryKind::optimizer);
  if (config.model.routes_heads())
    head_sums_ = runtime_.empty({3 + config.model.routed_heads()}, DType::f64, MemoryKind::optimizer);
  Context all = context();
  if (!inference && config.train.offload != Offload::none)
    offloaded_ = std::make_unique<Allocator>(host_memory_beside(device));
  if (!inference && config.train.offload == Offload::optimizer_and_activations)
    activations_.emplace(device, *offloaded_);
  shards_ = std::make_unique<Shards>(store_,
                                     ShardOptions{.zero = static_cast<int>(config.parallel.zero),
                                                  .training = !inference,
                                                  .late = stage_.shared_groups(),
                                                  .masters = offloaded_.get()},
                                     all);
  if (inference) return;
  if (config.train.spike.sigma > 0) {
    spike_window_ = runtime_.empty({sizeof(kernels::SpikeWindow)}, DType::u8, MemoryKind::optimizer);
    set_spike_window({});
  }
  rejected_ = ops::to_device(runtime_, std::vector<std::uint64_t>{0}, DType::u8, MemoryKind::optimizer);
  optimizer_ = std::make_unique<Optimizer>(config.optimizer, store_, *shards_, all, offloaded_.get());
  schedule_ = with_transfers(pipeline_, make_schedules(pipeline_))[static_cast<std::size_t>(mesh.here.pipeline)];
}

double Trainer::bubble() const {
  const PieceTimes times = times_of(placement_.pieces, count_costs(model_, config_.model, share_));
  return timeline(pipeline_, make_schedules(pipeline_), times).bubble();
}

std::string Trainer::describe_stages() const {
  if (pipeline_.pieces() == 1) return "";
  std::string text;
  for (int stage = 0; stage < pipeline_.stages; ++stage) {
    text += fmt::format("{}stage {}:", stage == 0 ? "" : "\n", stage);
    for (int chunk = 0; chunk < pipeline_.chunks; ++chunk) {
      const Slice& parts = placement_.pieces[static_cast<std::size_t>(pipeline_.piece(stage, chunk))];
      const auto name = [&](std::int64_t part) { return model_[static_cast<std::size_t>(part)].name; };
      text += fmt::format("{} {}", chunk == 0 ? "" : ",", name(parts.begin));
      if (parts.count() > 1) text += fmt::format(" to {}", name(parts.end - 1));
    }
  }
  return text;
}

std::vector<std::pair<std::string, std::int64_t>> Trainer::parts_here() const {
  std::vector<std::pair<std::string, std::int64_t>> parts;
  for (std::size_t piece = 0; piece < placement_.pieces.size(); ++piece) {
    if (placement_.stage_of[piece] != mesh_.here.pipeline) continue;
    for (std::int64_t i = placement_.pieces[piece].begin; i < placement_.pieces[piece].end; ++i)
      parts.emplace_back(model_[static_cast<std::size_t>(i)].name, i);
  }
  return parts;
}

AttentionSpec Trainer::attention_spec() const {
  const ModelConfig& model = config_.model;
  return {.heads = {model.attention.heads, model.kv_heads(), mesh_.shape.tensor},
          .tensor_rank = share_.rank,
          .head_width = model.head_width(),
          .band = attention_band(model),
          .score = attention_score(model),
          .routing = head_routing(model, model.context)};
}

ContextKind Trainer::context_kind() const {
  return choir::context_kind(config_.parallel.context_kind, attention_spec(), config_.model.context,
                             mesh_.shape.context, runtime_.compute_type);
}

/// Samples `first_sample` to first_sample + real - 1 in a micro-batch of `sequences` sequences. The others have no
/// targets.
Trainer::MicroBatch Trainer::read_micro_batch(std::int64_t first_sample, std::int64_t sequences, std::int64_t real,
                                              const ReadSample& read) const {
  const bool count_only = runtime_.device.counts_only();
  MicroBatch batch{.held = BatchRows(config_.model, rows(first_sample, sequences), source_rows(first_sample, sequences),
                                     count_only)};
  if (count_only) return batch;
  SampleBuffer sample(config_.model);
  for (std::int64_t s = 0; s < real; ++s) {
    const std::int64_t bytes = read(first_sample + s, sample.view());
    if (mesh_.here.context == 0) batch.bytes += bytes;
    batch.held.set(s, sample);
  }
  batch.num_targets = batch.held.num_targets();
  return batch;
}

/// The micro-batches of this rank.
std::vector<Trainer::MicroBatch> Trainer::read_batch(const ReadSample& read) const {
  std::vector<MicroBatch> mine;
  for (std::int64_t m = 0; m < micro_batches(); ++m)
    mine.push_back(
        read_micro_batch((mesh_.here.data * micro_batches() + m) * micro_batch_, micro_batch_, micro_batch_, read));
  return mine;
}

/// The number of targets of the global batch, of which `mine` are the micro-batches of this rank. Every stage and every
/// tensor rank has read the same ones. Over host memory: the device may still compute the step before. Collective.
std::int64_t Trainer::count_targets(const std::vector<MicroBatch>& mine) {
  if (runtime_.device.counts_only()) return config_.train.batch * config_.model.targets_of_sequence();
  double targets = 0;
  for (const MicroBatch& batch : mine) targets += static_cast<double>(batch.num_targets);
  targets = Agreement(*mesh_.host).sum(targets, "targets") / (mesh_.shape.tensor * mesh_.shape.pipeline);
  return static_cast<std::int64_t>(targets);
}

/// Executes the steps of this stage on the micro-batches that they name.
void Trainer::run(const std::vector<StageStep>& steps, const std::vector<MicroBatch>& micro_batches, const Loss& loss,
                  bool training) {
  const auto at = [&](int micro_batch) -> const MicroBatch& {
    return micro_batches[static_cast<std::size_t>(micro_batch)];
  };
  std::vector<SeparateDocuments> documents;
  std::vector<Source> sources;
  for (const MicroBatch& batch : micro_batches) {
    documents.push_back(batch.held.upload_documents(runtime_));
    sources.push_back(batch.held.upload_source(runtime_));
  }
  const auto context_of = [&](int micro_batch) {
    Context here = context();
    here.rows = at(micro_batch).held.rows;
    here.documents = documents[static_cast<std::size_t>(micro_batch)];
    here.source = sources[static_cast<std::size_t>(micro_batch)];
    here.training = training;
    here.row_scale = loss.gradient ? row_scale() : 0;
    here.watch = loss.gradient ? watch_ : nullptr;
    here.attention = loss.gradient && here.rows.first_sample < attention_end_ ? attention_ : nullptr;
    if (loss.gradient) {
      here.expert_sums = expert_sums_;
      here.head_sums = head_sums_;
    }
    return here;
  };
  const auto shape_between_parts = [&](int micro_batch) -> Shape {
    return {joined_rows(context_of(micro_batch)), config_.model.width};
  };
  int last = 0;
  for (const StageStep& step : steps)
    if (step.action) last = std::max(last, step.action->micro_batch);

  StageExchange between(pipeline_);
  std::map<std::pair<int, int>, Stage::Saved> saved;  // by micro-batch and chunk
  for (const StageStep& step : steps) {
    Context all = context();
    between.exchange(step, shape_between_parts, all);
    if (!step.action) continue;
    const auto [kind, m, chunk] = *step.action;
    const int piece = pipeline_.piece(mesh_.here.pipeline, chunk);
    Context here = context_of(m);
    Stage::Saved& state = saved[{m, chunk}];
    switch (kind) {
      case Action::Kind::forward: {
        const Tensor x = between.take(kind, m, piece, here);
        const bool reads = piece == 0 || piece == pipeline_.pieces() - 1;
        const Batch batch = reads ? at(m).held.upload(runtime_) : Batch{};
        between.put(kind, m, piece, stage_.forward(chunk, x, batch, loss, state, here, *shards_));
        break;
      }
      case Action::Kind::backward: {
        const Tensor dy = between.take(kind, m, piece, here);
        const Tensor dx = pipeline_.splits_backward()
                              ? stage_.backward_without_weights(chunk, dy, state, here, *shards_, m == last)
                              : stage_.backward(chunk, dy, state, here, *shards_, m == last);
        between.put(kind, m, piece, dx);
        break;
      }
      case Action::Kind::weights:
        stage_.weights(state, here, *shards_, m == last);
        break;
    }
    if (state.parts.empty() && state.weights.empty()) saved.erase({m, chunk});
  }
}

/// A mean over the rows of the global batch is the sum over them, times this.
double Trainer::row_scale() const { return 1.0 / static_cast<double>(config_.train.batch * config_.model.context); }

BatchLoss Trainer::compute_gradients(std::int64_t step, const ReadSample& read) {
  Context all = context();
  shards_->begin_step(all);
  ops::fill(runtime_, loss_sum_, 0.0f);
  for (const Tensor* sums : {&expert_sums_, &head_sums_})
    if (*sums) ops::fill(runtime_, *sums, 0.0f);

  // The whole batch is read before the first backward: gradients are divided by the number of its targets.
  const bool is_here = std::exchange(ahead_step_, 0) == step;
  const std::vector<MicroBatch> mine = is_here ? std::exchange(ahead_, {}) : read_batch(read);
  const std::int64_t targets = is_here ? ahead_targets_ : count_targets(mine);
  if (targets == 0)
    throw Error({.what = fmt::format("step {}: nothing in the batch is a target", step),
                 .why = "the loss of a step is the mean over its targets",
                 .fix = "use a larger train.batch, or data with targets"});
  const double scale = 1.0 / static_cast<double>(targets);
  kernels::StepScalars scalars = optimizer_->scalars(step, learning_rate(config_.optimizer, step, config_.train.steps));
  scalars.targets = static_cast<double>(targets);
  ops::upload(runtime_, &scalars, runtime_.scalars);
  run(schedule_, mine, {.sum = loss_sum_, .scale = scale, .gradient = true}, true);
  stage_.sum_shared_tables(all);
  for (int group = 0; group < store_.groups(); ++group)
    if (stage_.shares(group)) shards_->final(group, all);
  shards_->finish(all);
  sum_over_rows_and_stages(loss_sum_, mesh_, "loss");
  if (expert_sums_) sum_over_rows_and_stages(expert_sums_, mesh_, "choices of experts");
  if (head_sums_) sum_over_rows_and_stages(head_sums_, mesh_, "choices of heads");
  return {.sum = loss_sum_, .targets = targets};
}

Tensor Trainer::update() {
  Context all = context();
  return optimizer_->step(all, {.loss_sum = loss_sum_,
                                .window = spike_window_,
                                .length = config_.train.spike.window,
                                .sigma = config_.train.spike.sigma,
                                .rejected = rejected_});
}

std::vector<SpikePoint> Trainer::spike_window() {
  std::vector<SpikePoint> points;
  if (!spike_window_ || runtime_.device.counts_only()) return points;
  const auto window = std::make_unique<kernels::SpikeWindow>();
  ops::download(runtime_, spike_window_, window.get());
  const std::int64_t length = config_.train.spike.window;
  for (std::int64_t i = std::max<std::int64_t>(0, window->accepted - length); i < window->accepted; ++i)
    points.push_back({window->losses[i % length], window->norms[i % length]});
  return points;
}

void Trainer::set_spike_window(const std::vector<SpikePoint>& points) {
  if (!spike_window_) return;
  const auto window = std::make_unique<kernels::SpikeWindow>();
  const std::int64_t length = config_.train.spike.window, count = std::ssize(points);
  for (std::int64_t i = std::max<std::int64_t>(0, count - length); i < count; ++i, ++window->accepted) {
    window->losses[window->accepted] = points[static_cast<std::size_t>(i)].loss;
    window->norms[window->accepted] = points[static_cast<std::size_t>(i)].norm;
  }
  ops::upload(runtime_, window.get(), spike_window_);
}

StepResult Trainer::step(std::int64_t step, const ReadSample& read, const std::function<void()>& before_update,
                         const ReadSample& read_next) {
  return finish_step(start_step(step, read, before_update, read_next));
}

StepInFlight Trainer::start_step(std::int64_t step, const ReadSample& read, const std::function<void()>& before_update,
                                 const ReadSample& read_next) {
  const BatchLoss loss = compute_gradients(step, read);
  if (before_update) before_update();
  const Tensor squared_norm = update();
  results_[static_cast<std::size_t>(step % 2)].begin(
      {loss.sum, squared_norm, runtime_.scalars, expert_sums_, head_sums_});
  if (read_next) {  // while the device works: no host waits for another before it has enqueued its next step
    ahead_ = read_batch(read_next);
    ahead_targets_ = count_targets(ahead_);
    ahead_step_ = step + 1;
  }
  return {.step = step, .targets = loss.targets, .rate = learning_rate(config_.optimizer, step, config_.train.steps)};
}

StepResult Trainer::finish_step(const StepInFlight& in_flight) {
  Readback& results = results_[static_cast<std::size_t>(in_flight.step % 2)];
  results.wait();
  kernels::StepScalars scalars;
  if (!runtime_.device.counts_only()) scalars = results.of<kernels::StepScalars>(2).front();
  StepResult result{.loss = results.of<double>(0).front() / static_cast<double>(in_flight.targets),
                    .gradient_norm = std::sqrt(results.of<double>(1).front()),
                    .rate = in_flight.rate,
                    .accepted = scalars.accepted != 0,
                    .loss_deviations = scalars.loss_deviations,
                    .norm_deviations = scalars.norm_deviations};
  if (!result.accepted) {
    optimizer_->set_state_origin(optimizer_->state_origin() + 1);
    constexpr std::uint64_t known = 0;  // for steps behind those that are in flight
    ops::upload(runtime_, &known, rejected_);
  }
  if (expert_sums_) {
    const std::span<const double> sums = results.of<double>(3);
    result.dropped = sums[0] > 0 ? sums[1] / sums[0] : 0;
    result.balance_loss = sums[2] / static_cast<double>(config_.train.batch * config_.model.context);
  }
  if (head_sums_) {
    const std::span<const double> sums = results.of<double>(4);
    result.heads_dropped = sums[0] > 0 ? sums[1] / sums[0] : 0;
    result.head_balance_loss = sums[2] / static_cast<double>(config_.train.batch * config_.model.context);
    result.head_imbalance = imbalance_of_heads(sums.subspan(3));
  }
  return result;
}

/// Of the rows that the heads of a step compute, the largest share of a tensor rank over the mean. `routed`: those of
/// each routed head.
double Trainer::imbalance_of_heads(std::span<const double> routed) const {
  const HeadPartition heads = attention_spec().heads;
  const std::int64_t always = config_.model.attention.routing.always;
  const ModelConfig& model = config_.model;
  const std::int64_t of_source = source_texts(model) * model.source_length() * model.encoder_blocks();
  const auto all_rows = static_cast<double>(config_.train.batch * (model.context * model.layers + of_source));
  double largest = 0, sum = 0;
  for (std::int64_t rank = 0; rank < heads.ranks; ++rank) {
    double of_rank = 0;
    for (std::int64_t head = heads.query(rank).begin; head < heads.query(rank).end; ++head)
      of_rank += head < always ? all_rows : routed[static_cast<std::size_t>(head - always)];
    largest = std::max(largest, of_rank);
    sum += of_rank;
  }
  return sum > 0 ? largest * static_cast<double>(heads.ranks) / sum : 1;
}

/// The forward actions of the schedule for `micro_batches` micro-batches.
std::vector<StageStep> Trainer::forward_steps(std::int64_t micro_batches) const {
  Pipeline pipeline = pipeline_;
  pipeline.micro_batches = static_cast<int>(micro_batches);
  std::vector<std::vector<Action>> schedules = make_schedules(pipeline);
  for (std::vector<Action>& schedule : schedules)
    std::erase_if(schedule, [](const Action& action) { return action.kind != Action::Kind::forward; });
  return with_transfers(pipeline, schedules)[static_cast<std::size_t>(mesh_.here.pipeline)];
}

std::optional<LossSum> Trainer::evaluate(std::int64_t samples, const ReadSample& read,
                                         const std::function<bool()>& stop) {
  ops::fill(runtime_, loss_sum_, 0.0f);
  ops::fill(runtime_, right_, 0.0f);
  double tokens = 0, bytes = 0;
  // As many micro-batches at a time as there are stages, as full as possible. All ranks run equally many of
  // the same size, since expert ranks exchange their rows: sequences that a rank lacks have no targets.
  const std::int64_t ranks = mesh_.shape.data, at_once = ranks * micro_batch_;
  bool stopped = false;
  for (std::int64_t first = 0; first < samples && !stopped; first += pipeline_.stages * at_once) {
    std::vector<MicroBatch> mine;
    for (std::int64_t begin = first; begin < samples && std::ssize(mine) < pipeline_.stages; begin += at_once) {
      const std::int64_t left = std::min(at_once, samples - begin), most = even_slice(left, ranks, 0).count();
      const Slice share = even_slice(left, ranks, mesh_.here.data);
      mine.push_back(read_micro_batch(begin + share.begin, std::max<std::int64_t>(1, most), share.count(), read));
      if (mesh_.here.pipeline > 0) continue;  // every stage has read the same: the first one counts
      tokens += static_cast<double>(mine.back().num_targets);
      bytes += static_cast<double>(mine.back().bytes);
    }
    run(forward_steps(std::ssize(mine)), mine, {.sum = loss_sum_, .right = right_}, false);
    stopped = stop && stop();
  }
  if (stopped) return std::nullopt;
  double host[4] = {0, tokens, bytes, 0};
  ops::download(runtime_, loss_sum_, &host[0]);
  ops::download(runtime_, right_, &host[3]);
  const Tensor sums = ops::to_device(runtime_, std::vector<double>(host, host + 4), DType::f64);
  sum_over_rows_and_stages(sums, mesh_, "evaluation");
  ops::download(runtime_, sums, host);
  return LossSum{.loss = host[0],
                 .tokens = static_cast<std::int64_t>(host[1]),
                 .bytes = static_cast<std::int64_t>(host[2]),
                 .right = static_cast<std::int64_t>(host[3])};
}

const char* samples_noun(const ModelConfig& model) {
  switch (model.family) {
    case ModelFamily::decoder:
    case ModelFamily::encoder:
      return "sequence";
    case ModelFamily::encoder_decoder:
      return source_texts(model) == 2 ? "triple" : "pair";
    case ModelFamily::classifier:
      return "text";
    case ModelFamily::vision:
      return "image";
  }
  std::abort();  // all values are above
}

std::string describe(const LossSum& sum, const ModelConfig& model) {
  if (model.is_classifier())
    return fmt::format("loss {:.4f} nats {} {}, {:.2f} % right", sum.mean(),
                       model.family == ModelFamily::vision ? "an" : "a", samples_noun(model), 100 * sum.accuracy());
  return fmt::format("loss {:.4f} nats a token, {:.4f} bits per byte", sum.mean(), sum.bits_per_byte());
}

double LossSum::bits_per_byte() const { return loss / std::numbers::ln2 / static_cast<double>(bytes); }

}  // namespace choir
