// One rank's share of a model and of what trains it; the training step; evaluation.
//
// The step is one loop over a schedule. On device `count` the same code runs and gives the plan.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/config/config.h"
#include "framework/core/readback.h"
#include "framework/model/families.h"
#include "framework/model/sample.h"
#include "framework/model/stage.h"
#include "framework/optim/optimizer.h"
#include "framework/parallel/shards.h"
#include "framework/parallel/stage_exchange.h"

namespace choir {

/// The loss of a global batch.
struct BatchLoss {
  Tensor sum;                ///< one f64 on the device: over the targets
  std::int64_t targets = 0;  ///< on device `count`, where nothing is read, as many as there are rows
};

struct StepResult {
  double loss = 0;           ///< mean over the target tokens of the global batch
  double gradient_norm = 0;  ///< over all parameters, before clipping
  double rate = 0;           ///< learning rate
  double dropped = 0;        ///< share of the choices of experts for which the expert had no room
  double balance_loss = 0;   ///< of experts, with its weight; not in `loss`
  double heads_dropped = 0;  ///< likewise, of the choices of heads
  double head_balance_loss = 0;
  double head_imbalance = 1;  ///< of the rows that heads compute, the largest share of a tensor rank over the mean
  bool accepted = true;       ///< false: the step has changed neither weights nor the optimizer's state
  /// Of the loss and the gradient norm, in standard deviations above their means; 0: not compared.
  double loss_deviations = 0, norm_deviations = 0;
};

/// A step that Trainer::start_step() has enqueued, and of which the host does not know yet how it ends.
struct StepInFlight {
  std::int64_t step = 0, targets = 0;
  double rate = 0;
};

/// The loss and the gradient norm of an accepted step.
struct SpikePoint {
  double loss = 0, norm = 0;
  bool operator==(const SpikePoint&) const = default;
};

/// Sums over target tokens, over all ranks.
struct LossSum {
  double loss = 0;          ///< nats
  std::int64_t tokens = 0;  ///< targets
  std::int64_t bytes = 0;   ///< of text
  std::int64_t right = 0;   ///< targets that the model finds likeliest
  double accuracy() const { return static_cast<double>(right) / static_cast<double>(tokens); }
  double mean() const { return loss / static_cast<double>(tokens); }  ///< nats a token
  double bits_per_byte() const;                                       ///< comparable across tokenizers
};

/// "loss 2.6931 nats a token, 1.8211 bits per byte", or of a classifier "loss 0.1033 nats an image, 97.22 % right".
std::string describe(const LossSum&, const ModelConfig&);

/// "sequence", "pair", "triple", "text" or "image": what a held-out sample of the model is.
const char* samples_noun(const ModelConfig&);

/// The mesh that the configuration asks for; the data axis gets the remaining ranks. Call validate() first.
MeshShape mesh_shape(const Config&, std::int64_t ranks);
/// "tensor 2 with sequence, context 2 (ring), pipeline 2 (1f1b), data 2, zero 3": without the axes of one rank, but for
/// tensor and data.
std::string describe_layout(const ParallelConfig&, const MeshShape&, ContextKind);

/// Of `sequences` sequences from `first_sample` on: the rows that the rank at `at` computes.
Rows rows_at(const Config&, const MeshShape& shape, const MeshShape::Coordinates& at, std::int64_t first_sample,
             std::int64_t sequences);
/// Of their sources, of all texts (nn/text_rows.h); no_rows() if the model has none.
Rows source_rows_at(const Config&, const MeshShape& shape, const MeshShape::Coordinates& at, std::int64_t first_sample,
                    std::int64_t sequences);

class Trainer {
 public:
  /// Declares, allocates and initialises this rank's share. `device` and `mesh` outlive the trainer. `inference`: no
  /// gradients, no masters beside the values and no optimizer; only evaluate() and generation may be called.
  Trainer(const Config&, Device&, Mesh&, bool inference = false);

  /// Step `step` (from 1): gradients of the global batch, then one update unless the step is rejected, which all ranks
  /// decide alike (train.spike). Throws Error, on every rank, if no token of the batch is a target. Collective.
  /// `before_update`, if any, is called when the gradients are complete. `read_next`, if any, reads the batch of the
  /// next step, while the device works on this one; step() of that step then does not read it again.
  StepResult step(std::int64_t step, const ReadSample& read, const std::function<void()>& before_update = {},
                  const ReadSample& read_next = {});

  /// The two halves of step(): start_step() does not wait for the device, finish_step() for this step only. At most two
  /// steps are in flight, and the older one is finished first. If it is rejected, the device has rejected the younger
  /// one as well, whatever its values: it is not finished, but started again.
  StepInFlight start_step(std::int64_t step, const ReadSample& read, const std::function<void()>& before_update = {},
                          const ReadSample& read_next = {});
  StepResult finish_step(const StepInFlight&);

  /// The two parts of start_step(). compute_gradients leaves complete gradients on this rank (with ZeRO: of its part),
  /// those of the sum of the losses divided by the number of targets; on return the device may still be working.
  BatchLoss compute_gradients(std::int64_t step, const ReadSample& read);
  /// Returns the squared gradient norm on the device.
  Tensor update();

  /// What the next step is compared with: the last accepted steps, oldest first. Empty if train.spike.sigma is 0.
  std::vector<SpikePoint> spike_window();
  void set_spike_window(const std::vector<SpikePoint>&);

  /// The losses of samples [0, samples) of `read`, split over the data ranks; negative targets do not count. `stop`, if
  /// any, is called after each micro-batch, with a pipeline after each group of as many as there are stages, and
  /// returns the same on every rank; if it returns true, evaluate() returns nothing. Collective.
  std::optional<LossSum> evaluate(std::int64_t samples, const ReadSample& read, const std::function<bool()>& stop);
  LossSum evaluate(std::int64_t samples, const ReadSample& read) { return *evaluate(samples, read, {}); }

  const Config& config() const { return config_; }
  Runtime& runtime() { return runtime_; }
  Mesh& mesh() { return mesh_; }
  Context context() {
    return {.runtime = runtime_,
            .mesh = mesh_,
            .kind = config_.parallel.context_kind,
            .fp8 = config_.train.precision == Precision::fp8,
            .tensor_chunks = tensor_chunks_,
            .choices = choices_,
            .offload = activations_ ? &*activations_ : nullptr};
  }
  /// From now on steps write the choices of experts and heads to `record`, or replay them; null: neither.
  void set_choices(ChoiceRecord* record) { choices_ = record; }
  /// From now on compute_gradients() writes what attention computes in micro-batches that begin before sample `end` of
  /// the batch to `record`; null: it does not.
  void set_attention(AttentionRecord* record, std::int64_t end = std::numeric_limits<std::int64_t>::max()) {
    attention_ = record;
    attention_end_ = end;
  }
  /// From now on called with what the parts of compute_gradients() compute, with the part's place in the stage; null:
  /// nobody looks.
  void set_watch(const WatchParts* watch) { watch_ = watch; }
  /// The names of the parts of this stage, and their places in the model.
  std::vector<std::pair<std::string, std::int64_t>> parts_here() const;
  /// rows_at() and source_rows_at() this rank.
  Rows rows(std::int64_t first_sample, std::int64_t sequences) const {
    return rows_at(config_, mesh_.shape, mesh_.here, first_sample, sequences);
  }
  Rows source_rows(std::int64_t first_sample, std::int64_t sequences) const {
    return source_rows_at(config_, mesh_.shape, mesh_.here, first_sample, sequences);
  }
  ParameterStore& parameters() { return store_; }
  const Stage& stage() const { return stage_; }
  Shards& shards() { return *shards_; }
  Optimizer& optimizer() { return *optimizer_; }

  std::int64_t micro_batches() const { return pipeline_.micro_batches; }  ///< a step and data rank
  std::int64_t micro_batch() const { return micro_batch_; }               ///< sequences in each
  const Pipeline& pipeline() const { return pipeline_; }
  /// A line for each stage, "stage 0: embedding, blocks.0 to blocks.2"; empty without a pipeline.
  std::string describe_stages() const;
  /// Of every layer; of an encoder-decoder those of the decoder.
  AttentionSpec attention_spec() const;
  /// How attention gets the keys and values of other context ranks.
  ContextKind context_kind() const;
  /// The share of the stages' time in which they wait, if an operation takes the same time everywhere and messages
  /// none.
  double bubble() const;
  /// The most that was in pinned memory of the host: masters, the optimizer's state, saved activations.
  std::int64_t offloaded_bytes() const { return offloaded_ ? offloaded_->at_peak().total() : 0; }

 private:
  /// A micro-batch on this rank.
  struct MicroBatch {
    BatchRows held;
    std::int64_t num_targets = 0;
    std::int64_t bytes = 0;  ///< of text, of whole sequences: counted by context rank 0
  };
  MicroBatch read_micro_batch(std::int64_t first_sample, std::int64_t sequences, std::int64_t real,
                              const ReadSample& read) const;
  std::vector<MicroBatch> read_batch(const ReadSample& read) const;
  std::int64_t count_targets(const std::vector<MicroBatch>&);
  void run(const std::vector<StageStep>& steps, const std::vector<MicroBatch>&, const Loss&, bool training);
  double row_scale() const;
  double imbalance_of_heads(std::span<const double> routed) const;
  std::vector<StageStep> forward_steps(std::int64_t micro_batches) const;

  Config config_;
  Mesh& mesh_;
  Runtime runtime_;
  TensorShare share_;
  std::int64_t micro_batch_ = 1, tensor_chunks_ = 1;
  ParameterStore store_;
  Pipeline pipeline_;
  std::vector<PartSpec> model_;
  Stage::Placement placement_;
  Stage stage_;
  std::unique_ptr<Allocator> offloaded_;  // memory of the host for what train.offload names; null: for nothing
  std::optional<ActivationOffload> activations_;
  std::unique_ptr<Shards> shards_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<StageStep> schedule_;
  std::int64_t ahead_step_ = 0;  // whose batch has been read already; 0: none
  std::vector<MicroBatch> ahead_;
  std::int64_t ahead_targets_ = 0;  // count_targets(ahead_)
  ChoiceRecord* choices_ = nullptr;
  AttentionRecord* attention_ = nullptr;
  std::int64_t attention_end_ = 0;
  const WatchParts* watch_ = nullptr;
  Tensor expert_sums_;               // Context::expert_sums, of a step; empty without experts
  Tensor head_sums_;                 // Context::head_sums, likewise
  Tensor loss_sum_;                  // one f64: over this rank's sequences, then over all
  Tensor right_;                     // one f64: Loss::right of an evaluation
  Tensor spike_window_;              // kernels::SpikeWindow; empty if no step is a spike
  Tensor rejected_;                  // one u64: kernels::Verdict::rejected
  std::array<Readback, 2> results_;  // of step s: s % 2; see start_step()
};

}  // namespace choir
