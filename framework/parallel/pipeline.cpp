#include "framework/parallel/pipeline.h"

#include <algorithm>

namespace choir {

std::vector<Action> one_forward_one_backward(int stage, int stages, int micro_batches) {
  const int ahead = std::min(stages - stage - 1, micro_batches);
  std::vector<Action> schedule;
  int forward = 0, backward = 0;
  while (forward < ahead) schedule.push_back({Action::Kind::forward, forward++});
  while (forward < micro_batches) {
    schedule.push_back({Action::Kind::forward, forward++});
    schedule.push_back({Action::Kind::backward, backward++});
  }
  while (backward < micro_batches) schedule.push_back({Action::Kind::backward, backward++});
  return schedule;
}

int peak_in_flight(const std::vector<Action>& schedule) {
  int in_flight = 0, peak = 0;
  for (const Action& action : schedule) {
    in_flight += action.kind == Action::Kind::forward ? 1 : -1;
    peak = std::max(peak, in_flight);
  }
  return peak;
}

}  // namespace choir
