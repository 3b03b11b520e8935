// What run_training() (run.h) is made of. Its steps and their ends: run.cpp; what it says and writes to metrics.jsonl:
// run_report.cpp; steps that change nothing: run_rejected.cpp.
#pragma once

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/writer.h"
#include "framework/train/dataset.h"
#include "framework/train/head_samples.h"
#include "framework/train/metrics_file.h"
#include "framework/train/progress.h"
#include "framework/train/run.h"
#include "framework/train/snapshot.h"
#include "framework/train/start.h"
#include "framework/train/state_check.h"
#include "framework/train/stragglers.h"
#include "framework/train/trainer.h"

namespace choir {

/// The bookkeeping of one run on one rank.
class Run {
 public:
  using Clock = std::chrono::steady_clock;

  Run(const Config&, const RunOptions&, Device&, Mesh&, Watchdog&);
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  RunEnd train();

 private:
  bool is_first() const { return mesh_.world->rank() == 0; }
  Agreement ranks() { return Agreement(*mesh_.host); }
  void say(const std::string& text);
  void metric(const nlohmann::ordered_json& line);
  void measure_peak(Trainer& trainer);
  void enter_folder();
  void load(Trainer& trainer);
  void resume_from(const CheckpointReader& reader, Trainer& trainer);
  State state_at(const RunPosition& position) const;
  void describe(Trainer& trainer);
  void recall_products(Trainer& trainer);
  void choose_products(Trainer& trainer);
  void report(const StepResult& result, double seconds, double run_seconds, std::int64_t steps_done);
  RunPosition position_ahead() const;
  bool is_awaited(std::int64_t step) const;
  void start_step(Trainer& trainer);
  RunEnd finish_step(Trainer& trainer);
  void report_heads(const HeadSamples& heads);
  bool evaluation_is_due() const;
  RunEnd evaluate(Trainer& trainer);
  RunEnd evaluate_what_was_missed(Trainer& trainer);
  void save(Trainer& trainer);
  void tell(const std::optional<SaveOutcome>& outcome);
  RunEnd agreed_stop(bool* comparison_is_due = nullptr);
  void compare_times();
  bool state_check_is_due(std::int64_t step) const {
    return config_.train.check_every > 0 && step % config_.train.check_every == 0;
  }
  void check_state(std::int64_t step, const std::string& difference, const std::string& why);
  void begin(Phase phase) { watchdog_.begin(phase, position_.step); }
  struct Reason {
    std::string why, fix;
  };
  Reason reason_of_divergence() const;
  Reason reason_of_rejection(const StepResult& result) const;
  std::string describe_rejected(Trainer& trainer, const StepResult& result);
  void save_bad_step(Trainer& trainer, const RunPosition& before, const StepResult& result);
  void record_rejected(const StepResult& result, std::int64_t step);
  void save_before(Trainer& trainer, const RunPosition& before);
  bool rewind(Trainer& trainer, const RunPosition& before);
  RunEnd reject(Trainer& trainer, RunPosition before, const StepResult& result);
  LeftOut batch_at(const RunPosition&) const;
  /// The sample after the last one that the step after `position` reads.
  std::int64_t end_of_batch(const RunPosition& position) const {
    return position.left_out.sample(position.samples, config_.train.batch - 1) + 1;
  }

  /// A step that the device may still compute. The host goes on meanwhile: it starts the next one, and then looks how
  /// this one has ended.
  struct InFlight {
    StepInFlight step;
    std::optional<HeadSamples> heads;  // if train.inspect_every asks for them
    Clock::time_point began;
  };

  const Config& config_;
  const RunOptions& options_;
  Mesh& mesh_;
  Device& device_;
  Watchdog& watchdog_;
  std::unique_ptr<Dataset> data_;
  std::optional<RunLock> lock_;  // of rank 0
  Start start_;
  std::optional<Trainer> trainer_;  // of train(); what follows may hold its tensors
  RunPosition position_;            // after the last step that is done, and whose end is known
  std::deque<InFlight> in_flight_;  // the steps behind it
  std::optional<Stragglers> stragglers_;
  Clock::time_point steps_began_at_, last_finished_;
  std::int64_t steps_done_ = 0;  // accepted, by this process
  Progress progress_;
  std::shared_ptr<spdlog::logger> log_;  // in the run folder; until enter_folder() lines wait in memory
  std::vector<std::string> said_early_;
  Stream io_;  // the process's one HDF5 thread
  std::optional<CheckpointWriter> writer_;
  std::optional<StateCheck> state_check_;  // empty: never
  std::optional<MetricsFile> metrics_;     // of rank 0
  std::int64_t last_saved_ = 0;            // the seed gives step 0
  double product_flops_per_second_ = 0;    // the fastest matrix product measured on this rank
  double peak_flops_per_second_ = 0;       // the sum of these over all ranks
  bool told_of_peak_ = false;
  std::string load_began_, steps_began_;  // in the first line of metrics.jsonl of this process
  std::string products_;                  // ProductChoices::text() of those in use; empty: none
  bool times_products_ = false;           // after the next step
  std::int64_t rejected_ = 0;             // steps, since the last one that was accepted
  std::int64_t last_rejected_ = 0;        // step
};

}  // namespace choir
