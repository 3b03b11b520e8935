#include "framework/data/prepare_labelled.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "framework/data/classes.h"
#include "framework/data/lines.h"

namespace choir {
namespace {

struct Line {
  std::string_view label, text;
  const std::string* path;
  std::int64_t number;
};

/// The lines of a file. What is wrong with them goes to `problems`.
std::vector<Line> lines_of_file(const std::string& path, std::string_view contents, ProblemList& problems) {
  std::vector<Line> lines;
  for_each_line(contents, [&](std::string_view line, std::int64_t number) {
    const std::size_t tab = line.find('\t');
    const auto refuse = [&](const char* what) {
      problems.add({.what = fmt::format("{}:{}: {}", path, number, what),
                    .why = "a line is a class, a tab and a text",
                    .fix = "correct or remove the line"});
    };
    if (tab == std::string_view::npos)
      refuse("this line has no tab");
    else if (tab == 0)
      refuse("this line has no class before its tab");
    else if (tab + 1 == line.size())
      refuse("this line has no text behind its tab");
    else
      lines.push_back({line.substr(0, tab), line.substr(tab + 1), &path, number});
  });
  return lines;
}

}  // namespace

PrepareLabelledResult prepare_labelled(const PrepareLinesOptions& options, std::int64_t most_classes,
                                       const std::function<void(const PrepareProgress&)>& progress) {
  check_lines(options);
  ProblemList problems;
  std::vector<std::string> contents;
  for (const std::string& input : options.inputs) contents.push_back(contents_of(input));
  std::vector<Line> lines;
  for (std::size_t i = 0; i < contents.size(); ++i)
    for (const Line& line : lines_of_file(options.inputs[i], contents[i], problems)) lines.push_back(line);
  std::map<std::string_view, ClassOfInput> classes;
  for (const Line& line : lines) {
    ClassOfInput& of = classes[line.label];
    if (of.items++ == 0) of.first = fmt::format("{}:{}", *line.path, line.number);
  }
  PrepareLabelledResult result;
  std::map<std::string_view, std::int32_t> label_of;
  std::vector<ClassOfInput> by_name;
  for (auto& [name, of] : classes) {
    label_of[name] = static_cast<std::int32_t>(result.class_names.size());
    result.class_names.emplace_back(name);
    result.documents_of_class.push_back(of.items);
    by_name.push_back({std::string(name), of.items, of.first});
  }
  problems.add_all(check_classes(std::move(by_name), most_classes, "the texts"));
  if (lines.empty())
    problems.add({.what = "no text to prepare", .why = "the files have no line with a class and a text"});
  problems.throw_if_any();

  std::vector<LineItem> items;
  for (const Line& line : lines) items.push_back({.texts = {line.text}, .label = label_of[line.label]});
  constexpr std::uint64_t key = 0x7465787473ull;  // "texts"
  result.text = write_lines(
      options, items, key, [&](TokenFileWriter& writer) { writer.set_class_names(result.class_names); }, progress);
  return result;
}

}  // namespace choir
