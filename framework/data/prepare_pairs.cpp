#include "framework/data/prepare_pairs.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "framework/data/lines.h"

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

PrepareResult prepare_pairs(const PrepareLinesOptions& options,
                            const std::function<void(const PrepareProgress&)>& progress) {
  check_lines(options);
  ProblemList problems;
  std::vector<Pair> pairs;
  for (const std::string& input : options.inputs)
    for (Pair& pair : pairs_of_file(input, problems)) pairs.push_back(std::move(pair));
  if (pairs.empty()) problems.add({.what = "no text to prepare", .why = "the files have no line with a pair"});
  problems.throw_if_any();

  std::vector<LineItem> items;
  for (const Pair& pair : pairs) items.push_back({.texts = {pair.source, pair.target}});
  constexpr std::uint64_t key = 0x7061697273ull;  // "pairs"
  return write_lines(
      options, items, key, [](TokenFileWriter& writer) { writer.set_pairs(); }, progress);
}

}  // namespace choir
