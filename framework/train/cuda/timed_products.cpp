#include "framework/train/timed_products.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <set>
#include <sstream>

#include "framework/checkpoint/agreement.h"
#include "framework/core/gpu_timer.h"
#include "framework/core/quantity.h"
#include "framework/train/product_rate.h"
#include "kernels/matmul_choices.h"

namespace choir {

namespace {

namespace products = kernels::cuda;

/// Seconds of one call of `work`: the least of a few measurements, each of several calls.
double seconds_of(Runtime& runtime, const std::function<void()>& work) {
  constexpr int measurements = 3, at_once = 4;
  double least = std::numeric_limits<double>::infinity();
  work();  // the first call may load code
  for (int i = 0; i < measurements; ++i) {
    const double all = cuda::seconds_of(runtime.device.compute().cuda(), [&] {
      for (int call = 0; call < at_once; ++call) work();
    });
    least = std::min(least, all / at_once);
  }
  return least;
}

struct Timed {
  std::string algorithm;  // empty: there is none
  double seconds = std::numeric_limits<double>::infinity();
  bool is_first = true;  // that of the library
};

Timed fastest(Runtime& runtime, const std::string& product, void* scratch) {
  Timed best;
  bool is_first = true;
  for (const std::string& algorithm : products::first_algorithms(*runtime.device.cuda().matmul_plans, product)) {
    const double seconds =
        seconds_of(runtime, products::product_on_scratch(runtime.device.cuda(), product, algorithm, scratch));
    if (seconds < best.seconds) best = {algorithm, seconds, is_first};
    is_first = false;
  }
  return best;
}

/// The choices for these products, and in `others` for how many the library's first algorithm is not the fastest.
std::map<std::string, std::string> time_all(Runtime& runtime, const std::set<std::string>& all, std::int64_t& others) {
  std::map<std::string, std::string> choices;
  std::int64_t bytes = 2;
  for (const std::string& product : all) bytes = std::max(bytes, products::scratch_bytes(product));
  const Tensor memory = runtime.empty({bytes / 2}, DType::bf16, MemoryKind::workspace);
  void* const scratch = memory.raw();
  others = 0;
  const auto choose = [&](const std::string& product, const std::string& algorithm, bool is_first) {
    choices[product] = algorithm;
    if (!is_first) ++others;
  };
  for (const std::string& product : all) {
    fill_at_random(runtime, memory.slice_columns(0, products::scratch_bytes(product) / 2));
    const Timed whole = fastest(runtime, product, scratch);
    const std::string plain = products::without_bias_gradient(product);
    if (!plain.empty()) {  // an algorithm that splits the rows may not be able to give the gradient of the bias
      const Timed apart = fastest(runtime, plain, scratch);
      const double sums =
          seconds_of(runtime, products::bias_gradient_on_scratch(runtime.device.cuda(), product, scratch));
      if (!apart.algorithm.empty() && apart.seconds + sums < whole.seconds) {
        choose(product, products::bias_gradient_apart, false);
        choose(plain, apart.algorithm, true);
        continue;
      }
    }
    if (!whole.algorithm.empty()) choose(product, whole.algorithm, whole.is_first);
  }
  return choices;
}

}  // namespace

std::string place_of_products(Trainer& trainer) {
  const Config& config = trainer.config();
  return fmt::format(
      "{}, {}, {}, micro-batches of {}", trainer.runtime().device.gpu_facts().name, products::matmul_library(),
      describe_layout(config.parallel, trainer.mesh().shape, trainer.context_kind()), trainer.micro_batch());
}

ProductChoices time_products(Trainer& trainer, std::string& report) {
  Runtime& runtime = trainer.runtime();
  runtime.device.synchronize();  // nothing else is to take the GPU's time
  Agreement ranks(*trainer.mesh().host);
  std::string mine = place_of_products(trainer) + "\n";
  for (const std::string& product : products::planned_products(*runtime.device.cuda().matmul_plans))
    mine += product + "\n";
  const std::vector<std::string> of_ranks = ranks.gather(mine, "products");
  std::string result;  // of rank 0: the report, then the choices
  ranks.on_rank_0(
      [&] {
        const auto start = std::chrono::steady_clock::now();
        ProductChoices choices;
        std::set<std::string> all;
        for (const std::string& of_rank : of_ranks) {
          std::istringstream lines(of_rank);
          std::string place;
          std::getline(lines, place);
          if (choices.place.empty()) choices.place = place;
          if (place != choices.place) {
            result = fmt::format("no products are timed: on rank 0 they are of {}, on another rank of {}\n",
                                 choices.place, place);
            return;
          }
          for (std::string product; std::getline(lines, product);) all.insert(product);
        }
        std::int64_t others = 0;
        choices.algorithms = time_all(runtime, all, others);
        result = fmt::format(
            "train.time_products: timed {} in {:.1f} s; for {} of them another algorithm than the library's first is "
            "the "
            "fastest\n",
            quantity(std::ssize(all), "product"),
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), others);
        result += choices.text();
      },
      "products");
  result = ranks.broadcast(result, 0, "products");
  const std::size_t end = result.find('\n');
  report = result.substr(0, end);
  const ProductChoices choices = ProductChoices::parse(result.substr(end + 1));
  use_products(trainer, choices);
  return choices;
}

void use_products(Trainer& trainer, const ProductChoices& choices) {
  kernels::cuda::MatmulPlans& plans = *trainer.runtime().device.cuda().matmul_plans;
  for (const auto& [product, algorithm] : choices.algorithms) products::choose_algorithm(plans, product, algorithm);
}

}  // namespace choir
