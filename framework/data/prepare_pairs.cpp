#include "framework/data/prepare_pairs.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "framework/data/file_seal.h"
#include "framework/data/lines.h"
#include "framework/data/sampler.h"
#include "framework/data/token_file_writer.h"

namespace choir {
namespace {

struct Pair {
  std::string source, target;
};

bool is_empty(std::string_view text) { return text.find_first_not_of(" \t") == std::string_view::npos; }

/// The pair of a line; what is wrong with it goes to `refuse`.
template <class Refuse>
Pair pair_of_columns(std::string_view line, const Refuse& refuse) {
  const std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos) return refuse("this line has no tab"), Pair{};
  if (const auto columns = std::ranges::count(line, '\t') + 1; columns > 2)
    return refuse(fmt::format("this line has {} columns", columns)), Pair{};
  const Pair pair{std::string(line.substr(0, tab)), std::string(line.substr(tab + 1))};
  if (is_empty(pair.source)) refuse("this line has no source before its tab");
  if (is_empty(pair.target)) refuse("this line has no target behind its tab");
  return pair;
}

template <class Refuse>
Pair pair_of_json(std::string_view line, const Refuse& refuse) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return refuse("this line is not a JSON object"), Pair{};
  const auto text_of = [&](const char* key) -> std::string {
    const auto found = object.find(key);
    if (found == object.end())
      refuse(fmt::format("this line has no \"{}\"", key));
    else if (!found->is_string())
      refuse(fmt::format("\"{}\" of this line is not a string", key));
    else if (is_empty(found->get<std::string>()))
      refuse(fmt::format("\"{}\" of this line is empty", key));
    else
      return found->get<std::string>();
    return "";
  };
  Pair pair;
  pair.source = text_of("source");
  pair.target = text_of("target");
  return pair;
}

/// The pairs of a file. What is wrong with its lines goes to `problems`.
std::vector<Pair> pairs_of_file(const std::string& path, ProblemList& problems) {
  const bool is_json = path.ends_with(".jsonl") || path.ends_with(".json");
  std::vector<Pair> pairs;
  for_each_line(contents_of(path), [&](std::string_view line, std::int64_t number) {
    const auto refuse = [&](const std::string& what) {
      problems.add({.what = fmt::format("{}:{}: {}", path, number, what),
                    .why = is_json ? "a line is {\"source\": text, \"target\": text}"
                                   : "a line is a source, a tab and its target",
                    .fix = "correct or remove the line"});
    };
    pairs.push_back(is_json ? pair_of_json(line, refuse) : pair_of_columns(line, refuse));
  });
  return pairs;
}

}  // namespace

PrepareResult prepare_pairs(const PreparePairsOptions& options,
                            const std::function<void(const PrepareProgress&)>& progress) {
  ProblemList problems;
  problems.add_all(check_output(options.output, token_file_kind));
  for (const std::string& input : options.inputs) problems.add_all(check_text(input, false));
  if (!options.given) problems.add_all(check_tokenizer_training(options.tokenizer));
  problems.throw_if_any();

  std::vector<Pair> pairs;
  for (const std::string& input : options.inputs)
    for (Pair& pair : pairs_of_file(input, problems)) pairs.push_back(std::move(pair));
  if (pairs.empty()) problems.add({.what = "no text to prepare", .why = "the files have no line with a pair"});
  problems.throw_if_any();

  constexpr std::uint64_t key = 0x7061697273ull;  // "pairs"
  const std::int64_t count = std::ssize(pairs);
  std::vector<const Pair*> shuffled(pairs.size());
  PrepareProgress state;
  for (std::int64_t i = 0; i < count; ++i) {
    const Pair& pair = pairs[static_cast<std::size_t>(i)];
    shuffled[static_cast<std::size_t>(permute(i, count, key, 0))] = &pair;
    state.bytes_total += std::ssize(pair.source) + std::ssize(pair.target);
  }
  const auto make_tokenizer = [&]() -> Tokenizer {
    if (options.given) return *options.given;
    if (options.tokenizer.kind == TokenizerKind::bytes) return Tokenizer::bytes();
    state.stage = "training the tokenizer";
    progress(state);
    std::string sample;
    for (const Pair* pair : shuffled) {
      if (std::ssize(sample) >= options.tokenizer.sample_bytes) break;
      sample.append(pair->source).append("\n").append(pair->target).append("\n");
    }
    return Tokenizer::train(options.tokenizer, sample);
  };
  const Tokenizer tokenizer = make_tokenizer();
  PrepareResult result;
  for (const std::string& stale : remove_stale_temporaries(options.output))
    result.notes.push_back("removed " + stale + ", left by a choir prepare that was killed");

  TokenFileWriter writer(options.output, tokenizer);
  writer.set_pairs();
  state.stage = "tokenizing";
  for (const Pair* pair : shuffled) {
    for (const std::string* side : {&pair->source, &pair->target}) {
      writer.append(tokenizer.encode(*side));
      writer.end_document();
      state.bytes_done += std::ssize(*side);
    }
    state.tokens = writer.num_tokens();
    if (writer.num_documents() % 4096 == 0) progress(state);
  }
  writer.finish();
  result.documents = writer.num_documents();
  result.tokens = writer.num_tokens();
  result.text_bytes = writer.text_bytes();
  result.vocabulary = tokenizer.vocabulary();
  result.tokenizer_digest = tokenizer.digest();
  return result;
}

}  // namespace choir
