#include "framework/train/verify.h"

#include <algorithm>
#include <cmath>

#include "framework/ops/elementwise.h"
#include "framework/train/trainer.h"

namespace choir {
namespace {

/// Adds up `values` over all ranks. Collective.
void sum_over_ranks(Trainer& trainer, std::vector<double>& values) {
  Runtime& runtime = trainer.runtime();
  const Tensor sum = ops::to_device(runtime, values, DType::f64);
  trainer.mesh().world->all_reduce(sum, Reduce::sum, runtime.device.compute(), "verify");
  ops::download(runtime, sum, values.data());
}

/// Where element `i` of the part held here is in the whole tensor.
std::size_t global_index(const Parameter& p, std::int64_t i) {
  const std::int64_t width = p.shape.size() > 1 ? p.shape[1] : 1, columns = p.held.columns();
  return static_cast<std::size_t>((p.held.row_begin + i / columns) * width + p.held.column_begin + i % columns);
}

/// The elements of a tensor of f32 or bf16, in f32.
std::vector<float> on_host(Trainer& trainer, const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.count()));
  if (tensor.dtype() == DType::f32) {
    ops::download(trainer.runtime(), tensor, values.data());
  } else {
    std::vector<bf16> rounded(values.size());
    ops::download(trainer.runtime(), tensor, rounded.data());
    std::copy(rounded.begin(), rounded.end(), values.begin());
  }
  return values;
}

/// The whole of every parameter, each element from the rank that counts it. `tensor` is Bucket::gradient or
/// Bucket::master. Collective.
NamedTensors gather(Trainer& trainer, const Tensor Bucket::*tensor) {
  const ParameterStore model = all_parameters(trainer.config().model);
  std::map<std::string, std::size_t> begin;
  std::size_t size = 0;
  for (const Parameter& p : model.parameters()) {
    begin[p.name] = size;
    size += static_cast<std::size_t>(p.global_count());
  }
  std::vector<double> all(size);
  for (const ParameterPart& part : parts_in(trainer.parameters(), trainer.shards().counted(), true)) {
    const std::vector<float> elements = on_host(trainer, trainer.shards().at(part.flat(), tensor));
    for (std::int64_t i = part.begin; i < part.end; ++i)
      all[begin[part.parameter->name] + global_index(*part.parameter, i)] =
          static_cast<double>(elements[static_cast<std::size_t>(i - part.begin)]);
  }
  sum_over_ranks(trainer, all);
  NamedTensors whole;
  for (const Parameter& p : model.parameters()) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(begin[p.name]);
    whole[p.name].assign(first, first + p.global_count());
  }
  return whole;
}

/// One comparison for each parameter: the masters and the values that this and all other ranks have are those of
/// `whole`. Collective.
std::vector<Comparison> compare_copies(Trainer& trainer, const std::string& what, const NamedTensors& whole) {
  std::map<std::string, double> square_of;
  const auto add = [&](const Parameter& p, std::int64_t begin, const Tensor& held) {
    const std::vector<double>& expected = whole.at(p.name);
    const std::vector<float> elements = on_host(trainer, held);
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const auto exact = static_cast<float>(expected[global_index(p, begin + static_cast<std::int64_t>(i))]);
      const float there = held.dtype() == DType::bf16 ? static_cast<float>(bf16(exact)) : exact;
      square_of[p.name] += std::pow(static_cast<double>(elements[i]) - static_cast<double>(there), 2);
    }
  };
  Shards& shards = trainer.shards();
  for (const ParameterPart& part : parts_in(trainer.parameters(), shards.updated(), false))
    add(*part.parameter, part.begin, shards.at(part.flat(), &Bucket::master));
  Context context = trainer.context();
  for (int group = 0; group < trainer.parameters().groups(); ++group) {
    shards.acquire(group, context);
    for (const Parameter& p : trainer.parameters().parameters())
      if (p.weight->group == group) add(p, 0, p.value());
    shards.release(group);
  }
  std::vector<double> squares;  // in the order of `whole`, which is that of all ranks; a tensor not held here adds zero
  for (const auto& [name, tensor] : whole) squares.push_back(square_of[name] / static_cast<double>(tensor.size()));
  sum_over_ranks(trainer, squares);
  std::vector<Comparison> comparisons;
  auto square = squares.begin();
  for (const auto& [name, tensor] : whole) {
    const double difference = *square == 0 ? 0 : std::sqrt(*square) / root_mean_square(tensor);
    comparisons.push_back({.what = what + name, .difference = difference});
    ++square;
  }
  return comparisons;
}

struct Outcome {
  double loss = 0;
  NamedTensors gradients, start, weights;
  std::vector<Comparison> copies;  ///< the weights as each rank holds them
};

constexpr std::int64_t compared_steps = 3;

/// "experts", "heads" or both: what tokens choose. Empty: nothing.
std::string what_is_chosen(const ModelConfig& model) {
  const std::string experts = model.blocks_with_experts() > 0 ? "experts" : "";
  if (!model.routes_heads()) return experts;
  return experts.empty() ? "heads" : experts + " and heads";
}

/// Rows of a step that choose, in a layer of the target or of the source, at most.
std::int64_t rows_of_step(const Config& config) {
  return config.train.batch * std::max(config.model.context, source_texts(config.model) * config.model.source_length());
}

/// The record of rank 0, on every rank. Collective.
void share_choices(const Config& config, Device& device, Mesh& mesh, ChoiceRecord& record) {
  Runtime runtime{.device = device};
  const auto share = [&](const std::string& layer, std::int64_t chosen) {
    std::vector<std::int32_t>& choices = record.choices[layer];
    choices.resize(static_cast<std::size_t>(compared_steps * rows_of_step(config) * chosen), -1);
    const Tensor shared = ops::to_device(runtime, choices, DType::i32);
    mesh.world->broadcast(shared, 0, device.compute(), "verify");
    ops::download(runtime, shared, choices.data());
  };
  const auto share_of_blocks = [&](const std::string& blocks, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::string block = blocks + std::to_string(i);
      if (config.model.routes_heads()) share(block + ".attention", config.model.attention.routing.chosen);
      if (config.model.has_experts(i)) share(block + ".feed_forward", config.model.experts.chosen);
    }
  };
  share_of_blocks("blocks.", config.model.layers);
  share_of_blocks("encoder.blocks.", config.model.encoder_blocks());
}

/// Where a choice of this layout is not that of one rank, the scores are equal up to rounding. Collective.
Comparison compare_choices(const std::string& name, const std::string& chosen, const ChoiceRecord& record,
                           Device& device, Mesh& mesh, double bound) {
  Runtime runtime{.device = device};
  double differing = static_cast<double>(record.differing), widest = record.widest;
  const Tensor sum = ops::to_device(runtime, std::vector<double>{differing}, DType::f64);
  const Tensor largest_gap = ops::to_device(runtime, std::vector<double>{widest}, DType::f64);
  mesh.gradient->all_reduce(sum, Reduce::sum, device.compute(), "verify");  // tensor ranks choose alike
  mesh.pipeline->all_reduce(sum, Reduce::sum, device.compute(), "verify");
  mesh.world->all_reduce(largest_gap, Reduce::max, device.compute(), "verify");
  ops::download(runtime, sum, &differing);
  ops::download(runtime, largest_gap, &widest);
  return {.what = name + " choices of " + chosen,
          .difference = widest,
          .tolerance = bound,
          .note = std::to_string(static_cast<std::int64_t>(differing)) + " near ties: rows whose choice of " + chosen +
                  " is not that of one rank"};
}

/// One gradient, and three steps from the same start. Collective over `mesh`.
Outcome run(const Config& config, Device& device, Mesh& mesh, const std::string& name, ChoiceRecord& choices) {
  const ReadSample random = [&](std::int64_t index, const Sample& sample) {
    random_sample(config.model, config.train.seed, index, sample);
    return std::int64_t{0};
  };
  Trainer trainer(config, device, mesh);
  const auto of_step = [&](std::int64_t step) {
    choices.first_row = (step - 1) * rows_of_step(config);
    if (!what_is_chosen(config.model).empty()) trainer.set_choices(&choices);
  };
  of_step(1);
  Outcome outcome;
  outcome.start = gather(trainer, &Bucket::master);
  const BatchLoss loss = trainer.compute_gradients(1, random);
  ops::download(trainer.runtime(), loss.sum, &outcome.loss);
  outcome.loss /= static_cast<double>(loss.targets);
  outcome.gradients = gather(trainer, &Bucket::gradient);
  trainer.update();
  for (std::int64_t step = 2; step <= compared_steps; ++step) {
    of_step(step);
    trainer.step(step, random);
  }
  outcome.weights = gather(trainer, &Bucket::master);
  outcome.copies = compare_copies(trainer, name + " copies of ", outcome.weights);
  return outcome;
}

double bound_of(Precision precision, const Config& config) {
  const std::int64_t rows = config.train.batch * config.model.context;
  if (precision == Precision::fp8) return rounding_bound_of_8_bits(config.model, rows);
  return rounding_bound(config.model, rows, precision == Precision::bf16 ? DType::bf16 : DType::f32);
}

/// The value of rank 0, on every rank. Collective.
double of_rank_0(double value, Device& device, Mesh& mesh) {
  Runtime runtime{.device = device};
  const Tensor on_device = ops::to_device(runtime, std::vector<double>{value}, DType::f64);
  mesh.world->broadcast(on_device, 0, device.compute(), "verify");
  ops::download(runtime, on_device, &value);
  return value;
}

}  // namespace

Config narrowed(const Config& original, std::int64_t ranks) {
  Config c = original;
  c.data = {};  // random tokens
  const std::int64_t tensor = c.parallel.tensor, unit = 8 * tensor;
  // A part for each stretch: two of them are the embedding and the head.
  c.parallel.stages = {};
  c.model.layers = std::min(c.model.layers, std::max<std::int64_t>(2, c.parallel.pieces() - 2));
  if (c.model.has_source()) c.model.encoder_layers = std::min<std::int64_t>(original.model.encoder_blocks(), 2);
  c.model.attention.head_width = 8;
  c.model.width = 8 * std::min<std::int64_t>(c.model.attention.heads, 8);
  c.model.initial_deviation = 1 / std::sqrt(static_cast<double>(c.model.width));
  c.model.feed_forward.width = 2 * unit + original.model.feed_forward_width() % unit;
  c.model.vocabulary = 3 * unit + original.model.vocabulary % unit;
  // A query that sees one key has no gradient, so there are at least two; and each context rank has some.
  const std::int64_t longest = std::max<std::int64_t>(16, 4 * c.parallel.context);
  c.model.context = std::clamp<std::int64_t>(c.model.context, 2, longest);
  if (c.model.has_source())
    c.model.source_context = std::clamp<std::int64_t>(original.model.source_length(), 2, longest);
  if (c.model.family == ModelFamily::vision) {  // small squares, in two rows if it can be
    const std::int64_t squares = c.model.context - (c.model.pool == Pool::class_token ? 1 : 0);
    const std::int64_t rows = squares % 2 == 0 ? 2 : 1;
    c.model.image.patch = std::min<std::int64_t>(c.model.image.patch, c.model.image.is_convolved() ? 4 : 3);
    c.model.image.height = c.model.image.patch * rows;
    c.model.image.width = c.model.image.patch * (squares / rows);
    c.model.classes = std::min<std::int64_t>(c.model.classes, 3 * unit + original.model.classes % unit);
  }
  c.model.attention.prefix = std::min(c.model.attention.prefix, c.model.context / 3);
  ExpertsConfig& experts = c.model.experts;
  experts.count = std::min(experts.count, std::max<std::int64_t>({8, experts.chosen, c.parallel.expert}));
  experts.every = std::min(experts.every, c.model.layers);
  c.model.attention.softmax_every = std::min(c.model.attention.softmax_every, c.model.layers);
  if (c.model.attention.window > 0) c.model.attention.window = std::clamp<std::int64_t>(c.model.attention.window, 2, 5);
  const MeshShape shape = mesh_shape(c, ranks);
  const std::int64_t micro_batches =
      original.parallel.micro_batch > 0 ? original.train.batch / (shape.data * original.parallel.micro_batch) : 1;
  c.parallel.micro_batch = 2;
  c.train.batch = shape.data * 2 * std::min<std::int64_t>(micro_batches, 2);
  c.train.steps = 3;
  c.optimizer.warmup = 0;
  c.optimizer.decay = 0;
  c.optimizer.schedule = Schedule::constant;
  return c;
}

std::vector<Comparison> verify_layout(const Config& config, Device& device, Mesh& mesh, Mesh& alone) {
  const bool compares = mesh.world->rank() == 0;
  std::vector<Comparison> comparisons;
  const auto add = [&](const std::vector<Comparison>& more) {
    comparisons.insert(comparisons.end(), more.begin(), more.end());
  };
  std::vector<Precision> precisions = {Precision::f32};
  if (config.train.precision != Precision::f32) precisions.push_back(config.train.precision);
  for (const Precision used : precisions) {
    const std::string precision = name_of(used);
    const double bound = bound_of(used, config);
    double scale = 0;  // of the gradients
    for (const OptimizerKind kind : {OptimizerKind::sgd, OptimizerKind::adamw}) {
      Config c = config;
      c.train.precision = used;
      c.optimizer.kind = kind;
      c.optimizer.rate = 0.01;
      c.optimizer.momentum = kind == OptimizerKind::sgd ? 0.9 : 0.0;
      c.optimizer.moments = Moments::f32;  // of two that differ by their rounding, one may be rounded up in bf16
      if (kind == OptimizerKind::adamw) c.optimizer.epsilon = scale;  // compare_updates() says why
      Config one = c;
      one.parallel = {.micro_batch = c.train.batch};
      const std::string name = precision + " " + name_of(kind);
      ChoiceRecord choices;
      const Outcome reference = compares ? run(one, device, alone, name, choices) : Outcome{};
      share_choices(c, device, mesh, choices);
      choices.replays = true;
      const Outcome asked = run(c, device, mesh, name, choices);
      if (const std::string chosen = what_is_chosen(c.model); !chosen.empty()) {
        // Of the difference of two scores, each off by as much.
        const Comparison of_choices = compare_choices(name, chosen, choices, device, mesh, 2 * bound);
        if (compares) add({of_choices});
      }
      if (kind == OptimizerKind::sgd) {
        const double here = compares ? largest_gradient(reference.gradients, all_parameters(config.model)) : 0;
        scale = of_rank_0(here, device, mesh);
      }
      if (!compares) continue;
      if (kind == OptimizerKind::sgd) {
        add({{.what = precision + " loss",
              .difference = std::abs(asked.loss - reference.loss) / std::abs(reference.loss),
              .tolerance = bound}});
        add(compare(precision + " gradient of ", reference.gradients, asked.gradients, bound));
      }
      add(compare_updates(name + " update of ", reference.start, reference.weights, asked.weights, bound));
      add(asked.copies);
    }
  }
  return comparisons;
}

}  // namespace choir
