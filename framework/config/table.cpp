#include "framework/config/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <string_view>

#include "kernels/experts.h"

namespace choir {
namespace {

// The largest integer, so that the product of any two fits in 64 bits.
constexpr double largest = 2147483647;

Limits at_least(double least, double most = largest) { return {.least = least, .most = most}; }
Limits positive() { return {.least = 0, .above_least = true}; }
Limits not_negative() { return {.least = 0}; }
Limits below_one() { return {.least = 0, .most = 1, .below_most = true}; }

std::vector<Field> fields(AttentionConfig& c) {
  return {
      {"model.attention.kind", &c.kind,
       "linear: gated linear attention, of a cost linear in the length: a head keeps a state that each token decays, "
       "adds to and reads; delta: the same, and a token takes out of the state what stood at its key"},
      {"model.attention.softmax_every", &c.softmax_every,
       "n: every n-th block of linear attention has softmax instead; 0: none", at_least(0)},
      {"model.attention.heads", &c.heads, "query heads; any number, on any number of ranks", at_least(1)},
      {"model.attention.kv_heads", &c.kv_heads,
       "key/value heads, each shared by heads / kv_heads query heads; 0: heads", at_least(0)},
      {"model.attention.head_width", &c.head_width, "width of one head; 0: model.width / heads", at_least(0)},
      {"model.attention.position", &c.position,
       "how a token knows its position; alibi: scores fall with the distance, by a slope of each head; learned_2d, "
       "rotary_2d: a square of an image by its row and its column"},
      {"model.attention.rotary_base", &c.rotary_base, "base of the rotary wavelengths", positive()},
      {"model.attention.window", &c.window,
       "a token sees itself and the window - 1 tokens before it, in an encoder on either side; 0: all of them",
       at_least(0)},
      {"model.attention.soft_cap", &c.soft_cap,
       "c: a score s becomes c tanh(s / c), which is between -c and c; 0: it stays", not_negative()},
      {"model.attention.norm", &c.norm,
       "q and k of each head have an RMS norm, with a learned weight for all heads, before rotary positions"},
      {"model.attention.documents", &c.documents,
       "separate: a token sees only its own document, and positions begin again in each"},
      {"model.attention.prefix", &c.prefix,
       "n: the first n tokens of a decoder's sequence see each other, and targets begin after them; 0: none",
       at_least(0)},
      {"model.attention.sinks", &c.sinks,
       "each head has a learned logit that joins the sum of its softmax, so that it can attend to nothing"},
      {"model.attention.dropout", &c.dropout, "share of the probabilities of attention dropped in training",
       below_one()},
  };
}

std::vector<Field> fields(HeadRoutingConfig& c) {
  return {
      {"model.attention.routing.chosen", &c.chosen,
       "heads that a token chooses, by the scores of a router; the others are not computed for it; 0: it has all heads",
       at_least(0, kernels::most_chosen_experts)},
      {"model.attention.routing.always", &c.always, "heads that every token has besides those chosen", at_least(0)},
      {"model.attention.routing.capacity", &c.capacity,
       "a head computes the first capacity * chosen * model.context / (heads - always) tokens of a sequence that chose "
       "it; 0: all",
       not_negative()},
      {"model.attention.routing.balance_weight", &c.balance_weight,
       "weight of a loss beside that of tokens, which makes the router use all heads", not_negative()},
  };
}

std::vector<Field> fields(Sources& c) {
  return {
      {"model.attention.sources.queries", &c.queries,
       "encoder_decoder: the stream from which the second attention of a decoder's block has its queries"},
      {"model.attention.sources.keys", &c.keys,
       "encoder_decoder: its keys; target: the decoder's own tokens, none after the query's; source, second_source: "
       "what "
       "the encoder gives of the first text of a sample, or of a second one"},
      {"model.attention.sources.values", &c.values,
       "encoder_decoder: its values; if they are of another stream than the keys, those of one position belong "
       "together"},
  };
}

std::vector<Field> fields(FeedForwardConfig& c) {
  return {
      {"model.feed_forward.kind", &c.kind, "activation; gelu is the tanh form, swiglu has a gate"},
      {"model.feed_forward.width", &c.width, "hidden width; 0: 4 * model.width", at_least(0)},
  };
}

std::vector<Field> fields(ExpertsConfig& c) {
  return {
      {"model.experts.count", &c.count,
       "experts of a block, in place of its feed-forward layer, each of model.feed_forward.width; 0: none",
       at_least(0)},
      {"model.experts.chosen", &c.chosen, "experts that a token chooses, by the scores of a router",
       at_least(1, kernels::most_chosen_experts)},
      {"model.experts.capacity", &c.capacity,
       "an expert takes the first capacity * chosen * model.context / count tokens of a sequence; 0: all",
       not_negative()},
      {"model.experts.shared", &c.shared, "experts that every token uses besides those chosen", at_least(0)},
      {"model.experts.score", &c.score, "the weights of the chosen experts, divided by their sum"},
      {"model.experts.balance", &c.balance,
       "what makes the router use all experts; loss: a loss beside that of tokens; bias: a term of each expert that "
       "only "
       "choices see"},
      {"model.experts.balance_weight", &c.balance_weight, "loss: its weight", not_negative()},
      {"model.experts.bias_step", &c.bias_step,
       "bias: after each step, the term of an expert with fewer tokens than the mean rises by this, and that of one "
       "with "
       "more falls",
       not_negative()},
      {"model.experts.every", &c.every, "n: every n-th block has experts; the others a feed-forward layer",
       at_least(1)},
  };
}

std::vector<Field> fields(NormConfig& c) {
  return {
      {"model.norm.kind", &c.kind, "normalisation before attention, before the feed-forward and at the end"},
      {"model.norm.epsilon", &c.epsilon, "added to the variance", positive()},
  };
}

std::vector<Field> fields(ImageConfig& c) {
  return {
      {"model.image.height", &c.height, "vision: pixels of a column of an image", at_least(1)},
      {"model.image.width", &c.width, "vision: pixels of a row", at_least(1)},
      {"model.image.channels", &c.channels, "vision: values of a pixel; 1: grey, 3: red, green and blue",
       at_least(1, 64)},
      {"model.image.patch", &c.patch, "vision: pixels of a side of the squares, each of which is a position",
       at_least(1)},
      {"model.image.stem", &c.stem,
       "vision: how a square becomes a row; patch: by one product; convolution: by convolutions of 3 x 3 that each "
       "halve "
       "height and width"},
  };
}

std::vector<Field> fields(ModelConfig& c) {
  return {
      {"model.family", &c.family,
       "decoder: a token sees those before it, and the next one is the target; encoder: a token sees all, and masked "
       "ones are the targets; encoder_decoder: a decoder whose tokens also see another text, the source, through an "
       "encoder; classifier: a token sees all, and the class of a whole text is the target; vision: squares of an "
       "image see each other, and its class is the target"},
      {"model.layers", &c.layers, "transformer blocks", at_least(1)},
      {"model.encoder_layers", &c.encoder_layers, "encoder_decoder: transformer blocks of the encoder; 0: model.layers",
       at_least(0)},
      {"model.width", &c.width, "width of the residual stream", at_least(1)},
      {"model.vocabulary", &c.vocabulary,
       "token ids run from 0 to vocabulary - 1, which is the mask token of an encoder", at_least(1)},
      {"model.classes", &c.classes, "classifier, vision: classes of texts or images", at_least(2)},
      {"model.pool", &c.pool,
       "classifier, vision: what the class is told from: the mean over the positions, or one before them that stands "
       "for none of the input"},
      {"model.context", &c.context,
       "tokens in a training sequence, or squares of an image and its class token; the most positions", at_least(1)},
      {"model.source_context", &c.source_context, "encoder_decoder: tokens of a source, the most; 0: model.context",
       at_least(0)},
      {"model.tied", &c.tied, "the output head of a text model is the transposed token embedding"},
      {"model.bias", &c.bias, "biases in linear layers and in layer norm"},
      {"model.dropout", &c.dropout, "share of embeddings and residual branches dropped in training", below_one()},
      {"model.initial_deviation", &c.initial_deviation,
       "standard deviation of initial weights; residual outputs get it / sqrt(their number), which is 2 * layers",
       positive()},
  };
}

std::vector<Field> fields(TokenizerConfig& c) {
  return {
      {"data.tokenizer.kind", &c.kind, "how `choir prepare` turns text into tokens"},
      {"data.tokenizer.vocabulary", &c.vocabulary,
       "tokens to train; 0: model.vocabulary, less the mask token of an encoder; bytes: always 257", at_least(0)},
      {"data.tokenizer.model", &c.model,
       "a given tokenizer: of a SentencePiece model, a token file, a checkpoint or a run; empty: train one on the "
       "corpus"},
      {"data.tokenizer.sample_bytes", &c.sample_bytes, "how much of the corpus the tokenizer is trained on, at most",
       at_least(1, 1e12)},
  };
}

std::vector<Field> fields(DataConfig& c) {
  return {
      {"data.path", &c.path, "the token or image file (HDF5) that `choir prepare` writes and training reads"},
      {"data.held_out", &c.held_out, "share of the text or images, at the end, kept for evaluation", below_one()},
  };
}

std::vector<Field> fields(MaskedConfig& c) {
  return {
      {"data.masked.share",
       &c.share,
       "encoder: share of the tokens that are targets",
       {.least = 0, .most = 1, .above_least = true}},
      {"data.masked.mask_token",
       &c.mask_token,
       "encoder: share of the targets that it reads as the mask token",
       {.least = 0, .most = 1}},
      {"data.masked.random_token",
       &c.random_token,
       "encoder: share of the targets that it reads as a random token; it reads the others as they are",
       {.least = 0, .most = 1}},
  };
}

std::vector<Field> fields(AugmentConfig& c) {
  return {
      {"data.augment.shift", &c.shift, "vision: pixels by which a training image is moved, at most, along each axis",
       not_negative()},
      {"data.augment.rotate",
       &c.rotate,
       "vision: degrees by which it is turned, at most, either way",
       {.least = 0, .most = 180}},
      {"data.augment.scale", &c.scale, "vision: share by which it is made larger or smaller, at most", below_one()},
      {"data.augment.mirror", &c.mirror, "vision: every second one is mirrored, left to right"},
  };
}

std::vector<Field> fields(TrainAttentionConfig& c) {
  return {
      {"train.attention.implementation", &c.implementation,
       "which attention kernels a GPU uses; auto: cuDNN's if it supports the shape, else Choir's own"},
      {"train.attention.deterministic", &c.deterministic, "the same bits every run; cuDNN needs more memory for it"},
  };
}

std::vector<Field> fields(SpikeConfig& c) {
  return {
      {"train.spike.action", &c.action,
       "what follows a step that is a spike, or whose loss or gradient norm is not finite; its update is left out; "
       "stop: "
       "the run ends; skip: it goes on with the next batch; rewind: with the next batch, from the newest checkpoint"},
      {"train.spike.sigma", &c.sigma,
       "a loss or gradient norm more than this many standard deviations above its mean over the window is a spike; 0: "
       "none is",
       not_negative()},
      {"train.spike.window", &c.window, "accepted steps in the window; nothing is a spike until half of it is known",
       at_least(2, 1024)},
      {"train.spike.most", &c.most, "steps in a row that are left out; at the next one the run stops", at_least(0)},
  };
}

std::vector<Field> fields(TrainConfig& c) {
  return {
      {"train.folder", &c.folder, "the run folder; empty: runs/<name of the configuration file>"},
      {"train.steps", &c.steps, "optimizer steps", at_least(1)},
      {"train.batch", &c.batch, "sequences per step, over all ranks", at_least(1)},
      {"train.precision", &c.precision, "of activations and matrix products; master weights are always f32"},
      {"train.emulate_bf16", &c.emulate_bf16, "let bf16 run, slowly, on a processor without bf16 instructions"},
      {"train.seed", &c.seed, "of initial weights, data order and dropout"},
      {"train.device", &c.device, "where the arithmetic runs; auto: on a GPU if one is visible"},
      {"train.cpu_kernels", &c.cpu_kernels,
       "what multiplies on the CPU. onednn: oneDNN, and f32 in attention; tiles: bf16 by Choir's kernels on tiles "
       "(AMX); auto: bf16 as by tiles if all processors have them, else Choir's kernels in vectors if all are AMD's "
       "with avx512_bf16, else as onednn"},
      {"train.time_products", &c.time_products,
       "of a GPU: time the library's first algorithms once for each shape of product, and keep the fastest"},
      {"train.streams", &c.streams, "CPU streams run at once, or on a worker thread each"},
      {"train.threads", &c.threads, "threads per rank; 0: OMP_NUM_THREADS, else the processors of the rank",
       at_least(0, 65536)},
      {"train.recompute", &c.recompute, "what a block computes again in its backward instead of saving it"},
      {"train.offload", &c.offload,
       "of a GPU: what is in pinned memory of the host. optimizer: AdamW's moments, and the masters of bf16; "
       "activations: what blocks save for backward"},
      {"train.timeout", &c.timeout, "seconds without a finished collective before a rank counts as hung; 0: no limit",
       not_negative()},
      {"train.start_timeout", &c.start_timeout,
       "the same from the start of the process to the first step, in which a large checkpoint is read; 0: no limit",
       not_negative()},
      {"train.heartbeat", &c.heartbeat,
       "seconds without a sign of life of a rank, after which it counts as stopped, dead or cut off; 0: never, as for "
       "a "
       "debugger",
       not_negative()},
      {"train.grace", &c.grace, "seconds that a stop by a signal may take, with its save; then the run ends without it",
       positive()},
      {"train.lock_wait", &c.lock_wait, "seconds that a start waits for another process that uses train.folder",
       at_least(0)},
      {"train.restarts", &c.restarts,
       "starts of a failed run by launch/train --supervise, in a row without a new checkpoint", at_least(0)},
      {"train.from", &c.from, "start from the weights of this checkpoint, with a fresh optimizer"},
      {"train.evaluate_every", &c.evaluate_every, "steps between evaluations on held-out text; 0: only at the end",
       at_least(0)},
      {"train.evaluate_sequences", &c.evaluate_sequences, "held-out sequences per evaluation; 0: all", at_least(0)},
      {"train.log_every", &c.log_every, "steps between lines of metrics.jsonl", at_least(1)},
      {"train.check_every", &c.check_every,
       "steps between comparisons of weights and optimizer state that a fault of the memory or of a processor would "
       "make "
       "differ; also before each checkpoint; 0: never",
       at_least(0)},
      {"train.inspect_every", &c.inspect_every,
       "steps between lines of metrics.jsonl with the entropy, the largest logit and the sink share of every attention "
       "head; 0: never",
       at_least(0)},
      {"train.straggler_every", &c.straggler_every,
       "seconds between comparisons of the ranks' times, which name ranks that are slower than others; 0: never",
       not_negative()},
  };
}

std::vector<Field> fields(OptimizerConfig& c) {
  return {
      {"optimizer.kind", &c.kind, "how gradients move the weights"},
      {"optimizer.rate", &c.rate, "the highest learning rate", positive()},
      {"optimizer.schedule", &c.schedule, "how the rate falls after the warmup"},
      {"optimizer.warmup", &c.warmup, "steps over which the rate rises from 0, linearly", at_least(0)},
      {"optimizer.decay", &c.decay, "last steps, over which the rate falls, of warmup_stable_decay", at_least(0)},
      {"optimizer.final_rate",
       &c.final_rate,
       "the last step's rate as a share of the highest",
       {.least = 0, .most = 1}},
      {"optimizer.betas", &c.betas, "AdamW: decay of the first and second moment", below_one()},
      {"optimizer.epsilon", &c.epsilon, "AdamW: added to the root of the second moment", positive()},
      {"optimizer.moments", &c.moments,
       "AdamW: how moments are kept; bf16, rounded at random, saves 4 bytes a parameter"},
      {"optimizer.momentum", &c.momentum, "SGD: decay of the running sum of gradients; 0: none", below_one()},
      {"optimizer.weight_decay", &c.weight_decay, "on weight matrices and embeddings; never on norms and biases",
       not_negative()},
      {"optimizer.clip", &c.clip, "larger global gradient norms are scaled down to this; 0: never", not_negative()},
  };
}

std::vector<Field> fields(ParallelConfig& c) {
  return {
      {"parallel.tensor", &c.tensor, "ranks that share each layer: attention heads, feed-forward columns, vocabulary",
       at_least(1)},
      {"parallel.sequence", &c.sequence, "between layers, the tensor ranks split the rows instead of repeating them"},
      {"parallel.tensor_chunks", &c.tensor_chunks,
       "pieces of rows of a product that the tensor ranks add up: one is added up while the next is multiplied; 0: on "
       "a GPU up to 4, of at least 2048 rows, else 1; fp8 takes 1",
       at_least(0)},
      {"parallel.context", &c.context, "ranks that share each sequence: each holds some of its positions", at_least(1)},
      {"parallel.context_kind", &c.context_kind,
       "how attention gets the keys and values of other context ranks; auto: as the fewest bytes are sent"},
      {"parallel.pipeline", &c.pipeline, "stages: ranks that share the layers", at_least(1)},
      {"parallel.schedule", &c.schedule, "the order in which stages work on the micro-batches of a step"},
      {"parallel.chunks", &c.chunks, "stretches of the model on each stage; 0: two if interleaved or v, else one",
       at_least(0)},
      {"parallel.stages", &c.stages,
       "parts (embedding, blocks, head) in each stretch, in the model's order; []: cut by cost", at_least(1)},
      {"parallel.expert", &c.expert,
       "ranks that share the experts, among those that have other sequences or other positions", at_least(1)},
      {"parallel.zero",
       &c.zero,
       "what the data ranks split: 1 masters and optimizer state, 2 also gradients, 3 also the values of weights",
       {.least = 0, .most = 3}},
      {"parallel.shard", &c.shard,
       "how many of the context * data ranks split one copy of what parallel.zero splits; 0: all of them", at_least(0)},
      {"parallel.micro_batch", &c.micro_batch, "sequences per forward on one rank; 0: a data rank's share at once",
       at_least(0)},
  };
}

std::vector<Field> fields(CheckpointConfig& c) {
  return {
      {"checkpoint.every", &c.every, "steps between checkpoints; 0: only at the end", at_least(0)},
      {"checkpoint.keep", &c.keep, "how many of the newest stay; 0: all", at_least(0)},
      {"checkpoint.milestones", &c.milestones, "checkpoints of multiples of this step stay as well; 0: none",
       at_least(0)},
      {"checkpoint.timeout", &c.timeout,
       "seconds that a rank may take to write its part of a checkpoint, or its results, before its storage counts as "
       "hung; 0: no limit",
       not_negative()},
      {"checkpoint.best", &c.best, "the one with the lowest held-out loss stays as well; the link best names it"},
  };
}

std::vector<Field> fields(GenerateConfig& c) {
  return {
      {"generate.prompt", &c.prompt,
       "the text to continue; encoder_decoder: the source, or both of two with a tab between them"},
      {"generate.tokens", &c.tokens, "new tokens, at most", at_least(1)},
      {"generate.beam", &c.beam,
       "encoder_decoder: unfinished texts that the search for the likeliest one keeps; 1: greedy", at_least(1, 1000)},
      {"generate.temperature", &c.temperature, "above 1 is bolder, below 1 safer; 0: always the likeliest token",
       not_negative()},
      {"generate.top_k", &c.top_k, "draw from the k likeliest tokens; 0: from all", at_least(0)},
      {"generate.top_p",
       &c.top_p,
       "draw from the likeliest tokens that make up this probability; 1: from all",
       {.least = 0, .most = 1, .above_least = true}},
      {"generate.seed", &c.seed, "of the draws"},
  };
}

bool is_plain(const std::string& text) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '/' || c == '-';
  };
  if (text.empty() || !(std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '/')) return false;
  if (!std::all_of(text.begin(), text.end(), plain)) return false;
  std::string lower;
  for (const char c : text) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const std::string_view word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
    if (lower == word) return false;  // other readers of YAML do not read these as text
  return true;
}

// "number", "number >= 0", "number in [0, 1)"
std::string interval_text(const std::string& noun, const Limits& limits, double top) {
  if (std::isinf(limits.least)) return noun;
  if (limits.most >= top) return fmt::format("{} {} {}", noun, limits.above_least ? ">" : ">=", limits.least);
  return fmt::format("{} in {}{}, {}{}", noun, limits.above_least ? '(' : '[', limits.least, limits.most,
                     limits.below_most ? ')' : ']');
}

struct ValueText {
  std::string operator()(const std::int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const std::uint64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return fmt::format("{}", *value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const std::string* value) const { return is_plain(*value) ? *value : quote(*value); }
  std::string operator()(const std::array<double, 2>* value) const {
    return fmt::format("[{}, {}]", (*value)[0], (*value)[1]);
  }
  std::string operator()(const std::vector<std::int64_t>* values) const {
    return fmt::format("[{}]", fmt::join(*values, ", "));
  }
  std::string operator()(const Choice& choice) const { return choice.names.at(choice.get()); }
};

struct TypeText {
  const Limits& limits;
  std::string operator()(const std::int64_t*) const {
    if (limits.most - limits.least < 4) {
      std::vector<std::int64_t> values;
      for (double value = limits.least; value <= limits.most; ++value)
        values.push_back(static_cast<std::int64_t>(value));
      return fmt::format("{}", fmt::join(values, " | "));
    }
    return interval_text("integer", limits, largest);
  }
  std::string operator()(const std::uint64_t*) const { return "integer >= 0"; }
  std::string operator()(const double*) const {
    return interval_text("number", limits, std::numeric_limits<double>::infinity());
  }
  std::string operator()(const bool*) const { return "true | false"; }
  std::string operator()(const std::string*) const { return "text"; }
  std::string operator()(const std::array<double, 2>*) const {
    return interval_text("two numbers", limits, std::numeric_limits<double>::infinity());
  }
  std::string operator()(const std::vector<std::int64_t>*) const {
    return interval_text("list of integers", limits, largest);
  }
  std::string operator()(const Choice& choice) const { return fmt::format("{}", fmt::join(choice.names, " | ")); }
};

}  // namespace

std::vector<Field> table(Config& config) {
  std::vector<Field> rows;
  const auto add = [&rows](std::vector<Field> more) { std::move(more.begin(), more.end(), std::back_inserter(rows)); };
  add(fields(config.model));
  add(fields(config.model.attention));
  add(fields(config.model.attention.routing));
  add(fields(config.model.attention.sources));
  add(fields(config.model.feed_forward));
  add(fields(config.model.experts));
  add(fields(config.model.norm));
  add(fields(config.model.image));
  add(fields(config.data));
  add(fields(config.data.tokenizer));
  add(fields(config.data.masked));
  add(fields(config.data.augment));
  add(fields(config.train));
  add(fields(config.train.spike));
  add(fields(config.train.attention));
  add(fields(config.optimizer));
  add(fields(config.parallel));
  add(fields(config.checkpoint));
  add(fields(config.generate));
  return rows;
}

std::string value_text(const Slot& slot) { return std::visit(ValueText{}, slot); }

std::string type_text(const Field& field) { return std::visit(TypeText{field.limits}, field.slot); }

std::string quote(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      result += {'\\', c};
    else if (c == '\n')
      result += "\\n";
    else if (c == '\t')
      result += "\\t";
    else if (byte < 0x20 || byte == 0x7f)
      result += fmt::format("\\x{:02x}", byte);
    else
      result += c;
  }
  return result + '"';
}

}  // namespace choir
