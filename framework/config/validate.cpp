// Finds what cannot work before anything is allocated. First each value on its own, by the limits in the table; then
// what depends on several keys or on the number of ranks, left out if one of its values is already wrong.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <numeric>

#include "framework/config/table.h"
#include "framework/core/quantity.h"
#include "framework/model/families.h"
#include "kernels/matmul.h"
#include "kernels/tiles.h"

namespace choir {
namespace {

bool within(const Limits& limits, double value) {
  if (!std::isfinite(value)) return false;
  if (limits.above_least ? value <= limits.least : value < limits.least) return false;
  return limits.below_most ? value < limits.most : value <= limits.most;
}

bool is_one_of(const std::string& value, const std::vector<std::string>& values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

struct WithinLimits {
  const Limits& limits;
  bool operator()(const std::int64_t* value) const { return within(limits, static_cast<double>(*value)); }
  bool operator()(const std::uint64_t*) const { return true; }
  bool operator()(const double* value) const { return within(limits, *value); }
  bool operator()(const bool*) const { return true; }
  bool operator()(const std::string*) const { return true; }
  bool operator()(const std::vector<std::int64_t>* values) const {
    return std::all_of(values->begin(), values->end(),
                       [&](std::int64_t value) { return within(limits, static_cast<double>(value)); });
  }
  bool operator()(const Choice&) const { return true; }
  bool operator()(const std::array<double, 2>* value) const {
    return within(limits, (*value)[0]) && within(limits, (*value)[1]);
  }
};

Problem outside_limits(const Field& field) {
  const Limits& limits = field.limits;
  const auto* integer = std::get_if<std::int64_t*>(&field.slot);
  const bool beyond = integer && static_cast<double>(**integer) > limits.most;
  const bool below = integer && static_cast<double>(**integer) < limits.least;
  Problem problem{fmt::format("{} = {} is out of range", field.key, value_text(field.slot))};
  problem.why = beyond && !limits.why.empty()
                    ? limits.why
                    : fmt::format("{} takes {}: {}", field.key, type_text(field), field.documentation);
  problem.fix = beyond  ? fmt::format("set {} to {:.0f} or less", field.key, limits.most)
                : below ? fmt::format("set {} to {:.0f} or more", field.key, limits.least)
                        : fmt::format("set {} to a value in that range", field.key);
  if (limits.most == limits.least) problem.fix = fmt::format("set {} to {:.0f}", field.key, limits.most);
  return problem;
}

// "16 or 32": the multiples of `step` next to `value`, without 0.
std::string nearest_multiples(std::int64_t value, std::int64_t step) {
  const std::int64_t below = value / step * step;
  return below > 0 ? fmt::format("{} or {}", below, below + step) : fmt::format("{}", step);
}

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> small, large;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    small.push_back(d);
    if (d != n / d) large.push_back(n / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

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

class Validator {
 public:
  Validator(const Config& config, std::int64_t ranks) : config_(config), ranks_(ranks) {}

  std::vector<Problem> run() {
    for (WrongValue& wrong : values_outside_limits(config_)) {
      wrong_.push_back(std::move(wrong.key));
      problems_.push_back(std::move(wrong.problem));
    }
    check_heads();
    check_attention_mask();
    check_head_routing();
    check_linear_attention();
    check_tokenizer();
    check_masked();
    check_images();
    check_pairs();
    check_precision();
    check_cpu_kernels();
    check_schedule();
    check_layout();
    check_batch();
    return std::move(problems_);
  }

 private:
  bool are_sound(std::initializer_list<const char*> keys) const {
    return std::none_of(keys.begin(), keys.end(), [&](const char* key) { return is_one_of(key, wrong_); });
  }
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

void Validator::check_heads() {
  const ModelConfig& m = config_.model;
  const AttentionConfig& a = m.attention;
  if (are_sound({"model.attention.heads", "model.attention.kv_heads"}) && a.heads % m.kv_heads() != 0)
    add(fmt::format("model.attention.kv_heads = {} does not divide model.attention.heads = {}", a.kv_heads, a.heads),
        "each key/value head serves the same number of query heads",
        fmt::format("set model.attention.kv_heads to one of {}", fmt::join(divisors(a.heads), ", ")));

  if (!are_sound({"model.width", "model.attention.heads", "model.attention.head_width"})) return;
  if (a.head_width == 0 && m.width % a.heads != 0)
    add(fmt::format("model.width = {} does not divide by model.attention.heads = {}", m.width, a.heads),
        "without model.attention.head_width a head is model.width / heads wide",
        fmt::format("set model.width to {}, or give model.attention.head_width", nearest_multiples(m.width, a.heads)));
  else if (const std::int64_t step = is_2d(a.position) ? 4 : 2; is_rotary(a.position) && m.head_width() % step != 0)
    add(fmt::format(
            "model.attention.position = {} with heads of width {}{}", name_of(a.position), m.head_width(),
            a.head_width > 0 ? "" : fmt::format(" (model.width = {} / model.attention.heads = {})", m.width, a.heads)),
        is_2d(a.position)
            ? "a row and a column turn half of the features each, in pairs, so that the width of a head divides by 4"
            : "rotary positions turn pairs of features, so that the width of a head is even",
        fmt::format("set model.attention.head_width to {}", m.head_width() / step * step + step));
}

void Validator::check_attention_mask() {
  const ModelConfig& m = config_.model;
  if (m.is_classifier() && m.attention.documents == DocumentBorders::separate)
    add(fmt::format("model.attention.documents = separate with model.family = {}", name_of(m.family)),
        "a sample of a classifier is one text or one image", "delete model.attention.documents");
  if (m.attention.prefix == 0 || !are_sound({"model.attention.prefix", "model.context"})) return;
  const std::string given = fmt::format("model.attention.prefix = {}", m.attention.prefix);
  if (m.family != ModelFamily::decoder)
    add(fmt::format("{} with model.family = {}", given, name_of(m.family)),
        "only a decoder has tokens that do not see each other", "delete model.attention.prefix");
  if (m.attention.prefix >= m.context)
    add(fmt::format("{} leaves no target in model.context = {}", given, m.context),
        "the tokens of the prefix see each other, so that the first target is the one after it",
        fmt::format("set model.attention.prefix to {} or less", m.context - 1));
  if (m.attention.documents == DocumentBorders::separate)
    add(fmt::format("{} with model.attention.documents = separate", given),
        "the prefix is that of a sequence, and a sequence of several documents would have it in the first one only",
        "set model.attention.prefix to 0, or model.attention.documents to joined");
}

// The queries of a routed head stand at positions that only the router knows.
void Validator::check_head_routing() {
  const AttentionConfig& a = config_.model.attention;
  const HeadRoutingConfig& r = a.routing;
  const ParallelConfig& p = config_.parallel;
  if (!are_sound({"model.attention.heads", "model.attention.routing.chosen", "model.attention.routing.always"})) return;
  const std::string given = fmt::format("model.attention.routing.chosen = {}", r.chosen);
  if (r.chosen == 0) {
    if (r.always > 0)
      add(fmt::format("model.attention.routing.always = {} with {}", r.always, given),
          "without a choice every token has all heads",
          "set model.attention.routing.chosen to 1 or more, or delete model.attention.routing.always");
    return;
  }
  if (r.always + r.chosen > a.heads)
    add(fmt::format("{} and model.attention.routing.always = {} are more than model.attention.heads = {}", given,
                    r.always, a.heads),
        "a token chooses different heads, of those that are not always on",
        fmt::format("set model.attention.routing.chosen and model.attention.routing.always to numbers whose sum is {} "
                    "or less",
                    a.heads));
  if (a.position == Position::alibi)
    add(fmt::format("model.attention.position = alibi with {}", given),
        "the kernels of ALiBi know the positions of queries from their numbers, and a head that is chosen has queries "
        "anywhere",
        "set model.attention.position to rotary or learned");
  if (a.dropout > 0)
    add(fmt::format("model.attention.dropout = {} with {}", value_text(&config_.model.attention.dropout), given),
        "probabilities are dropped by the positions of their queries, and a head that is chosen has queries anywhere",
        "delete model.attention.dropout; model.dropout works");
  if (p.context > 1 && (p.context_kind == ContextKind::ring || p.context_kind == ContextKind::heads))
    add(fmt::format("parallel.context_kind = {} with {}", name_of(p.context_kind), given),
        "the queries of a head that is chosen need the keys of all positions at once",
        "set parallel.context_kind to gather or auto");
}

// A state of fixed size holds no single key: what picks, caps or drops keys has no meaning in it.
void Validator::check_linear_attention() {
  const ModelConfig& m = config_.model;
  const AttentionConfig& a = m.attention;
  if (a.kind == AttentionKind::softmax) {
    if (a.softmax_every > 0)
      add(fmt::format("model.attention.softmax_every = {} with model.attention.kind = softmax", a.softmax_every),
          "every block has softmax",
          "set model.attention.softmax_every to 0, or model.attention.kind to linear or delta");
    return;
  }
  const auto refuse = [&](bool given, const std::string& what, const std::string& why, const std::string& fix) {
    if (given)
      add(fmt::format("{} with model.attention.kind = {}", what, name_of(a.kind)), why,
          fix + ", or set model.attention.kind to softmax");
  };
  refuse(a.window > 0, fmt::format("model.attention.window = {}", a.window),
         "a token leaves the state by its decay, not at a distance", "set model.attention.window to 0");
  refuse(a.position == Position::alibi, "model.attention.position = alibi",
         "the decay of each head stands for the distance; there is no score to which a slope can be added",
         "set model.attention.position to rotary, learned or none");
  refuse(a.sinks, "model.attention.sinks = true", "there is no softmax whose sum a logit could join",
         "set model.attention.sinks to false");
  refuse(a.soft_cap > 0, fmt::format("model.attention.soft_cap = {}", value_text(&config_.model.attention.soft_cap)),
         "products of q and k are not computed one by one", "set model.attention.soft_cap to 0");
  refuse(a.prefix > 0, fmt::format("model.attention.prefix = {}", a.prefix),
         "a state holds what is before a token or what is behind it, and tokens of a prefix see a part of that",
         "set model.attention.prefix to 0");
  refuse(a.dropout > 0, fmt::format("model.attention.dropout = {}", value_text(&config_.model.attention.dropout)),
         "there are no probabilities of single keys", "set model.attention.dropout to 0");
  refuse(a.routing.chosen > 0, fmt::format("model.attention.routing.chosen = {}", a.routing.chosen),
         "the state of a head takes up every token", "set model.attention.routing.chosen to 0");
  refuse(are_sound({"model.attention.kv_heads", "model.attention.heads"}) && m.kv_heads() != a.heads,
         fmt::format("model.attention.kv_heads = {} and model.attention.heads = {}", a.kv_heads, a.heads),
         "generation keeps a state of each query head and no keys, so that fewer key/value heads would save nothing",
         "set model.attention.kv_heads to 0");
}

void Validator::check_tokenizer() {
  if (config_.model.family == ModelFamily::vision) return;
  if (!are_sound({"model.vocabulary", "data.tokenizer.kind", "data.tokenizer.vocabulary"})) return;
  constexpr std::int64_t byte_tokens = 257;  // one per byte, and the end of a document
  const TokenizerConfig& t = config_.data.tokenizer;
  const bool bytes = t.kind == TokenizerKind::bytes;
  if (bytes && t.vocabulary != 0 && t.vocabulary != byte_tokens)
    add(fmt::format("data.tokenizer.vocabulary = {} with data.tokenizer.kind = bytes", t.vocabulary),
        fmt::format("the byte tokenizer has {} tokens: one per byte, and the end of a document", byte_tokens),
        fmt::format("set data.tokenizer.vocabulary to 0 or {}", byte_tokens));
  const std::int64_t tokens = bytes ? byte_tokens : t.vocabulary;
  const ModelConfig& m = config_.model;
  if (tokens <= m.text_vocabulary()) return;
  const std::string whose =
      bytes ? std::string("data.tokenizer.kind = bytes") : fmt::format("data.tokenizer.vocabulary = {}", t.vocabulary);
  if (tokens > m.vocabulary)
    add(fmt::format("model.vocabulary = {} is below the {} tokens of the tokenizer ({})", m.vocabulary, tokens, whose),
        "a token without a row in the embedding cannot be read",
        fmt::format("set model.vocabulary to {} or more", tokens + m.vocabulary - m.text_vocabulary()));
  else
    add(fmt::format("model.vocabulary = {} leaves no id for the mask token beside the {} tokens of the tokenizer ({})",
                    m.vocabulary, tokens, whose),
        "the last id of an encoder is its mask token, which is not a token of text",
        fmt::format("set model.vocabulary to {} or more", tokens + 1));
}

void Validator::refuse_changed(const std::vector<std::string>& prefixes, const std::string& why, const char* family) {
  for (const Difference& changed : differences(Config{}, config_))
    if (std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return changed.key.starts_with(p); }))
      add(fmt::format("{} = {} with model.family = {}", changed.key, changed.right, name_of(config_.model.family)), why,
          fmt::format("delete {}, or set model.family to {}", changed.key, family));
}

void Validator::check_masked() {
  const MaskedConfig& masked = config_.data.masked;
  if (config_.model.family != ModelFamily::encoder)
    return refuse_changed({"data.masked."}, "only an encoder has masked tokens", "encoder");
  if (!are_sound({"data.masked.mask_token", "data.masked.random_token"})) return;
  if (masked.mask_token + masked.random_token > 1)
    add(fmt::format("data.masked.mask_token = {} and data.masked.random_token = {} are together more than 1",
                    masked.mask_token, masked.random_token),
        "both are shares of the targets, and a target is read as one of them or as it is",
        "set them to numbers whose sum is 1 or less");
}

// The squares of an image are the positions of its sequence.
void Validator::check_images() {
  const ModelConfig& m = config_.model;
  if (!m.is_classifier())
    refuse_changed({"model.classes", "model.pool"}, "only classifiers and vision models tell classes apart",
                   "classifier or vision");
  if (m.family != ModelFamily::vision) {
    if (is_2d(m.attention.position))
      add(fmt::format("model.attention.position = {} with model.family = {}", name_of(m.attention.position),
                      name_of(m.family)),
          "only the squares of images have rows and columns",
          fmt::format("set model.attention.position to {}", is_rotary(m.attention.position) ? "rotary" : "learned"));
    return refuse_changed({"model.image.", "data.augment."}, "only a vision model reads images", "vision");
  }
  if (!are_sound({"model.image.height", "model.image.width", "model.image.patch", "model.context"})) return;
  const ImageConfig& i = m.image;
  if (i.height % i.patch != 0 || i.width % i.patch != 0)
    return add(
        fmt::format("model.image.patch = {} does not divide images of {} x {} pixels", i.patch, i.height, i.width),
        "an image is cut into whole squares",
        fmt::format("set model.image.patch to one of {}", fmt::join(divisors(std::gcd(i.height, i.width)), ", ")));
  if (i.is_convolved() && (i.patch < 2 || !std::has_single_bit(static_cast<std::uint64_t>(i.patch))))
    add(fmt::format("model.image.patch = {} with model.image.stem = convolution", i.patch),
        "each convolution halves the sides of a square, until it is one pixel",
        "set model.image.patch to a power of two that divides height and width, or model.image.stem to patch");
  if (m.context != m.image_positions())
    add(fmt::format("model.context = {}, but images of {} x {} pixels in squares of {} have {} positions{}", m.context,
                    i.height, i.width, i.patch, m.image_positions(),
                    m.pool == Pool::class_token ? " with the class token" : ""),
        "every square is a position", fmt::format("set model.context to {}", m.image_positions()));
}

void Validator::check_pairs() {
  const ModelConfig& m = config_.model;
  if (!m.has_source())
    return refuse_changed({"model.encoder_layers", "model.source_context", "model.attention.sources.", "generate.beam"},
                          "only an encoder-decoder reads a source", "encoder_decoder");
  refuse_changed({"generate.temperature", "generate.top_k", "generate.top_p", "generate.seed"},
                 "the likeliest text is searched for, none is drawn", "decoder");
  if (m.attention.documents == DocumentBorders::separate)
    add("model.attention.documents = separate with model.family = encoder_decoder",
        "a sample of an encoder-decoder is one pair of texts", "delete model.attention.documents");
  check_sources();
}

void Validator::check_sources() {
  const ModelConfig& m = config_.model;
  const Sources& s = m.attention.sources;
  const std::string given =
      fmt::format("model.attention.sources = {{{}, {}, {}}}", name_of(s.queries), name_of(s.keys), name_of(s.values));
  if (s.queries != TokenStream::target)
    add(fmt::format("model.attention.sources.queries = {}", name_of(s.queries)),
        "what a query reads is added to the stream of its own tokens, and only those of the target have a loss",
        "set model.attention.sources.queries to target");
  if (!s.read(TokenStream::source))
    add(given,
        s.read(TokenStream::second_source) ? "nothing of the decoder would read the first source"
                                           : "nothing of the decoder would read the source",
        "set model.attention.sources.keys or model.attention.sources.values to source");
  if (s.are_aligned() && are_sound({"model.context", "model.source_context"}) && m.source_length() != m.context)
    add(fmt::format("{} with model.source_context = {} and model.context = {}", given, m.source_context, m.context),
        "keys of one sequence and values of the other belong together by their positions, so that both are equally "
        "long",
        fmt::format("set model.source_context to {}, or to 0", m.context));
}

void Validator::check_precision() {
  const TrainConfig& t = config_.train;
  if (t.device == TrainDevice::cuda && !kernels::built_with_cuda)
    add("train.device = cuda, but this choir was built without CUDA", "the build found no CUDA toolkit",
        "install the toolkit (nvcc, cuBLASLt, NCCL) and build again, or set train.device to cpu");
  if (t.offload != Offload::none && t.device == TrainDevice::cpu)
    add(fmt::format("train.offload = {} on the CPU", name_of(t.offload)),
        "it moves what a GPU holds into memory of the host, where a run on the CPU has all",
        "set train.offload to none");
  if (t.precision != Precision::f32 && t.device != TrainDevice::cuda && !t.emulate_bf16 &&
      !kernels::cpu::has_native_bf16())
    add(fmt::format("train.precision = {}, but this processor has no bf16 instructions", name_of(t.precision)),
        "bf16 matrix products need the instruction set avx512_bf16; without it they go through f32 copies, slower than "
        "f32",
        "set train.precision to f32, or train.emulate_bf16 to true (the same values, slowly)");
}

void Validator::check_cpu_kernels() {
  const TrainConfig& t = config_.train;
  if (t.cpu_kernels == CpuKernels::tiles && t.precision != Precision::f32 && t.device != TrainDevice::cuda &&
      !kernels::cpu::has_tiles())
    add(fmt::format("train.cpu_kernels = tiles, but {}", describe(kernels::cpu::examine_tiles())),
        "the kernels need the instruction sets amx_tile, amx_bf16 and avx512_bf16, Linux 5.16 or newer, and exact "
        "products of small integers",
        "set train.cpu_kernels to auto or onednn");
}

void Validator::check_schedule() {
  const OptimizerConfig& o = config_.optimizer;
  const std::int64_t steps = config_.train.steps;
  if (o.kind == OptimizerKind::adamw && o.momentum != 0)
    add(fmt::format("optimizer.momentum = {} with optimizer.kind = adamw", value_text(&config_.optimizer.momentum)),
        "AdamW does not read it; its first moment decays by optimizer.betas[0]",
        "delete optimizer.momentum, or set optimizer.kind to sgd");
  if (o.kind != OptimizerKind::adamw && o.moments != Moments::f32)
    add(fmt::format("optimizer.moments = {} with optimizer.kind = {}", name_of(o.moments), name_of(o.kind)),
        "only AdamW has moments; SGD's running sum of gradients is f32",
        "delete optimizer.moments, or set optimizer.kind to adamw");
  if (!are_sound({"train.steps", "optimizer.warmup", "optimizer.decay", "optimizer.schedule"})) return;
  const bool stable = o.schedule == Schedule::warmup_stable_decay;
  if (o.decay > 0 && !stable)
    add(fmt::format("optimizer.decay = {} with optimizer.schedule = {}", o.decay, name_of(o.schedule)),
        "only warmup_stable_decay reads it; the other schedules fall from the warmup to the last step",
        "delete optimizer.decay, or set optimizer.schedule to warmup_stable_decay");
  if (o.warmup + (stable ? o.decay : 0) <= steps) return;
  const std::string decay = stable ? fmt::format(" + optimizer.decay = {}", o.decay) : "";
  add(fmt::format("optimizer.warmup = {}{} is more than train.steps = {}", o.warmup, decay, steps),
      "the rate would still be rising, or not yet fallen, when the run ends",
      fmt::format("set train.steps to {} or more, or optimizer.warmup{} to {} or less",
                  o.warmup + (stable ? o.decay : 0), stable ? " + optimizer.decay" : "", steps));
}

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

}  // namespace

std::vector<WrongValue> values_outside_limits(Config config) {
  std::vector<WrongValue> wrong;
  for (const Field& field : table(config))
    if (!std::visit(WithinLimits{field.limits}, field.slot)) wrong.push_back({field.key, outside_limits(field)});
  return wrong;
}

std::vector<Problem> validate(const Config& config, std::int64_t ranks) { return Validator(config, ranks).run(); }

}  // namespace choir
