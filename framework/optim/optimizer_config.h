// How the weights are updated.
#pragma once

#include <array>
#include <cstdint>

#include "framework/core/names.h"

namespace choir {

enum class OptimizerKind { adamw, sgd };
template <>
inline constexpr auto names<OptimizerKind> = std::array{"adamw", "sgd"};

/// How AdamW keeps its moments: f32, or rounded at random to bf16 (kernels/optimizer.h).
enum class Moments { f32, bf16 };
template <>
inline constexpr auto names<Moments> = std::array{"f32", "bf16"};

/// How the rate falls after the warm-up.
enum class Schedule { cosine, linear, constant, warmup_stable_decay };
template <>
inline constexpr auto names<Schedule> = std::array{"cosine", "linear", "constant", "warmup_stable_decay"};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double rate = 6e-4;  ///< the highest learning rate
  Schedule schedule = Schedule::cosine;
  std::int64_t warmup = 0;                    ///< steps over which the rate rises from 0, linearly
  std::int64_t decay = 0;                     ///< last steps that decay, for warmup_stable_decay
  double final_rate = 0.1;                    ///< the last step's rate as a share of the highest
  std::array<double, 2> betas = {0.9, 0.95};  ///< AdamW
  double epsilon = 1e-8;                      ///< AdamW
  Moments moments = Moments::f32;             ///< AdamW
  double momentum = 0;                        ///< SGD
  double weight_decay = 0.1;                  ///< on weight matrices and embeddings; never on norms and biases
  double clip = 1.0;                          ///< the global gradient norm is scaled down to it; 0: never

  bool operator==(const OptimizerConfig&) const = default;
};

}  // namespace choir
