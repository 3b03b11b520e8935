#include "framework/data/prepare_labelled.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "framework/core/quantity.h"
#include "framework/data/classes.h"
#include "framework/data/file_seal.h"
#include "framework/data/lines.h"
#include "framework/data/sampler.h"
#include "framework/data/token_file_writer.h"

namespace choir {
namespace {

struct Line {
  std::string_view label, text;
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
      lines.push_back({line.substr(0, tab), line.substr(tab + 1)});
  });
  return lines;
}

}  // namespace

PrepareLabelledResult prepare_labelled(const PrepareLabelledOptions& options,
                                       const std::function<void(const PrepareProgress&)>& progress) {
  ProblemList problems;
  problems.add_all(check_output(options.output, token_file_kind));
  for (const std::string& input : options.inputs) problems.add_all(check_text(input, false));
  if (!options.given) problems.add_all(check_tokenizer_training(options.tokenizer));
  problems.throw_if_any();

  std::vector<std::string> contents;
  for (const std::string& input : options.inputs) contents.push_back(contents_of(input));
  std::vector<Line> lines;
  for (std::size_t i = 0; i < contents.size(); ++i)
    for (const Line& line : lines_of_file(options.inputs[i], contents[i], problems)) lines.push_back(line);
  std::map<std::string_view, std::int32_t> label_of;
  for (const Line& line : lines) label_of[line.label] = 0;
  PrepareLabelledResult result;
  for (auto& [name, label] : label_of) {
    label = static_cast<std::int32_t>(result.class_names.size());
    result.class_names.emplace_back(name);
  }
  result.documents_of_class.resize(result.class_names.size());
  problems.add_all(check_classes(std::ssize(result.class_names), options.classes, "the texts"));
  if (lines.empty())
    problems.add({.what = "no text to prepare", .why = "the files have no line with a class and a text"});
  problems.throw_if_any();

  constexpr std::uint64_t key = 0x7465787473ull;  // "texts"
  const std::int64_t count = std::ssize(lines);
  std::vector<Line> shuffled(lines.size());
  PrepareProgress state;
  for (std::int64_t i = 0; i < count; ++i) {
    const Line& line = lines[static_cast<std::size_t>(i)];
    shuffled[static_cast<std::size_t>(permute(i, count, key, 0))] = line;
    state.bytes_total += std::ssize(line.text);
  }
  const auto make_tokenizer = [&]() -> Tokenizer {
    if (options.given) return *options.given;
    if (options.tokenizer.kind == TokenizerKind::bytes) return Tokenizer::bytes();
    state.stage = "training the tokenizer";
    progress(state);
    std::string sample;
    for (const Line& line : shuffled) {
      if (std::ssize(sample) >= options.tokenizer.sample_bytes) break;
      sample.append(line.text).push_back('\n');
    }
    return Tokenizer::train(options.tokenizer, sample);
  };
  const Tokenizer tokenizer = make_tokenizer();
  for (const std::string& stale : remove_stale_temporaries(options.output))
    result.text.notes.push_back("removed " + stale + ", left by a choir prepare that was killed");

  TokenFileWriter writer(options.output, tokenizer);
  writer.set_class_names(result.class_names);
  state.stage = "tokenizing";
  for (const Line& line : shuffled) {
    writer.append(tokenizer.encode(line.text));
    const std::int32_t label = label_of[line.label];
    writer.end_document(label);
    ++result.documents_of_class[static_cast<std::size_t>(label)];
    state.bytes_done += std::ssize(line.text);
    state.tokens = writer.num_tokens();
    if (writer.num_documents() % 4096 == 0) progress(state);
  }
  writer.finish();
  result.text.documents = writer.num_documents();
  result.text.tokens = writer.num_tokens();
  result.text.text_bytes = writer.text_bytes();
  result.text.vocabulary = tokenizer.vocabulary();
  result.text.tokenizer_digest = tokenizer.digest();
  return result;
}

}  // namespace choir
