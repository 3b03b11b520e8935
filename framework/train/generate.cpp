#include "framework/train/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "framework/core/quantity.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/documents.h"
#include "framework/train/beam_search.h"
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

static void check_vocabulary(std::int64_t vocabulary, const Tokenizer& tokenizer) {
  if (vocabulary < tokenizer.vocabulary())
    throw ConfigError(Problem{.what = "model.vocabulary = " + std::to_string(vocabulary) + " is less than the " +
                                      std::to_string(tokenizer.vocabulary()) + " tokens of the tokenizer",
                              .why = "the model cannot read or write all of its tokens",
                              .fix = "use the tokenizer that the model was trained with"});
}

std::vector<std::string> texts_of_source(const std::string& key, const std::string& text, const ModelConfig& model) {
  if (source_texts(model) == 1) return {text};
  const std::size_t tab = text.find('\t');
  if (tab == std::string::npos || text.find('\t', tab + 1) != std::string::npos)
    throw ConfigError(Problem{.what = fmt::format("{} has {}", key, quantity(std::ranges::count(text, '\t'), "tab")),
                              .why = "this model reads two sources, and a tab stands between them",
                              .fix = key + (key.starts_with("--") ? " " : "=") + "$'a text\\ta second one'"});
  return {text.substr(0, tab), text.substr(tab + 1)};
}

std::vector<std::int32_t> source_of(const std::string& prompt, const Tokenizer& tokenizer, const ModelConfig& model) {
  SampleBuffer sample(model);
  std::ranges::fill(sample.source, -1);
  const std::vector<std::string> texts = texts_of_source("generate.prompt", prompt, model);
  for (std::size_t n = 0; n < texts.size(); ++n) {
    const std::string which = texts.size() == 1 ? "generate.prompt"
                              : n == 0          ? "the first text of generate.prompt"
                                                : "the second text of generate.prompt";
    std::vector<std::int32_t> source = tokenizer.encode(texts[n]);
    if (source.empty())
      throw ConfigError(
          Problem{.what = which + " is empty",
                  .why = "it is the source, to which an encoder-decoder gives the target",
                  .fix = texts.size() == 1 ? "generate.prompt='a text'" : "generate.prompt=$'a text\\ta second one'"});
    source.push_back(tokenizer.end_of_document());
    if (std::ssize(source) > model.source_length())
      throw ConfigError(Problem{
          .what = fmt::format("{} has {}, and the model reads {}", which, quantity(std::ssize(source), "token"),
                              model.source_length()),
          .why = "the last of them is the end of the text; model.source_context is fixed when a model is trained",
          .fix = "give a shorter prompt"});
    std::ranges::copy(source, source_text(model, std::span(sample.source), static_cast<std::int64_t>(n)).begin());
  }
  return sample.source;
}

std::vector<std::int32_t> translate(Trainer& trainer, const Tokenizer& tokenizer, const GenerateConfig& config,
                                    const std::vector<std::int32_t>& source) {
  using Caches = std::vector<KeyValueCache>;
  Runtime& runtime = trainer.runtime();
  const ModelConfig& model = trainer.config().model;
  check_vocabulary(model.vocabulary, tokenizer);
  const std::vector<std::int32_t> choices = drawable_tokens(tokenizer);
  const BeamSearch search{.beam = config.beam,
                          .most = std::min(config.tokens, model.context),
                          .begin = tokenizer.end_of_document(),
                          .end = tokenizer.end_of_document(),
                          .choices = choices};
  Context context = trainer.context();
  context.training = false;
  const GivenSource given(model, source);
  context.source = given.upload(runtime, search.most);
  std::vector<Caches> held, spare;  // of the texts of the beam; of none
  held.push_back(trainer.stage().make_caches(search.most, runtime));
  std::int64_t position = 0;

  const auto copy_of = [&](const Caches& from) {
    if (spare.empty()) spare.push_back(trainer.stage().make_caches(search.most, runtime));
    Caches to = std::move(spare.back());
    spare.pop_back();
    for (std::size_t part = 0; part < from.size(); ++part) {
      to[part].source = from[part].source;  // all texts have the same source
      for (Tensor KeyValueCache::*whole :
           {&KeyValueCache::state, &KeyValueCache::choices, &KeyValueCache::head_choices})
        if (from[part].*whole) ops::copy(runtime, from[part].*whole, to[part].*whole);
      for (Tensor KeyValueCache::*rows : {&KeyValueCache::keys, &KeyValueCache::values, &KeyValueCache::aligned})
        if (from[part].*rows)
          ops::copy(runtime, (from[part].*rows).slice_rows(0, position), (to[part].*rows).slice_rows(0, position));
    }
    return to;
  };
  // The last text that goes on from another one takes its caches, the others copies.
  const auto take_caches = [&](const std::vector<Extension>& extensions) {
    std::vector<std::int64_t> longer(held.size());
    for (const Extension& extension : extensions) ++longer[static_cast<std::size_t>(extension.parent)];
    for (std::size_t i = 0; i < held.size(); ++i)
      if (longer[i] == 0) spare.push_back(std::move(held[i]));
    std::vector<Caches> now;
    for (const Extension& extension : extensions) {
      const auto parent = static_cast<std::size_t>(extension.parent);
      now.push_back(--longer[parent] == 0 ? std::move(held[parent]) : copy_of(held[parent]));
    }
    held = std::move(now);
  };
  const NextLogits next = [&](const std::vector<Extension>& extensions) {
    take_caches(extensions);
    context.rows = {.length = position + 1, .runs = {{position, position + 1}, {0, 0}}};
    std::vector<std::vector<float>> logits;
    for (std::size_t i = 0; i < extensions.size(); ++i) {
      Batch batch{.ids = ops::to_device(runtime, std::vector<std::int32_t>{extensions[i].token}, DType::i32)};
      if (position == 0) batch.source = ops::to_device(runtime, given.ids, DType::i32);
      const Tensor result = trainer.stage().generate(batch, held[i], context, trainer.shards());
      context.source.rows.runs[0] = {0, 0};  // it has been read
      logits.emplace_back(static_cast<std::size_t>(model.vocabulary));
      ops::download(runtime, result.reshape({result.count()}), logits.back().data());
    }
    ++position;
    return logits;
  };
  return beam_search(search, next);
}

void generate(Trainer& trainer, const Tokenizer& tokenizer, const GenerateConfig& config,
              const std::function<void(const std::string&)>& emit) {
  Runtime& runtime = trainer.runtime();
  Context context = trainer.context();
  context.training = false;
  const std::int64_t room = trainer.config().model.context, vocabulary = trainer.config().model.vocabulary;
  check_vocabulary(vocabulary, tokenizer);
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
    const Tensor next = trainer.stage().generate({.ids = ids}, caches, context, trainer.shards());
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
