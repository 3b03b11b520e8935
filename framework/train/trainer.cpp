#include "framework/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>

#include "framework/ops/elementwise.h"
#include "framework/optim/schedule.h"

namespace choir {
namespace {

DType compute_type(Precision precision) {
  switch (precision) {
    case Precision::f32:
      return DType::f32;
    case Precision::bf16:
      return DType::bf16;
  }
  std::abort();  // all values are above
}

TensorShare tensor_share(const Config& config, const Mesh& mesh) {
  return {.rank = mesh.tensor->rank(), .size = mesh.tensor->size(), .sequence = config.parallel.sequence};
}

}  // namespace

MeshShape mesh_shape(const Config& config, std::int64_t ranks) {
  const ParallelConfig& p = config.parallel;
  return {.tensor = static_cast<int>(p.tensor),
          .context = static_cast<int>(p.context),
          .data = static_cast<int>(ranks / (p.tensor * p.context * p.pipeline)),
          .pipeline = static_cast<int>(p.pipeline)};
}

Trainer::Trainer(const Config& config, Device& device, Mesh& mesh, bool inference)
    : config_(config),
      mesh_(mesh),
      runtime_{.device = device, .seed = config.train.seed, .compute_type = compute_type(config.train.precision)},
      share_(tensor_share(config, mesh)),
      stage_(make_parts(config.model, config.train.recompute == Recompute::block), share_, store_) {
  runtime_.scalars = runtime_.empty({sizeof(kernels::StepScalars)}, DType::u8, MemoryKind::optimizer);
  loss_sum_ = runtime_.empty({1}, DType::f64, MemoryKind::optimizer);
  store_.allocate(runtime_, bucket_alignment(mesh.data->size()), inference);
  store_.initialize(runtime_);
  if (inference) return;

  data_parallel_ = std::make_unique<DataParallel>(store_, mesh, config.parallel.zero == 1);
  Context all = context();
  optimizer_ = std::make_unique<Optimizer>(config.optimizer, store_, *data_parallel_, all);
  const std::int64_t share_of_batch = config.train.batch / mesh.data->size();
  micro_batch_ = config.parallel.micro_batch > 0 ? config.parallel.micro_batch : share_of_batch;
  micro_batches_ = share_of_batch / micro_batch_;
  const Pipeline pipeline{.stages = mesh.shape.pipeline, .micro_batches = static_cast<int>(micro_batches_)};
  schedule_ = make_schedules(pipeline)[static_cast<std::size_t>(mesh.here.pipeline)];
}

Batch Trainer::read_batch(std::int64_t first_sample, std::int64_t end_sample, const ReadSample& read) {
  const auto length = static_cast<std::size_t>(config_.model.context);
  const auto rows = static_cast<std::size_t>(end_sample - first_sample) * length;
  std::vector<std::int32_t> ids(rows), targets(rows);
  if (!runtime_.device.counts_only())
    for (std::size_t s = 0; s < rows / length; ++s)
      read(first_sample + static_cast<std::int64_t>(s), std::span(ids).subspan(s * length, length),
           std::span(targets).subspan(s * length, length));
  return {ops::to_device(runtime_, ids, DType::i32), ops::to_device(runtime_, targets, DType::i32)};
}

Tensor Trainer::compute_gradients(std::int64_t step, const ReadSample& read) {
  const kernels::StepScalars scalars =
      optimizer_->scalars(step, learning_rate(config_.optimizer, step, config_.train.steps));
  ops::upload(runtime_, &scalars, runtime_.scalars);
  ops::fill(runtime_, store_.gradient, 0.0f);
  ops::fill(runtime_, loss_sum_, 0.0f);

  // Training windows are full, so every rank knows the global number of target tokens.
  const double scale = 1.0 / static_cast<double>(config_.train.batch * config_.model.context);
  const std::int64_t first = mesh_.here.data * micro_batches_ * micro_batch_;
  std::vector<Stage::Saved> slots(static_cast<std::size_t>(peak_in_flight(schedule_)));
  for (const auto& [kind, m, chunk] : schedule_) {
    Context here = context();
    here.sequences = micro_batch_;
    here.length = config_.model.context;
    here.first_sample = first + m * micro_batch_;
    Stage::Saved& saved = slots[static_cast<std::size_t>(m) % slots.size()];
    if (kind == Action::Kind::forward) {
      const Batch batch = read_batch(here.first_sample, here.first_sample + micro_batch_, read);
      stage_.forward(0, {}, batch, {.sum = loss_sum_, .scale = scale, .gradient = true}, saved, here);
    } else {
      const bool last = m == micro_batches_ - 1;
      stage_.backward(0, {}, saved, here, [&](int group) {
        if (!last) return;
        sum_shared_gradients(store_, group, here);
        data_parallel_->group_final(group, here);
      });
    }
  }
  Context all = context();
  data_parallel_->finish(all);
  mesh_.data->all_reduce(loss_sum_, Reduce::sum, runtime_.device.compute(), "loss");
  return loss_sum_;
}

Tensor Trainer::update() {
  Context all = context();
  return optimizer_->step(all);
}

StepResult Trainer::step(std::int64_t step, const ReadSample& read) {
  const Tensor loss = compute_gradients(step, read);
  const Tensor squared_norm = update();
  double loss_sum = 0, norm = 0;
  ops::download(runtime_, loss, &loss_sum);
  ops::download(runtime_, squared_norm, &norm);
  return {.loss = loss_sum / static_cast<double>(config_.train.batch * config_.model.context),
          .gradient_norm = std::sqrt(norm),
          .rate = learning_rate(config_.optimizer, step, config_.train.steps)};
}

std::optional<LossSum> Trainer::evaluate(std::int64_t samples, const ReadSample& read,
                                         const std::function<bool()>& stop) {
  ops::fill(runtime_, loss_sum_, 0.0f);
  double tokens = 0, bytes = 0;
  const ReadSample counted = [&](std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
    const std::int64_t text = read(index, inputs, targets);
    bytes += static_cast<double>(text);
    tokens += static_cast<double>(std::count_if(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; }));
    return text;
  };
  // One micro-batch on every data rank at a time, as full as possible.
  const std::int64_t ranks = mesh_.data->size(), at_once = ranks * micro_batch_;
  bool stopped = false;
  for (std::int64_t first = 0; first < samples && !stopped; first += at_once) {
    const Slice share = even_slice(std::min(at_once, samples - first), ranks, mesh_.here.data);
    if (share.begin < share.end) {
      Context here = context();
      here.training = false;
      here.sequences = share.end - share.begin;
      here.length = config_.model.context;
      const Batch batch = read_batch(first + share.begin, first + share.end, counted);
      Stage::Saved saved;
      stage_.forward(0, {}, batch, {.sum = loss_sum_}, saved, here);
    }
    stopped = stop && stop();
  }
  if (stopped) return std::nullopt;
  double host[3] = {0, tokens, bytes};
  ops::download(runtime_, loss_sum_, host);
  const Tensor sums = ops::to_device(runtime_, std::vector<double>(host, host + 3), DType::f64);
  mesh_.data->all_reduce(sums, Reduce::sum, runtime_.device.compute(), "evaluation");
  ops::download(runtime_, sums, host);
  return LossSum{
      .loss = host[0], .tokens = static_cast<std::int64_t>(host[1]), .bytes = static_cast<std::int64_t>(host[2])};
}

double LossSum::bits_per_byte() const { return loss / std::numbers::ln2 / static_cast<double>(bytes); }

}  // namespace choir
