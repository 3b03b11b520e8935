#include "framework/train/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "framework/ops/elementwise.h"
#include "framework/train/trainer.h"
#include "kernels/philox.h"

namespace choir {
namespace {

using Tensors = std::map<std::string, std::vector<float>>;  // by global name, whole

/// The whole of every parameter, from the parts of flat array `values` that the ranks count. Collective.
Tensors gather(Trainer& trainer, const Tensor& values) {
  Runtime& runtime = trainer.runtime();
  Tensors whole;
  for (const Parameter& p : trainer.parameters().parameters())
    whole[p.name].assign(static_cast<std::size_t>(p.global_count()), 0.0f);
  std::vector<float> flat(static_cast<std::size_t>(values.count()));
  ops::download(runtime, values, flat.data());
  for (const ParameterPart& part : parts_in(trainer.parameters(), trainer.data_parallel().counted(), true)) {
    const Region& held = part.parameter->held;
    const std::int64_t width = part.parameter->shape.size() > 1 ? part.parameter->shape[1] : 1;
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const std::int64_t row = held.row_begin + i / held.columns(), column = held.column_begin + i % held.columns();
      whole[part.parameter->name][static_cast<std::size_t>(row * width + column)] =
          flat[static_cast<std::size_t>(part.flat_begin + i - part.begin)];
    }
  }
  for (auto& [name, tensor] : whole) {
    const Tensor sum = ops::to_device(runtime, tensor, DType::f32);
    trainer.mesh().world->all_reduce(sum, Reduce::sum, runtime.device.compute(), "verify");
    ops::download(runtime, sum, tensor.data());
  }
  return whole;
}

struct Outcome {
  double loss = 0;
  Tensors gradients, weights;
};

/// One gradient, and then three steps from the same start.
Outcome run(const Config& config, Device& device, Mesh& mesh) {
  const ReadSample random = [&](std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
    const auto vocabulary = static_cast<std::uint64_t>(config.model.vocabulary);
    const auto token = [&](std::size_t i) {
      return static_cast<std::int32_t>(kernels::philox_word(config.train.seed, static_cast<std::uint64_t>(index), i) %
                                       vocabulary);
    };
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = token(i);
      targets[i] = token(i + 1);
    }
    return std::int64_t{0};
  };
  Trainer trainer(config, device, mesh);
  Outcome outcome;
  const Tensor loss = trainer.compute_gradients(1, random);
  ops::download(trainer.runtime(), loss, &outcome.loss);
  outcome.loss /= static_cast<double>(config.train.batch * config.model.context);
  outcome.gradients = gather(trainer, trainer.parameters().gradient);
  trainer.update();
  for (std::int64_t step = 2; step <= 3; ++step) trainer.step(step, random);
  outcome.weights = gather(trainer, trainer.parameters().master);
  return outcome;
}

double largest(const std::vector<float>& values) {
  double result = 0;
  for (const float value : values) result = std::max(result, std::abs(static_cast<double>(value)));
  return result;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double result = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= result)) result = difference;  // a NaN stays
  }
  return result;
}

double epsilon_of(const Config& config) { return config.train.precision == "bf16" ? 0x1p-8 : 0x1p-23; }

}  // namespace

Config narrowed(const Config& original, std::int64_t ranks) {
  Config c = original;
  c.data = {};  // random tokens
  const std::int64_t tensor = c.parallel.tensor, unit = 8 * tensor;
  c.model.layers = std::min<std::int64_t>(c.model.layers, 2);
  c.model.attention.head_width = 8;
  c.model.width = 8 * std::min<std::int64_t>(c.model.attention.heads, 8);
  c.model.feed_forward.width = 2 * unit + original.model.feed_forward_width() % unit;
  c.model.vocabulary = 3 * unit + original.model.vocabulary % unit;
  c.model.context = std::min<std::int64_t>(c.model.context, 16);
  if (c.model.attention.window > 0) c.model.attention.window = std::min<std::int64_t>(c.model.attention.window, 5);
  const MeshShape shape = mesh_shape(c, ranks);
  const std::int64_t micro_batches =
      original.parallel.micro_batch > 0 ? original.train.batch / (shape.data * original.parallel.micro_batch) : 1;
  c.parallel.micro_batch = 2;
  c.train.batch = shape.data * 2 * std::min<std::int64_t>(micro_batches, 2);
  c.train.steps = 3;
  c.optimizer.warmup = 0;
  c.optimizer.decay = 0;
  c.optimizer.schedule = "constant";
  return c;
}

double gradient_tolerance(const Config& c) {
  const std::int64_t longest =
      std::max({c.train.batch * c.model.context, c.model.vocabulary, c.model.feed_forward_width(), c.model.width,
                c.model.attention.heads * c.model.head_width()});
  return 16.0 * static_cast<double>(c.model.layers + 1) * epsilon_of(c) * std::sqrt(static_cast<double>(longest));
}

std::vector<Comparison> verify_layout(const Config& config, Device& device, Mesh& mesh, Mesh& alone) {
  constexpr double adamw_epsilon =
      1e-3;  // rounding noise of a gradient that should be zero must not become a full step
  std::vector<Comparison> comparisons;
  for (const std::string kind : {"sgd", "adamw"}) {
    Config c = config;
    c.optimizer.kind = kind;
    c.optimizer.rate = kind == "sgd" ? 0.1 : 1e-3;
    c.optimizer.momentum = kind == "sgd" ? 0.9 : 0.0;
    c.optimizer.epsilon = adamw_epsilon;
    Config one = c;
    one.parallel = {.micro_batch = c.train.batch};
    Outcome reference;
    if (mesh.world->rank() == 0) reference = run(one, device, alone);
    const Outcome asked = run(c, device, mesh);
    if (mesh.world->rank() != 0) continue;

    const double relative = gradient_tolerance(c);
    const auto compare = [&](const std::string& what, double difference, double tolerance) {
      comparisons.push_back({what, difference, tolerance});
    };
    if (kind == "sgd") compare("loss", std::abs(asked.loss - reference.loss), relative * std::abs(reference.loss));
    // Three steps move a weight by sums of up to 1 + 1.9 + 2.71 gradients with momentum 0.9; AdamW divides a gradient
    // by sqrt(v) + epsilon >= epsilon. The gradients of later steps come from weights that differ by as much: twice.
    const double steps = c.optimizer.rate * (kind == "sgd" ? 5.61 : 3 / adamw_epsilon) * 2;
    for (const auto& [name, gradient] : reference.gradients) {
      // The gradient of a key bias is zero without rotary: what is left is rounding, on the scale of the query's.
      std::string scale_of = name;
      if (const auto at = name.find(".k.bias"); at != std::string::npos) scale_of.replace(at, 7, ".q.bias");
      const double scale = std::max(largest(gradient), largest(reference.gradients.at(scale_of)));
      if (kind == "sgd")
        compare("gradient of " + name, largest_difference(gradient, asked.gradients.at(name)), relative * scale);
      compare(name + " after three steps of " + kind,
              largest_difference(reference.weights.at(name), asked.weights.at(name)),
              steps * relative * scale + 4 * 0x1p-23 * largest(reference.weights.at(name)));
    }
  }
  return comparisons;
}

}  // namespace choir
