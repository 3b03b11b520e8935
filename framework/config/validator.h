// Finds what cannot work before anything is allocated: what validate() (config.h) is made of.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "framework/config/config.h"

namespace choir {

class Validator {
 public:
  Validator(const Config& config, std::int64_t ranks) : config_(config), ranks_(ranks) {}

  std::vector<Problem> run();

 private:
  /// True if none of these is outside its limits.
  bool are_sound(std::initializer_list<const char*> keys) const;
  void add(std::string what, std::string why, std::string fix) {
    problems_.push_back({std::move(what), std::move(why), std::move(fix)});
  }

  /// Keys that begin with one of these, and that only models of another family read.
  void refuse_changed(const std::vector<std::string>& prefixes, const std::string& why, const char* family);

  void check_heads();
  void check_attention_mask();
  void check_head_routing();
  void check_linear_attention();
  void check_tokenizer();
  void check_masked();
  void check_images();
  void check_pairs();
  void check_sources();
  void check_precision();
  void check_cpu_kernels();
  void check_schedule();
  void check_layout();
  bool fits_the_model(std::int64_t tensor, std::int64_t context, std::int64_t pipeline) const;
  std::string nearest_layout() const;
  void check_shard();
  void check_context();
  void check_experts();
  void check_pipeline();
  void check_batch();

  Config config_;  // a copy: rows of the table point into what they can write
  std::int64_t ranks_;
  std::vector<std::string> wrong_;  // keys outside their limits
  std::vector<Problem> problems_;
};

/// "16 or 32": the multiples of `step` next to `value`, without 0.
std::string nearest_multiples(std::int64_t value, std::int64_t step);

/// In rising order.
std::vector<std::int64_t> divisors(std::int64_t n);

}  // namespace choir
