#include "framework/data/prepare_lines.h"

#include "framework/data/file_seal.h"
#include "framework/data/sampler.h"

namespace choir {

void check_lines(const PrepareLinesOptions& options) {
  ProblemList problems;
  problems.add_all(check_output(options.output, token_file_kind));
  for (const std::string& input : options.inputs) problems.add_all(check_text(input, false));
  if (!options.given) problems.add_all(check_tokenizer_training(options.tokenizer));
  problems.throw_if_any();
}

PrepareResult write_lines(const PrepareLinesOptions& options, const std::vector<LineItem>& items, std::uint64_t key,
                          const std::function<void(TokenFileWriter&)>& describe,
                          const std::function<void(const PrepareProgress&)>& progress) {
  const std::int64_t count = std::ssize(items);
  std::vector<const LineItem*> shuffled(items.size());
  PrepareProgress state;
  for (std::int64_t i = 0; i < count; ++i) {
    const LineItem& item = items[static_cast<std::size_t>(i)];
    shuffled[static_cast<std::size_t>(permute(i, count, key, 0))] = &item;
    for (const std::string_view text : item.texts) state.bytes_total += std::ssize(text);
  }
  const auto make_tokenizer = [&]() -> Tokenizer {
    if (options.given) return *options.given;
    if (options.tokenizer.kind == TokenizerKind::bytes) return Tokenizer::bytes();
    state.stage = "training the tokenizer";
    progress(state);
    std::string sample;
    for (const LineItem* item : shuffled) {
      if (std::ssize(sample) >= options.tokenizer.sample_bytes) break;
      for (const std::string_view text : item->texts) sample.append(text).push_back('\n');
    }
    return Tokenizer::train(options.tokenizer, sample);
  };
  const Tokenizer tokenizer = make_tokenizer();
  PrepareResult result;
  for (const std::string& stale : remove_stale_temporaries(options.output))
    result.notes.push_back("removed " + stale + ", left by a choir prepare that was killed");

  TokenFileWriter writer(options.output, tokenizer);
  describe(writer);
  state.stage = "tokenizing";
  for (const LineItem* item : shuffled) {
    for (const std::string_view text : item->texts) {
      writer.append(tokenizer.encode(text));
      if (item->label < 0)
        writer.end_document();
      else
        writer.end_document(item->label);
      state.bytes_done += std::ssize(text);
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
