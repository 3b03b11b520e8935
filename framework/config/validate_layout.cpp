// What does not fit the ranks: the axes, what each of them splits, and the batch.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "framework/config/table.h"
#include "framework/config/validator.h"
#include "framework/core/quantity.h"
#include "framework/model/families.h"

namespace choir {
namespace {

std::int64_t largest_divisor(std::int64_t n, std::int64_t most) {
  const std::vector<std::int64_t> all = divisors(n);
  return *std::prev(std::upper_bound(all.begin(), all.end(), most));
}

/// The most tensor ranks: feed-forward columns are split in units of 8, and so many tokens are in each slice.
std::int64_t most_by_columns(const ModelConfig& m) { return std::max<std::int64_t>(1, m.feed_forward_width() / 8); }
/// Positions of the shorter of the sequences that the context ranks split.
std::int64_t shortest_sequence(const ModelConfig& m) {
  return m.has_source() ? std::min(m.context, m.source_length()) : m.context;
}
std::int64_t most_by_vocabulary(const ModelConfig& m) { return std::max<std::int64_t>(1, m.vocabulary / 8); }

}  // namespace

// ranks = data * tensor * context * pipeline. Expert parallelism uses the ranks of context and data.
void Validator::check_layout() {
  if (!are_sound({"parallel.tensor", "parallel.context", "parallel.pipeline"})) return;
  const ModelConfig& m = config_.model;
  const ParallelConfig& p = config_.parallel;
  const auto too_many = [&](std::int64_t most, const std::string& size, const std::string& why) {
    if (p.tensor > most)
      add(fmt::format("parallel.tensor = {} is too many for {}", p.tensor, size), why,
          fmt::format("set parallel.tensor to {} or less", most));
  };
  if (are_sound({"model.attention.heads"}))
    too_many(m.attention.heads, fmt::format("model.attention.heads = {}", m.attention.heads),
             "each tensor rank computes at least one query head");
  if (are_sound({"model.width", "model.feed_forward.width"}))
    too_many(most_by_columns(m),
             m.feed_forward.width > 0
                 ? fmt::format("model.feed_forward.width = {}", m.feed_forward.width)
                 : fmt::format("a feed-forward width of {} (4 * model.width = {})", m.feed_forward_width(), m.width),
             "feed-forward columns are split in units of 8");
  if (m.is_classifier() && are_sound({"model.classes"}))
    too_many(m.classes, fmt::format("model.classes = {}", m.classes), "each tensor rank holds at least one class");
  if (!m.is_classifier() && are_sound({"model.vocabulary"}))
    too_many(most_by_vocabulary(m), fmt::format("model.vocabulary = {}", m.vocabulary),
             "each tensor rank holds at least 8 tokens of the vocabulary");
  const std::int64_t copy = p.ranks_of_a_copy();
  if (ranks_ > 0 && ranks_ % copy != 0) {
    std::vector<std::string> values;
    const auto add_axis = [&](const char* key, std::int64_t size) {
      if (size > 1) values.push_back(fmt::format("{} = {}", key, size));
    };
    add_axis("parallel.tensor", p.tensor);
    add_axis("parallel.context", p.context);
    add_axis("parallel.pipeline", p.pipeline);
    const std::string other_ranks = fits_the_model(p.tensor, p.context, p.pipeline)
                                        ? fmt::format("start {} ranks, or ", nearest_multiples(ranks_, copy))
                                        : "";
    add(fmt::format("{} cannot be laid out with {}", quantity(ranks_, "rank"), fmt::join(values, " and ")),
        fmt::format("the ranks are data ranks * tensor * context * pipeline, a multiple of {}", copy),
        fmt::format("{}set {}", other_ranks, nearest_layout()));
  }
  check_shard();
  check_context();
  check_experts();
  check_pipeline();
}

// What check_layout(), check_context() and check_pipeline() ask of the sizes of axes.
bool Validator::fits_the_model(std::int64_t tensor, std::int64_t context, std::int64_t pipeline) const {
  const ModelConfig& m = config_.model;
  const ParallelConfig& p = config_.parallel;
  if (are_sound({"model.attention.heads"})) {
    if (tensor > m.attention.heads) return false;
    if (p.context_kind == ContextKind::heads && context > m.attention.heads / tensor) return false;
  }
  if (are_sound({"model.width", "model.feed_forward.width"}) && tensor > most_by_columns(m)) return false;
  if (m.is_classifier() && are_sound({"model.classes"}) && tensor > m.classes) return false;
  if (!m.is_classifier() && are_sound({"model.vocabulary"}) && tensor > most_by_vocabulary(m)) return false;
  if (are_sound({"model.context", "model.source_context"}) && context > shortest_sequence(m)) return false;
  return !are_sound({"model.layers", "parallel.chunks"}) ||
         saturating_product({pipeline, p.chunks_of_stage()}) <= num_parts(m);
}

// "parallel.tensor to 2 and parallel.context to 4": the sizes of axes with the smallest change, counted in factors,
// that divide the ranks and fit the model; only those that change.
std::string Validator::nearest_layout() const {
  const ParallelConfig& p = config_.parallel;
  const std::vector<std::int64_t> sizes = divisors(ranks_);
  const auto change = [](std::int64_t from, std::int64_t to) {
    return std::abs(std::log(static_cast<double>(from) / static_cast<double>(to)));
  };
  double least = std::numeric_limits<double>::infinity();
  std::int64_t tensor = 1, context = 1, pipeline = 1;
  for (const std::int64_t t : sizes)
    for (const std::int64_t c : sizes) {
      if (ranks_ / t % c != 0 || !fits_the_model(t, c, 1)) continue;
      for (const std::int64_t s : sizes) {
        if (ranks_ / t / c % s != 0 || !fits_the_model(t, c, s)) continue;
        const double all = change(p.tensor, t) + change(p.context, c) + change(p.pipeline, s);
        if (all > least - 1e-9) continue;  // of equal ones the first
        least = all;
        tensor = t;
        context = c;
        pipeline = s;
      }
    }
  std::vector<std::string> changes;
  const auto add_axis = [&](const char* key, std::int64_t from, std::int64_t to) {
    if (to != from) changes.push_back(fmt::format("{} to {}", key, to));
  };
  add_axis("parallel.tensor", p.tensor, tensor);
  add_axis("parallel.context", p.context, context);
  add_axis("parallel.pipeline", p.pipeline, pipeline);
  return fmt::format("{}", fmt::join(changes, " and "));
}

// The context * data ranks are replicas of parallel.shard ranks each.
void Validator::check_shard() {
  const ParallelConfig& p = config_.parallel;
  const std::int64_t copy = saturating_product({p.tensor, p.pipeline}), whole = p.ranks_of_a_copy();
  if (p.shard == 0 || !are_sound({"parallel.shard", "parallel.zero"})) return;
  if (p.zero == 0)
    add(fmt::format("parallel.shard = {} without parallel.zero", p.shard),
        "with parallel.zero = 0 every rank holds everything: nothing is split",
        "set parallel.zero to 1, 2 or 3, or parallel.shard to 0");
  if (ranks_ <= 0 || ranks_ % whole != 0 || (ranks_ / copy) % p.shard == 0) return;
  add(fmt::format("parallel.shard = {} does not divide {} context * data rank{}", p.shard, ranks_ / copy,
                  ranks_ / copy == 1 ? "" : "s"),
      "these ranks are groups of parallel.shard ranks, each with one copy",
      fmt::format("set parallel.shard to one of {}, or to 0 for all of them",
                  fmt::join(divisors(ranks_ / copy), ", ")));
}

// Each context rank holds at least one position; if they share the heads, at least one of those.
void Validator::check_context() {
  const ParallelConfig& p = config_.parallel;
  const std::int64_t length = shortest_sequence(config_.model), heads = config_.model.attention.heads;
  if (are_sound({"model.context", "model.source_context"}) && p.context > length)
    add(fmt::format("parallel.context = {} is too many for {} = {}", p.context,
                    length < config_.model.context ? "model.source_context" : "model.context", length),
        "each context rank holds at least one position of a sequence",
        fmt::format("set parallel.context to {} or less", length));
  if (p.context_kind != ContextKind::heads || !are_sound({"model.attention.heads"}) || p.tensor > heads) return;
  const std::int64_t most = heads / p.tensor;
  if (p.context > most)
    add(fmt::format("parallel.context = {} is too many for model.attention.heads = {}{}", p.context, heads,
                    p.tensor > 1 ? fmt::format(" on parallel.tensor = {}", p.tensor) : ""),
        "with parallel.context_kind = heads each rank computes at least one query head",
        fmt::format("set parallel.context to {} or less, or parallel.context_kind to ring", most));
}

// The expert ranks cut context * data. Each holds at least one expert.
void Validator::check_experts() {
  const ExpertsConfig& e = config_.model.experts;
  const std::int64_t expert = config_.parallel.expert;
  if (!are_sound({"model.experts.count", "model.experts.chosen", "model.experts.every", "parallel.expert"})) return;
  if (e.count == 0) {
    if (expert > 1)
      add(fmt::format("parallel.expert = {}, but the model has no experts", expert),
          "the ranks of this axis share the experts", "set parallel.expert to 1, or give model.experts.count");
    return;
  }
  if (e.chosen > e.count)
    add(fmt::format("model.experts.chosen = {} is more than model.experts.count = {}", e.chosen, e.count),
        "a token chooses different experts", fmt::format("set model.experts.chosen to {} or less", e.count));
  if (are_sound({"model.layers"}) && e.every > config_.model.layers)
    add(fmt::format("model.experts.every = {} is more than model.layers = {}", e.every, config_.model.layers),
        "no block would have experts", fmt::format("set model.experts.every to {} or less", config_.model.layers));
  const std::int64_t shard = config_.parallel.shard;
  if (are_sound({"parallel.shard"}) && shard % expert != 0)
    add(fmt::format("parallel.expert = {} does not divide parallel.shard = {}", expert, shard),
        "the ranks of a shard hold one copy of every expert",
        fmt::format("set parallel.expert to one of {}, or parallel.shard to {}", fmt::join(divisors(shard), ", "),
                    nearest_multiples(shard, expert)));
  const std::int64_t others = saturating_product({config_.parallel.tensor, config_.parallel.pipeline});
  const std::int64_t ranks = ranks_ > 0 && ranks_ % config_.parallel.ranks_of_a_copy() == 0 ? ranks_ / others : 0;
  if (expert > e.count || (ranks > 0 && ranks % expert != 0)) {
    std::vector<std::int64_t> fitting;
    for (std::int64_t size = 1; size <= std::min(e.count, ranks); ++size)
      if (ranks % size == 0) fitting.push_back(size);
    const bool too_many = expert > e.count;
    add(too_many ? fmt::format("parallel.expert = {} is too many for model.experts.count = {}", expert, e.count)
                 : fmt::format("parallel.expert = {} does not divide the {} that have other sequences or positions",
                               expert, quantity(ranks, "rank")),
        too_many ? "each expert rank holds at least one expert"
                 : "the ranks that share the experts are context * data, cut into equal groups",
        fitting.empty() ? fmt::format("set parallel.expert to {} or less", e.count)
                        : fmt::format("set parallel.expert to one of {}", fmt::join(fitting, ", ")));
  }
}

// The model is cut into pipeline * chunks stretches of at least one part.
void Validator::check_pipeline() {
  const ParallelConfig& p = config_.parallel;
  if (!are_sound({"parallel.chunks", "parallel.stages", "model.layers"})) return;
  const bool v = p.schedule == PipelineSchedule::v_shaped;
  const bool one = p.schedule == PipelineSchedule::one_forward_one_backward;
  if ((v && p.chunks != 0 && p.chunks != 2) || (one && p.chunks > 1)) {
    add(fmt::format("parallel.chunks = {} does not fit parallel.schedule = {}", p.chunks, name_of(p.schedule)),
        v ? "a V has two stretches on each stage" : "1f1b has one stretch on each stage",
        v ? "set parallel.chunks to 2" : "set parallel.chunks to 1, or parallel.schedule to interleaved");
    return;
  }
  const std::int64_t parts = num_parts(config_.model), chunks = p.chunks_of_stage(), pieces = p.pieces();
  const std::string cut = fmt::format("parallel.pipeline = {}{}", p.pipeline,
                                      chunks > 1 ? fmt::format(" with {} stretches on each stage", chunks) : "");
  if (pieces > parts)
    add(fmt::format("{} is too many for a model of {} parts", cut, parts),
        "each stretch holds at least one part: the embedding, one of the blocks, or the head",
        fmt::format("set parallel.pipeline to {} or less", std::max<std::int64_t>(1, parts / chunks)));
  if (p.stages.empty()) return;
  std::int64_t sum = 0;
  for (const std::int64_t count : p.stages) sum += std::min(count, std::numeric_limits<std::int64_t>::max() - sum);
  if (std::ssize(p.stages) != pieces || sum != parts)
    add(fmt::format("parallel.stages has {} with {} in all, but {} and a model of {} parts need {}",
                    quantity(std::ssize(p.stages), "number"), quantity(sum, "part"), cut, parts,
                    quantity(pieces, "number")),
        "it says how many parts (the embedding, each block, the head) each stretch has",
        fmt::format("give {} numbers whose sum is {}, or [] to cut by cost", pieces, parts));
}

// batch = data ranks * micro_batch * micro-batches of a step
void Validator::check_batch() {
  if (!are_sound({"train.batch", "parallel.micro_batch", "parallel.tensor", "parallel.context", "parallel.pipeline"}))
    return;
  const std::int64_t batch = config_.train.batch, micro_batch = config_.parallel.micro_batch;
  const std::int64_t copy = config_.parallel.ranks_of_a_copy();
  if (ranks_ % copy != 0) return;  // the number of data ranks is not known
  const std::int64_t data = std::max<std::int64_t>(1, ranks_ / copy);
  const std::int64_t step = data * std::max<std::int64_t>(1, micro_batch);
  if (batch % step == 0) return;
  std::string divisor = fmt::format("{} data rank{}", data, data == 1 ? "" : "s");
  if (micro_batch > 0) divisor += fmt::format(" * parallel.micro_batch = {}", micro_batch);
  add(fmt::format("train.batch = {} does not divide by {}{}", batch, divisor,
                  micro_batch > 0 ? fmt::format(", which is {}", step) : ""),
      "every data rank computes the same number of micro-batches of the same size",
      fmt::format("set train.batch to {}{}", nearest_multiples(batch, step),
                  micro_batch > 1 && batch % data == 0
                      ? fmt::format(", or parallel.micro_batch to {}", largest_divisor(batch / data, micro_batch))
                      : ""));
}

}  // namespace choir
