#include "framework/train/stragglers.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "framework/checkpoint/agreement.h"
#include "framework/core/host.h"
#include "framework/train/plan.h"

namespace choir {
namespace {

constexpr double slow = 1.1;
constexpr double least_cost = 0.05;  ///< of a step
constexpr double least_known = 1.5;  ///< by how much times may differ from what the plan counts
constexpr std::size_t least_steps = 8;
constexpr std::size_t most_steps = 256;  ///< that are measured between two comparisons

/// The value that `share` of the values are at most.
double quantile(std::vector<double> values, double share) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

/// The middle one, or the mean of the two in the middle.
double median(const std::vector<double>& values) {
  const double low = quantile(values, 0.5);
  if (values.size() % 2 == 1) return low;
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  return (low + sorted[values.size() / 2]) / 2;
}

bool same_place(const MeshShape::Coordinates& a, const MeshShape::Coordinates& b) {
  return a.tensor == b.tensor && a.context == b.context && a.pipeline == b.pipeline;
}

}  // namespace

std::vector<SlowRank> find_slow_ranks(const std::vector<RankTimes>& ranks, std::vector<double>& lowest) {
  std::vector<SlowRank> found;
  const bool first = lowest.empty();
  if (first) lowest.resize(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    std::vector<double> equal, counted;  // times of the others at the same place, and of all others by their counts
    for (std::size_t j = 0; j < ranks.size(); ++j) {
      if (j == i) continue;
      if (same_place(ranks[i].at, ranks[j].at)) equal.push_back(ranks[j].compute);
      counted.push_back(ranks[j].compute * ranks[i].counted / ranks[j].counted);
    }
    if (counted.empty()) continue;
    const double of_others = median(equal.empty() ? counted : equal);
    const double ratio = ranks[i].compute / of_others, at_least = ranks[i].compute_at_least / of_others;
    const double usual = equal.empty() ? (first ? least_known : std::clamp(lowest[i], 1.0, least_known)) : 1;
    lowest[i] = first ? ratio : std::min(lowest[i], ratio);
    const double cost = ranks[i].compute_at_least - usual * of_others;
    const double step = ranks[i].compute + ranks[i].waiting;
    if (at_least > slow * usual && cost > least_cost * step) found.push_back({static_cast<int>(i), ratio / usual});
  }
  return found;
}

Stragglers::Stragglers(const Config& config, Device& device, const Mesh& mesh, const CallRing& ring)
    : config_(config), device_(device), shape_(mesh.shape), here_(mesh.here), ring_(ring) {
  measures_ = config.train.straggler_every > 0 && shape_.ranks() > 1;
  if (measures_ && shape_.data == 1)
    counted_ = count_step(config, shape_, shape_.rank(here_), {}, device.threads()).flops;
}

Stragglers::~Stragglers() { device_.compute().count_waits(nullptr); }

void Stragglers::begin_step() {
  step_began_ = Clock::now();
  in_calls_ = ring_.seconds_in_calls();
  Step& step = begun_.emplace_back();
  if (!measures_ || device_.kind() == DeviceKind::cpu || compute_.size() >= most_steps) return;
  step.timer.emplace(device_.compute().cuda());
  device_.compute().count_waits(&*step.timer);
}

void Stragglers::end_step() {
  Step& step = begun_.back();
  step.seconds = std::chrono::duration<double>(Clock::now() - step_began_).count();
  step.waiting = ring_.seconds_in_calls() - in_calls_;
  if (!step.timer) return;
  device_.compute().count_waits(nullptr);
  step.timer->end();
}

void Stragglers::finish_step() {
  const Step step = std::move(begun_.front());
  begun_.pop_front();
  const bool on_gpu = device_.kind() == DeviceKind::cuda;
  if (!measures_ || compute_.size() >= most_steps || (on_gpu && !step.timer)) return;
  const cuda::StreamTimer::Seconds seconds =
      step.timer ? step.timer->seconds() : cuda::StreamTimer::Seconds{step.seconds, step.waiting};
  compute_.push_back(seconds.all - seconds.waiting);
  waiting_.push_back(seconds.waiting);
}

bool Stragglers::is_due() const {
  return measures_ && compute_.size() >= least_steps &&
         std::chrono::duration<double>(Clock::now() - last_).count() >= config_.train.straggler_every;
}

Stragglers::Comparison Stragglers::compare(Communicator& host) {
  Agreement ranks(host);
  // Ranks have the same number of steps, since all compare after the same one.
  const bool on_gpu = device_.kind() == DeviceKind::cuda;
  const std::string mine = fmt::format("{} {} {} {} {} {}", median(compute_), quantile(compute_, 0.25),
                                       median(waiting_), counted_, host_name(), on_gpu ? device_.gpu_facts().bus : "");
  compute_.clear();
  waiting_.clear();
  last_ = Clock::now();
  Comparison result;
  for (const std::string& line : ranks.gather(mine, "stragglers")) {
    RankTimes times{.at = shape_.coordinates(static_cast<int>(result.ranks.size()))};
    std::istringstream(line) >> times.compute >> times.compute_at_least >> times.waiting >> times.counted >>
        times.host >> times.device;
    result.ranks.push_back(times);
  }
  if (!result.ranks.empty()) result.slow = find_slow_ranks(result.ranks, lowest_);
  return result;
}

}  // namespace choir
