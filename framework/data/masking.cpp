#include "framework/data/masking.h"

#include "kernels/philox.h"

namespace choir {

void mask_tokens(const Masking& masking, std::int64_t sample, std::span<std::int32_t> inputs,
                 std::span<std::int32_t> targets) {
  const auto random = [&](std::size_t position) {
    return kernels::philox(masking.key, position, static_cast<std::uint64_t>(sample));
  };
  const auto uniform = [](std::uint32_t word) { return word / 4294967296.0; };  // [0, 1)

  std::size_t first_choice = 0;  // the position that would be chosen first if the share grew from 0
  std::uint32_t smallest = 0;
  bool has_text = false;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const std::uint32_t word = random(i)[0];
    if (targets[i] < 0 || (has_text && word >= smallest)) continue;
    has_text = true;
    first_choice = i;
    smallest = word;
  }
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    inputs[i] = targets[i];
    const auto [choice, replacement, token, unused] = random(i);
    if (uniform(choice) >= masking.shares.share && i != first_choice) {
      targets[i] = -1;
    } else if (uniform(replacement) < masking.shares.mask_token) {
      inputs[i] = masking.mask_token;
    } else if (uniform(replacement) < masking.shares.mask_token + masking.shares.random_token) {
      inputs[i] = static_cast<std::int32_t>(uniform(token) * static_cast<double>(masking.text_vocabulary));
    }
  }
}

}  // namespace choir
