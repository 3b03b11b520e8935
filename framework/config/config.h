// The whole configuration: what `configs/*.yaml` says, as plain structs.
//
//   Config c = read_config("run.yaml", {"train.steps=100"});   // ConfigError names file, line and nearest key
//   throw_if_any(validate(c, ranks));                          // all problems at once
//   print(c)                                                   // resolved, complete YAML: reading it gives c again
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint_config.h"
#include "framework/core/cuda.h"
#include "framework/core/error.h"
#include "framework/core/names.h"
#include "framework/core/stream.h"
#include "framework/data/data_config.h"
#include "framework/model/model_config.h"
#include "framework/nn/recompute_kind.h"
#include "framework/optim/optimizer_config.h"
#include "framework/parallel/parallel_config.h"

namespace choir {

/// Of activations and matrix products. fp8: as bf16, but the products of forward and of input gradients multiply 8
/// bits.
enum class Precision { f32, bf16, fp8 };
template <>
inline constexpr auto names<Precision> = std::array{"f32", "bf16", "fp8"};

/// Where the arithmetic runs. automatic: on a GPU if one is visible.
enum class TrainDevice { automatic, cpu, cuda };
template <>
inline constexpr auto names<TrainDevice> = std::array{"auto", "cpu", "cuda"};

/// What multiplies on the CPU. automatic: bf16 on tiles if all processors have them, else in vectors if they are fast.
enum class CpuKernels { automatic, tiles, onednn };
template <>
inline constexpr auto names<CpuKernels> = std::array{"auto", "tiles", "onednn"};

/// What a GPU run keeps in memory of the host.
enum class Offload { none, optimizer, optimizer_and_activations };
template <>
inline constexpr auto names<Offload> = std::array{"none", "optimizer", "optimizer+activations"};

struct TrainAttentionConfig {
  AttentionImplementation implementation = AttentionImplementation::automatic;  ///< of a GPU
  bool deterministic = true;                                                    ///< the same bits every run

  bool operator==(const TrainAttentionConfig&) const = default;
};

/// What follows a step whose update is left out.
enum class SpikeAction { stop, skip, rewind };
template <>
inline constexpr auto names<SpikeAction> = std::array{"stop", "skip", "rewind"};

/// Which steps are rejected (kernels/verdict.h), besides those whose loss or gradient norm is not finite.
struct SpikeConfig {
  SpikeAction action = SpikeAction::stop;
  double sigma = 0;           ///< standard deviations above the mean of the window; 0: no step is a spike
  std::int64_t window = 128;  ///< accepted steps
  std::int64_t most = 10;     ///< rejected steps in a row; then the run stops

  bool operator==(const SpikeConfig&) const = default;
};

struct TrainConfig {
  std::string folder;  ///< the run folder; empty: runs/<name of the configuration file>
  std::int64_t steps = 1000;
  std::int64_t batch = 64;  ///< sequences per step, over all ranks
  Precision precision = Precision::f32;
  bool emulate_bf16 = false;  ///< let bf16 run, slowly, on a processor without bf16 instructions
  std::uint64_t seed = 1;
  TrainDevice device = TrainDevice::automatic;
  CpuKernels cpu_kernels = CpuKernels::automatic;
  bool time_products = false;  ///< of a GPU: time the library's first algorithms once for each shape of product
  StreamMode streams = StreamMode::immediate;  ///< threaded: a worker thread per CPU stream
  std::int64_t threads = 0;                    ///< per rank; 0: OMP_NUM_THREADS, else the processors of the rank
  Recompute recompute = Recompute::none;
  Offload offload = Offload::none;
  double timeout = 600;             ///< seconds without a finished collective before a rank counts as hung; 0: no limit
  double start_timeout = 1800;      ///< the same before the first step, with MPI_Init; 0: no limit
  double heartbeat = 10;            ///< seconds after which a rank that says nothing is stopped or cut off; 0: never
  double grace = 100;               ///< seconds a stop by a signal may take, with its save; below launch/slurm's 120
  double lock_wait = 0;             ///< seconds a start waits for the process that holds the run folder
  std::int64_t restarts = 5;        ///< of launch/train --supervise, in a row without a new checkpoint
  std::string from;                 ///< start from the weights of this checkpoint, with a fresh optimizer
  std::int64_t evaluate_every = 0;  ///< steps between evaluations on held-out text; 0: only at the end
  std::int64_t evaluate_sequences = 64;  ///< held-out sequences per evaluation; 0: all
  std::int64_t log_every = 1;            ///< steps between lines of metrics.jsonl
  std::int64_t check_every = 100;  ///< steps between comparisons of weights and moments that must be equal; 0: never
  std::int64_t inspect_every = 0;  ///< steps between lines of metrics.jsonl about the attention heads; 0: never
  double straggler_every = 60;     ///< seconds between comparisons of the ranks' times; 0: never
  SpikeConfig spike;
  TrainAttentionConfig attention;

  bool operator==(const TrainConfig&) const = default;
};

struct GenerateConfig {
  std::string prompt;
  std::int64_t tokens = 200;  ///< at most this many new tokens
  std::int64_t beam = 4;      ///< of an encoder-decoder: unfinished texts that the search keeps; 1: greedy
  double temperature = 1.0;   ///< 0: always the likeliest token
  std::int64_t top_k = 0;     ///< 0: all
  double top_p = 1.0;         ///< 1: all
  std::uint64_t seed = 1;

  bool operator==(const GenerateConfig&) const = default;
};

struct Config {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  GenerateConfig generate;

  bool operator==(const Config&) const = default;
};

/// Reads `file` ("" for defaults only), then applies overrides of the form "section.key=value". The value of a text is
/// taken as it is, with blanks, quotes and line breaks; other values are YAML. The last override of a key wins.
/// Throws ConfigError with every problem of reading: unknown key or name (nearest named), wrong type, text that is not
/// UTF-8, with file and line; and, if there is one, the values outside their limits as well.
Config read_config(const std::string& file, const std::vector<std::string>& overrides = {});

/// The same from text; `name` stands for the file in messages.
Config parse_config(const std::string& text, const std::string& name, const std::vector<std::string>& overrides = {});

/// Everything that cannot work with `ranks` processes, before any allocation. Empty: it can run. ranks == 0 leaves out
/// what depends on the number of ranks.
std::vector<Problem> validate(const Config&, std::int64_t ranks);

/// The complete configuration as YAML. parse_config(print(c), "") == c.
std::string print(const Config&);

/// Words ("parallel.tensor=1", ...) that set every key of `section` to its default.
std::vector<std::string> default_words(const std::string& section);

/// Every key with its type, default and one line of documentation, for --help and the README.
std::string describe_keys();
std::string markdown_keys();  ///< the same as a Markdown table

/// The keys ("model.layers") whose values differ, with both values as text.
struct Difference {
  std::string key, left, right;
};
std::vector<Difference> differences(const Config& left, const Config& right);

}  // namespace choir
