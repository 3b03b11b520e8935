#include "framework/train/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/documents.h"
#include "kernels/philox.h"

namespace choir {

std::vector<std::int32_t> drawable_tokens(const Tokenizer& tokenizer) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t token = 0; token < tokenizer.vocabulary(); ++token)
    if (tokenizer.byte_length(token) > 0 || token == tokenizer.end_of_document()) tokens.push_back(token);
  return tokens;
}

std::int32_t sample_token(std::span<const float> logits, std::span<const std::int32_t> choices,
                          const GenerateConfig& config, double uniform) {
  if (std::any_of(choices.begin(), choices.end(),
                  [&](std::int32_t token) { return !std::isfinite(logits[static_cast<std::size_t>(token)]); }))
    throw Error({.what = "the model's logits are not finite",
                 .why = "its values, or the sums that they give, have overflowed",
                 .fix = "use a checkpoint from before the run diverged (metrics.jsonl has the losses)"});
  std::vector<std::int32_t> order(choices.begin(), choices.end());
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (config.temperature == 0) return *std::min_element(order.begin(), order.end(), likelier);
  std::size_t kept = order.size();
  if (config.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(config.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), likelier);

  std::vector<double> weight(kept);
  const double largest = logits[static_cast<std::size_t>(order[0])];
  for (std::size_t i = 0; i < kept; ++i)
    weight[i] = std::exp((logits[static_cast<std::size_t>(order[i])] - largest) / config.temperature);
  double total = std::accumulate(weight.begin(), weight.end(), 0.0), sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    sum += weight[i];
    if (sum >= config.top_p * total) {  // the fewest tokens that together have top_p
      kept = i + 1;
      total = sum;
      break;
    }
  }
  double target = uniform * total;
  for (std::size_t i = 0; i < kept; ++i) {
    target -= weight[i];
    if (target < 0) return order[i];
  }
  return order[kept - 1];
}

std::vector<kernels::DocumentRange> documents_of(std::span<const std::int32_t> tokens, std::int32_t end_of_document) {
  std::vector<kernels::DocumentRange> documents;
  while (documents.size() < tokens.size()) {
    const auto begin = documents.size();
    const auto end = std::find(tokens.begin() + static_cast<std::ptrdiff_t>(begin), tokens.end(), end_of_document);
    const std::size_t next = static_cast<std::size_t>(end - tokens.begin()) + (end == tokens.end() ? 0 : 1);
    documents.resize(next, {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(next)});
  }
  return documents;
}

void generate(Trainer& trainer, const Tokenizer& tokenizer, const GenerateConfig& config,
              const std::function<void(const std::string&)>& emit) {
  Runtime& runtime = trainer.runtime();
  Context context = trainer.context();
  context.training = false;
  const std::int64_t room = trainer.config().model.context, vocabulary = trainer.config().model.vocabulary;
  if (vocabulary < tokenizer.vocabulary())
    throw ConfigError(Problem{.what = "model.vocabulary = " + std::to_string(vocabulary) + " is less than the " +
                                      std::to_string(tokenizer.vocabulary()) + " tokens of the tokenizer",
                              .why = "the model cannot read or write all of its tokens",
                              .fix = "use the tokenizer that the model was trained with"});
  const std::vector<std::int32_t> choices = drawable_tokens(tokenizer);
  const std::vector<KeyValueCache> caches = trainer.stage().make_caches(room, runtime);

  // An empty prompt begins a document. In training a document follows the end of another one.
  std::vector<std::int32_t> text = tokenizer.encode(config.prompt);
  if (text.empty()) text.push_back(tokenizer.end_of_document());
  const std::int64_t prefix = trainer.config().model.attention.prefix;
  if (std::ssize(text) < prefix)
    throw ConfigError({.what = fmt::format("generate.prompt has {}, and model.attention.prefix = {}",
                                           quantity(std::ssize(text), "token"), prefix),
                       .why = "the tokens of the prefix see each other: all of them are given",
                       .fix = "give a longer prompt"});
  std::vector<std::int32_t> unread = text;
  if (static_cast<std::int64_t>(unread.size()) > room) unread.erase(unread.begin(), unread.end() - room);
  std::vector<float> logits(static_cast<std::size_t>(vocabulary));
  std::int64_t position = 0;
  for (std::int64_t i = 0; i < config.tokens; ++i) {
    if (position + static_cast<std::int64_t>(unread.size()) > room) {
      unread.assign(text.end() - std::max({std::int64_t{1}, room / 2, prefix}), text.end());
      position = 0;
    }
    const Tensor ids = ops::to_device(runtime, unread, DType::i32);
    context.rows = {.length = position + ids.count(), .runs = {{position, position + ids.count()}, {0, 0}}};
    if (trainer.config().model.attention.documents == DocumentBorders::separate) {
      const auto read = std::span(text).last(static_cast<std::size_t>(context.rows.length));
      context.documents = upload_documents(runtime, documents_of(read, tokenizer.end_of_document()), context.rows);
    }
    const Tensor next = trainer.stage().generate(ids, caches, context, trainer.shards());
    ops::download(runtime, next.reshape({next.count()}), logits.data());
    position += ids.count();
    const auto word = kernels::philox_word(random_key(config.seed, "generate"), 0, static_cast<std::uint64_t>(i));
    const std::int32_t token = sample_token(logits, choices, config, static_cast<double>(word) / 4294967296.0);
    if (token == tokenizer.end_of_document()) return;
    text.push_back(token);
    unread = {token};
    emit(tokenizer.decode(unread));
  }
}

}  // namespace choir
