// A small training run in any layout, for the tests of this folder.
#pragma once

#include <gtest/gtest.h>
#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "framework/train/trainer.h"
#include "tests/support/device.h"
#include "tests/support/gather.h"
#include "tests/support/small_models.h"

namespace choir::tests {

inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

inline int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// Why products of 8 bits cannot be tried on this device; empty: they can.
inline std::string reason_to_skip_fp8(Device& device) {
  if (device.kind() == DeviceKind::cpu || device.gpu_facts().compute_capability == 90) return {};
  return "the GPU is sm_" + std::to_string(device.gpu_facts().compute_capability) +
         "; cuBLASLt has a scale for each row on sm_90";
}

/// Where the arithmetic happens.
struct Layout {
  std::string name;
  int tensor = 1, data = 1;
  bool sequence = false;
  int zero = 0;
  std::int64_t micro_batch = 0;
  Recompute recompute = Recompute::none;
  StreamMode streams = StreamMode::immediate;
  int pipeline = 1;
  PipelineSchedule schedule = PipelineSchedule::one_forward_one_backward;
  int context = 1;
  ContextKind context_kind = ContextKind::automatic;
  int shard = 0;
  int expert = 1;  // for models with experts
  Offload offload = Offload::none;
  std::int64_t tensor_chunks = 0;
};
inline void PrintTo(const Layout& of, std::ostream* to) { *to << of.name; }

/// The models of small_models.h; on the simulated GPU and on four ranks and more, some that together have every family,
/// layer and option.
inline std::vector<SmallModel> models_under_test() {
  std::vector<const char*> names;
  if (device_is_simulated() && world_size() > 2)  // they differ from two in what does not divide by three
    names = {"window_8_of_2", "biased_experts", "pairs"};
  else if (device_is_simulated())
    names = {"window_8_of_2", "dropout", "biased_experts", "chosen_heads", "linear", "linear_pairs", "convolution"};
  else if (world_size() > 4)
    names = {"five_heads", "window_8_of_2", "one_kv_head", "shared_experts", "llama_pairs", "convolution"};
  else if (world_size() == 4)  // with the most layouts
    names = {"gpt",         "five_heads",    "window_8_of_2",  "one_kv_head", "shared_experts", "biased_experts",
             "documents",   "linear",        "soft_cap_alibi", "sinks",       "two_sources",    "classifier",
             "convolution", "linear_encoder"};
  std::vector<SmallModel> some;
  if (names.empty()) some = small_models();
  const auto leave_out = [&](const char* name) {
    std::erase_if(some, [&](const SmallModel& model) { return model.name == name; });
  };
  if (world_size() == 2) leave_out("chosen_pairs"), leave_out("linear_vision");  // three ranks try them
  if (world_size() == 3) leave_out("linear_classifier");                         // two ranks try it
  for (const char* name : names) some.push_back({name, small_model(name)});
  return some;
}

inline const Layout one_rank = {.name = "one rank"};
inline constexpr std::int64_t batch = 12;  // sequences: 1, 2, 3 and 4 data ranks get 3 or more each

/// Products of axes that need more than four ranks. They run on few models.
inline std::vector<Layout> large_layouts(int ranks) {
  using enum PipelineSchedule;
  if (ranks == 6)
    return {
        {.name = "tensor 3, context 2, ring, sequence, micro-batch 6",
         .tensor = 3,
         .sequence = true,
         .micro_batch = 6,
         .context = 2,
         .context_kind = ContextKind::ring},
        {.name = "tensor 3, data 2, zero 3, micro-batch 3", .tensor = 3, .data = 2, .zero = 3, .micro_batch = 3},
        {.name = "context 2, pipeline 3, gather, micro-batch 4",
         .micro_batch = 4,
         .pipeline = 3,
         .context = 2,
         .context_kind = ContextKind::gather},
        {.name = "tensor 2, data 3, zero 2, sequence", .tensor = 2, .data = 3, .sequence = true, .zero = 2},
    };
  if (ranks == 8)
    return {
        {.name = "tensor 2, context 2, pipeline 2, micro-batch 4",
         .tensor = 2,
         .micro_batch = 4,
         .pipeline = 2,
         .context = 2},
        {.name = "tensor 2, context 2, pipeline 2, zero_bubble, sequence, heads, zero 1, micro-batch 6",
         .tensor = 2,
         .sequence = true,
         .zero = 1,
         .micro_batch = 6,
         .pipeline = 2,
         .schedule = zero_bubble,
         .context = 2,
         .context_kind = ContextKind::heads},
        {.name = "tensor 2, data 2, pipeline 2, zero 3, micro-batch 3, recompute",
         .tensor = 2,
         .data = 2,
         .zero = 3,
         .micro_batch = 3,
         .recompute = Recompute::block,
         .pipeline = 2},
        {.name = "data 4, pipeline 2, v, zero 3, shard 2, micro-batch 1",
         .data = 4,
         .zero = 3,
         .micro_batch = 1,
         .pipeline = 2,
         .schedule = v_shaped,
         .shard = 2},
        {.name = "tensor 2, context 4, ring", .tensor = 2, .context = 4, .context_kind = ContextKind::ring},
        {.name = "tensor 2, context 2, data 2, gather, zero 3, shard 2",
         .tensor = 2,
         .data = 2,
         .zero = 3,
         .context = 2,
         .context_kind = ContextKind::gather,
         .shard = 2},
        {.name = "context 2, data 2, pipeline 2, interleaved, zero 2, micro-batch 2",
         .data = 2,
         .zero = 2,
         .micro_batch = 2,
         .pipeline = 2,
         .schedule = interleaved,
         .context = 2},
    };
  return {};
}

/// The layouts that fit `ranks` ranks.
inline std::vector<Layout> layouts(int ranks) {
  if (ranks > 4) return large_layouts(ranks);
  if (device_is_simulated()) {
    std::vector<Layout> some = {
        {.name = "tensor in 3 chunks, sequence", .tensor = ranks, .sequence = true, .tensor_chunks = 3}};
    if (ranks > 1)
      some.push_back({.name = "data, zero 1, micro-batch 2, recompute",
                      .data = ranks,
                      .zero = 1,
                      .micro_batch = 2,
                      .recompute = Recompute::norms});
    if (ranks > 1) some.push_back({.name = "data, zero 3, micro-batch 2", .data = ranks, .zero = 3, .micro_batch = 2});
    if (ranks > 1) some.push_back({.name = "pipeline", .micro_batch = 4, .pipeline = ranks});
    if (ranks > 1) some.push_back({.name = "context", .micro_batch = 6, .context = ranks});
    return some;
  }
  using enum PipelineSchedule;
  std::vector<Layout> all = {
      {.name = "tensor", .tensor = ranks},
      {.name = "tensor, sequence", .tensor = ranks, .sequence = true},
      {.name = "tensor in 2 chunks, sequence, micro-batch 1, recompute",
       .tensor = ranks,
       .sequence = true,
       .micro_batch = 1,
       .recompute = Recompute::attention,
       .tensor_chunks = 2},
      {.name = "tensor in 3 chunks, micro-batch 4", .tensor = ranks, .micro_batch = 4, .tensor_chunks = 3},
      {.name = "data", .data = ranks},
      {.name = "data, micro-batch 1", .data = ranks, .micro_batch = 1},
      {.name = "data, zero 1, recompute", .data = ranks, .zero = 1, .recompute = Recompute::feed_forward},
      {.name = "data, zero 2, micro-batch 1", .data = ranks, .zero = 2, .micro_batch = 1},
      {.name = "data, zero 3, micro-batch 1", .data = ranks, .zero = 3, .micro_batch = 1},
      {.name = "data, zero 3, recompute", .data = ranks, .zero = 3, .recompute = Recompute::block},
  };
  all.push_back({.name = "pipeline, micro-batch 3", .micro_batch = 3, .pipeline = ranks});
  all.push_back({.name = "pipeline, zero_bubble, micro-batch 2, recompute",
                 .micro_batch = 2,
                 .recompute = Recompute::attention,
                 .pipeline = ranks,
                 .schedule = zero_bubble});
  if (ranks <= 2) {  // two stretches on each stage: the models have four parts
    all.push_back({.name = "interleaved, micro-batch 2", .micro_batch = 2, .pipeline = ranks, .schedule = interleaved});
    all.push_back({.name = "v, micro-batch 1", .micro_batch = 1, .pipeline = ranks, .schedule = v_shaped});
  }
  if (ranks > 1) {
    all.push_back({.name = "context, ring, micro-batch 2",
                   .micro_batch = 2,
                   .context = ranks,
                   .context_kind = ContextKind::ring});
    all.push_back({.name = "context, gather, recompute",
                   .recompute = Recompute::attention,
                   .context = ranks,
                   .context_kind = ContextKind::gather});
    all.push_back({.name = "context, heads", .context = ranks, .context_kind = ContextKind::heads});
  }
  if (ranks == 4) {
    all.push_back({.name = "tensor 2, context 2, ring, sequence, micro-batch 3",
                   .tensor = 2,
                   .sequence = true,
                   .micro_batch = 3,
                   .context = 2,
                   .context_kind = ContextKind::ring});
    all.push_back({.name = "tensor 2, context 2, heads, sequence",
                   .tensor = 2,
                   .sequence = true,
                   .context = 2,
                   .context_kind = ContextKind::heads});
    all.push_back({.name = "context 2, data 2, gather, zero 1, micro-batch 1",
                   .data = 2,
                   .zero = 1,
                   .micro_batch = 1,
                   .context = 2,
                   .context_kind = ContextKind::gather});
    all.push_back({.name = "context 2, pipeline 2, micro-batch 2", .micro_batch = 2, .pipeline = 2, .context = 2});
    all.push_back({.name = "tensor 2, pipeline 2, interleaved, sequence, micro-batch 3",
                   .tensor = 2,
                   .sequence = true,
                   .micro_batch = 3,
                   .pipeline = 2,
                   .schedule = interleaved});
    all.push_back(
        {.name = "data 2, pipeline 2, zero 1, micro-batch 2", .data = 2, .zero = 1, .micro_batch = 2, .pipeline = 2});
    all.push_back(
        {.name = "data 2, pipeline 2, zero 3, micro-batch 2", .data = 2, .zero = 3, .micro_batch = 2, .pipeline = 2});
    all.push_back({.name = "data 2, pipeline 2, zero 2, v, micro-batch 1",
                   .data = 2,
                   .zero = 2,
                   .micro_batch = 1,
                   .pipeline = 2,
                   .schedule = v_shaped});
    all.push_back({.name = "data, zero 3, shard 2, micro-batch 1", .data = 4, .zero = 3, .micro_batch = 1, .shard = 2});
    all.push_back({.name = "context 2, data 2, zero 2, shard 2, micro-batch 3",
                   .data = 2,
                   .zero = 2,
                   .micro_batch = 3,
                   .context = 2,
                   .shard = 2});
    all.push_back({.name = "tensor 2, data 2, sequence, zero 3, micro-batch 3",
                   .tensor = 2,
                   .data = 2,
                   .sequence = true,
                   .zero = 3,
                   .micro_batch = 3});
    all.push_back({.name = "tensor 2, data 2", .tensor = 2, .data = 2});
    all.push_back({.name = "tensor 2, data 2, sequence, micro-batch 1",
                   .tensor = 2,
                   .data = 2,
                   .sequence = true,
                   .micro_batch = 1});
    all.push_back({.name = "tensor 2, data 2, sequence, zero 1", .tensor = 2, .data = 2, .sequence = true, .zero = 1});
  }
  return all;
}

/// Those for `model`: with experts, also the layouts of the expert axis. Heads that are chosen need gathered keys.
inline std::vector<Layout> layouts(int ranks, const ModelConfig& model) {
  std::vector<Layout> all = layouts(ranks);
  if (model.routes_heads()) {
    std::erase_if(all, [](const Layout& layout) { return layout.context_kind == ContextKind::heads; });
    for (Layout& layout : all) layout.context_kind = ContextKind::automatic;
    if (device_is_simulated())  // the others have been tried with other models
      std::erase_if(all, [](const Layout& layout) { return layout.tensor == 1 && layout.context == 1; });
  }
  if (model.experts.count == 0 || ranks == 1) return all;
  if (device_is_simulated()) all.resize(1);  // the others have been tried with other models
  if (ranks <= 4) {
    all.push_back({.name = "expert", .data = ranks, .micro_batch = 1, .expert = ranks});
    if (device_is_simulated()) return all;
    all.push_back({.name = "expert, zero 3, recompute",
                   .data = ranks,
                   .zero = 3,
                   .recompute = Recompute::feed_forward,
                   .expert = ranks});
    all.push_back({.name = "expert and context", .micro_batch = 2, .context = ranks, .expert = ranks});
  }
  if (ranks == 8) {
    all.push_back({.name = "tensor 2, data 4, expert 2, zero 3, micro-batch 1",
                   .tensor = 2,
                   .data = 4,
                   .zero = 3,
                   .micro_batch = 1,
                   .expert = 2});
    all.push_back({.name = "tensor 2, data 2, expert 2, pipeline 2, sequence, micro-batch 2",
                   .tensor = 2,
                   .data = 2,
                   .sequence = true,
                   .micro_batch = 2,
                   .pipeline = 2,
                   .expert = 2});
  }
  if (ranks != 4) return all;
  all.push_back({.name = "tensor 2, expert 2, sequence, zero 1",
                 .tensor = 2,
                 .data = 2,
                 .sequence = true,
                 .zero = 1,
                 .expert = 2});
  all.push_back({.name = "data 4, expert 2, zero 3", .data = 4, .zero = 3, .expert = 2});
  all.push_back(
      {.name = "data 4, expert 2, zero 2, micro-batch 1", .data = 4, .zero = 2, .micro_batch = 1, .expert = 2});
  all.push_back({.name = "data 4, expert 2, zero 3, shard 2, micro-batch 1",
                 .data = 4,
                 .zero = 3,
                 .micro_batch = 1,
                 .shard = 2,
                 .expert = 2});
  all.push_back({.name = "context 2, data 2, expert 4", .data = 2, .context = 2, .expert = 4});
  all.push_back({.name = "data 2, expert 2, pipeline 2, zero_bubble, micro-batch 2",
                 .data = 2,
                 .micro_batch = 2,
                 .pipeline = 2,
                 .schedule = PipelineSchedule::zero_bubble,
                 .expert = 2});
  return all;
}

inline OptimizerConfig plain_sgd(double rate) {
  return {.kind = OptimizerKind::sgd, .rate = rate, .schedule = Schedule::constant, .weight_decay = 0, .clip = 0};
}

/// With an epsilon far above the noise of a gradient that is exactly zero (design: an AdamW step divides by its size).
inline OptimizerConfig safe_adamw(double rate) {
  return {.kind = OptimizerKind::adamw,
          .rate = rate,
          .schedule = Schedule::constant,
          .epsilon = 1e-3,
          .weight_decay = 0.1,
          .clip = 0.5};
}

inline ParallelConfig parallel_of(const Layout& layout) {
  return {.tensor = layout.tensor,
          .sequence = layout.sequence,
          .tensor_chunks = layout.tensor_chunks,
          .context = layout.context,
          .context_kind = layout.context_kind,
          .pipeline = layout.pipeline,
          .schedule = layout.schedule,
          .expert = layout.expert,
          .zero = layout.zero,
          .shard = layout.shard,
          .micro_batch = layout.micro_batch};
}

inline Config small_config(const ModelConfig& model, const OptimizerConfig& optimizer, const Layout& layout) {
  Config config;
  config.model = model;
  config.optimizer = optimizer;
  config.train.batch = batch;
  config.train.recompute = layout.recompute;
  config.train.offload = layout.offload;
  config.parallel = parallel_of(layout);
  return config;
}

/// Reads the batch of step `step` from the endless random text.
inline ReadSample read_random(const ModelConfig& model, std::int64_t step = 0) {
  return [model, first = step * batch](std::int64_t index, const Sample& sample) {
    random_sample(model, random_key_of_tests, first + index, sample);
    return static_cast<std::int64_t>(sample.targets.size());
  };
}

/// A trainer with all that it stands on. Collective over `ranks`.
struct SmallRun {
  SmallRun(MPI_Comm ranks, const Config& config, std::unique_ptr<Device> owned)
      : owned_device(std::move(owned)),
        device(*owned_device),
        mesh(mesh_of(ranks, config, device, ring)),
        trainer(config, device, mesh) {
    Config any_processor = config;
    any_processor.train.emulate_bf16 = true;
    for (const Problem& problem : validate(any_processor, mesh.shape.ranks())) ADD_FAILURE() << problem.what;
  }
  /// On all ranks of the job, on the device under test.
  explicit SmallRun(const Config& config, StreamMode streams = StreamMode::immediate)
      : SmallRun(MPI_COMM_WORLD, config, make_device(streams)) {}
  SmallRun(const ModelConfig& model, const OptimizerConfig& optimizer, const Layout& layout)
      : SmallRun(small_config(model, optimizer, layout), layout.streams) {}
  ~SmallRun() { device.synchronize(); }

  /// Step `index`, from 0, of the endless random text. `before_update`: when its gradients are there.
  StepResult step(std::int64_t index, const std::function<void()>& before_update = {}) {
    of_step(index);
    return trainer.step(index + 1, read_random(trainer.config().model, index), before_update);
  }
  /// Leaves the gradients of step `index`.
  BatchLoss compute_gradients(std::int64_t index = 0) {
    return compute_gradients(index, read_random(trainer.config().model, index));
  }
  BatchLoss compute_gradients(std::int64_t index, const ReadSample& read) {
    of_step(index);
    return trainer.compute_gradients(index + 1, read);
  }
  /// From now on tokens choose the experts that they chose in the same steps of `other`: between layouts a choice may
  /// differ if two scores are equal up to rounding.
  void replay(const SmallRun& other) {
    choices = other.choices;
    choices.replays = true;
  }
  /// Only scores within `bound` of each other have changed places.
  void expect_choices_within(double bound) const {
    if (choices.replays) {
      EXPECT_LE(choices.widest, bound) << choices.differing << " rows chose otherwise";
    }
  }

  Tensors gradients() { return gather_all(&Bucket::gradient); }
  Tensors masters() { return gather_all(&Bucket::master); }
  /// Every rank has the same bits of what it updates, and of the values that layers read.
  void expect_copies_equal(const Tensors& masters) {
    expect_held_equal(device, trainer.parameters(), trainer.shards(), &Bucket::master, masters, "parameter");
    Context context = trainer.context();
    expect_values_are_masters(trainer.parameters(), trainer.shards(), masters, context);
  }

  CallRing ring;
  std::unique_ptr<Device> owned_device;
  Device& device;
  Mesh mesh;
  Trainer trainer;
  ChoiceRecord choices;

 private:
  void of_step(std::int64_t index) {
    const ModelConfig& model = trainer.config().model;
    choices.first_row = index * batch * std::max(model.context, source_texts(model) * model.source_length());
    trainer.set_choices(trainer.config().model.experts.count > 0 ? &choices : nullptr);
  }
  static Mesh mesh_of(MPI_Comm ranks, const Config& config, Device& device, CallRing& ring) {
    int size = 0;
    MPI_Comm_size(ranks, &size);
    return make_mesh(ranks, mesh_shape(config, size), device, ring);
  }
  Tensors gather_all(const Tensor Bucket::*tensor) {
    Context context = trainer.context();
    return gather(trainer.config().model, trainer.parameters(), trainer.shards(), tensor, context);
  }
};

/// The same on this rank alone and on the CPU: what every layout, and every device, is compared with.
inline std::unique_ptr<SmallRun> run_alone(const ModelConfig& model, const OptimizerConfig& optimizer,
                                           Precision precision = Precision::f32) {
  Config config = small_config(model, optimizer, one_rank);
  config.train.precision = precision;
  return std::make_unique<SmallRun>(MPI_COMM_SELF, config, std::make_unique<Device>(1));
}

}  // namespace choir::tests
