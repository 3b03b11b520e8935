#include "framework/data/prepare_pairs.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "framework/data/lines.h"

namespace choir {
namespace {

/// What a line has: the texts in the order in which they are written, and what people call them.
struct Layout {
  const char *noun, *columns, *object;
  std::vector<const char*> keys;     ///< of JSON
  std::vector<const char*> missing;  ///< said of an empty column
};

const Layout& layout_for(std::int64_t sources) {
  static const Layout pair = {.noun = "pair",
                              .columns = "a line is a source, a tab and its target",
                              .object = "a line is {\"source\": text, \"target\": text}",
                              .keys = {"source", "target"},
                              .missing = {"no source before its tab", "no target behind its tab"}};
  static const Layout triple = {.noun = "triple",
                                .columns = "a line is a source, a tab, a second source, a tab and their target",
                                .object = "a line is {\"source\": text, \"second_source\": text, \"target\": text}",
                                .keys = {"source", "second_source", "target"},
                                .missing = {"no source before its first tab", "no second source between its tabs",
                                            "no target behind its second tab"}};
  return sources == 2 ? triple : pair;
}

using Texts = std::vector<std::string>;

bool is_empty(std::string_view text) { return text.find_first_not_of(" \t") == std::string_view::npos; }

/// The texts of a line; what is wrong with it goes to `refuse`.
template <class Refuse>
Texts texts_of_columns(const Layout& layout, std::string_view line, const Refuse& refuse) {
  Texts texts;
  for (std::size_t begin = 0, end = 0; end != std::string_view::npos; begin = end + 1) {
    end = line.find('\t', begin);
    texts.emplace_back(line.substr(begin, end == std::string_view::npos ? end : end - begin));
  }
  if (texts.size() == 1) return refuse("this line has no tab"), Texts{};
  if (texts.size() != layout.keys.size()) return refuse(fmt::format("this line has {} columns", texts.size())), Texts{};
  for (std::size_t i = 0; i < texts.size(); ++i)
    if (is_empty(texts[i])) refuse(fmt::format("this line has {}", layout.missing[i]));
  return texts;
}

template <class Refuse>
Texts texts_of_json(const Layout& layout, std::string_view line, const Refuse& refuse) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return refuse("this line is not a JSON object"), Texts{};
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
  Texts texts;
  for (const char* key : layout.keys) texts.push_back(text_of(key));
  return texts;
}

/// The texts of each line of a file. What is wrong with its lines goes to `problems`.
std::vector<Texts> lines_of_file(const Layout& layout, const std::string& path, ProblemList& problems) {
  const bool is_json = path.ends_with(".jsonl") || path.ends_with(".json");
  std::vector<Texts> lines;
  for_each_line(contents_of(path), [&](std::string_view line, std::int64_t number) {
    const auto refuse = [&](const std::string& what) {
      problems.add({.what = fmt::format("{}:{}: {}", path, number, what),
                    .why = is_json ? layout.object : layout.columns,
                    .fix = "correct or remove the line"});
    };
    lines.push_back(is_json ? texts_of_json(layout, line, refuse) : texts_of_columns(layout, line, refuse));
  });
  return lines;
}

}  // namespace

PrepareResult prepare_pairs(const PrepareLinesOptions& options, std::int64_t sources,
                            const std::function<void(const PrepareProgress&)>& progress) {
  check_lines(options);
  const Layout& layout = layout_for(sources);
  ProblemList problems;
  std::vector<Texts> lines;
  for (const std::string& input : options.inputs)
    for (Texts& texts : lines_of_file(layout, input, problems)) lines.push_back(std::move(texts));
  if (lines.empty())
    problems.add({.what = "no text to prepare", .why = fmt::format("the files have no line with a {}", layout.noun)});
  problems.throw_if_any();

  std::vector<LineItem> items;
  for (const Texts& texts : lines) items.push_back({.texts = {texts.begin(), texts.end()}});
  constexpr std::uint64_t key = 0x7061697273ull;  // "pairs"
  const auto describe = [&](TokenFileWriter& writer) { sources == 2 ? writer.set_triples() : writer.set_pairs(); };
  return write_lines(options, items, key, describe, progress);
}

}  // namespace choir
