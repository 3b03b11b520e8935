// choir bench train: the speed of a training step, compared with the matrix products of this machine.
//
// All is measured in the same run. The rate of the matrix products alone is that of the model's own shapes, weighted by
// the floating-point operations that the step spends in each. The limit is that of the processor: f32 multiply-adds
// between registers, or bf16 products on tiles, before and after each step. Steps beside a slow one are repeated, at
// most three times as many, and those beside the fastest ones count: something else used the processor, or its clock
// was lower. Of a GPU the limit is its peak. A share is model FLOP/s over such a rate.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/core/ledger.h"
#include "framework/train/trainer.h"

namespace choir {

struct TrainBench {
  std::int64_t steps = 0;
  double step_seconds = 0;            ///< median
  double tokens_per_second = 0;       ///< over all ranks
  double model_flops_per_second = 0;  ///< over all ranks
  double gemm_flops_per_second = 0;   ///< matrix products alone, all ranks at once
  double share_of_gemm = 0;
  double limit_flops_per_second = 0;  ///< of the processors, or GPUs, of all ranks
  double share_of_limit = 0;
  double sheet_flops_per_second = 0;       ///< of all ranks, by the data sheet of the GPU; 0: of a CPU, or not known
  std::int64_t thrown_away = 0;            ///< steps besides these, during which the processor was slower
  std::int64_t peak_resident_bytes = 0;    ///< of this process, as the system counts it
  std::int64_t resident_before_bytes = 0;  ///< of it, before the trainer: the program and its libraries
  std::int64_t planned_bytes = 0;          ///< the plan's peak for this rank
  std::int64_t needed_bytes = 0;           ///< its part for parameters, gradients, optimizer state, saved activations
  std::int64_t allocator_peak_bytes = 0;   ///< what the allocator counted
  double page_faults_per_step = 0;         ///< after the first steps
  double first_step_seconds = 0;           ///< from the launch of the process to the start of the first step
  double loss = 0;
  std::string products;                       ///< what train.time_products did; empty: it is off
  std::vector<Ledger::Operation> operations;  ///< of one step, on this rank; if profiled
  std::string unit;                           ///< which kernels ran, by train.cpu_kernels; or empty
  double copy_bytes_per_second = 0;           ///< read and written by a large copy, for the least possible time
};

/// Collective. `steps` are timed after `warm_up` others. `profile` times every operation of further steps.
TrainBench bench_train(const Config&, Device&, Mesh&, std::int64_t warm_up, std::int64_t steps, bool profile);

std::string describe(const TrainBench&);
std::string describe_profile(const TrainBench&);
std::string to_json(const TrainBench&);

}  // namespace choir
