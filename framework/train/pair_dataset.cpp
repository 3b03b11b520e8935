// Pairs of texts, or triples of two sources and a target, for encoder-decoders. The encoder reads the source and the
// end-of-document token; the decoder reads that token, then the target, and its targets are the tokens of the target
// and the end of it. What is longer is cut.

#include <fmt/format.h>

#include <algorithm>

#include "framework/core/quantity.h"
#include "framework/data/token_file.h"
#include "framework/model/families.h"
#include "framework/train/items.h"
#include "framework/train/snapshot.h"
#include "framework/train/trainer.h"

namespace choir {
namespace {

class PairDataset final : public ItemDataset {
 public:
  explicit PairDataset(const Config& config)
      : ItemDataset(config, samples_noun(config.model)),
        file_(config.data.path),
        sources_(source_texts(config.model)) {}

  std::vector<Problem> check_model() const override {
    std::vector<Problem> problems = check_fits(file_, config_.model, config_.data.tokenizer);
    if (file_.documents_of_item() != documents_of_item())
      problems.push_back({.what = fmt::format("data.path = {}: its texts are not {}s", file_.path(), noun()),
                          .why = file_.documents_of_item() == 1
                                     ? "it was prepared for another family of models"
                                     : fmt::format("each of its lines had {} texts, and this model reads {}",
                                                   file_.documents_of_item(), documents_of_item()),
                          .fix = fmt::format("choir prepare lines of a source, a tab{} and a target with the "
                                             "configuration of this model",
                                             sources_ == 2 ? ", a second source, a tab" : "")});
    return problems;
  }
  bool is_that_of(const CheckpointReader& reader) const override {
    const auto digest = reader.state().find("tokens_digest");
    return digest == reader.state().end() || digest->second == file_.tokens_digest();
  }
  std::vector<Problem> check_weights(const CheckpointReader& reader) const override {
    return check_tokenizer(file_, tokenizer_of(reader).digest(), reader.path());
  }

  void add_to(State& state) const override { add_tokens(file_, state); }

  std::string describe() const override {
    std::int64_t cut = 0;
    for (std::int64_t item = 0; item < num_items(); ++item) {
      bool is_long = length(target_of(item)) > config_.model.context;
      for (std::int64_t n = 0; n < sources_; ++n)
        is_long = is_long || length(source_of(item, n)) > config_.model.source_length();
      cut += is_long ? 1 : 0;
    }
    return fmt::format("{}: {}, {}; {} longer than a source of {} or a target of {} tokens and cut", file_.path(),
                       quantity(items_.count, noun()), items_.describe(),
                       cut == 1 ? "1 is" : fmt::format("{} are", cut), config_.model.source_length(),
                       config_.model.context);
  }

 private:
  const char* noun() const { return samples_noun(config_.model); }
  std::int64_t documents_of_item() const { return sources_ + 1; }
  std::int64_t source_of(std::int64_t item, std::int64_t n) const { return documents_of_item() * item + n; }
  std::int64_t target_of(std::int64_t item) const { return documents_of_item() * item + sources_; }
  /// Tokens of a document, with that of its end.
  std::int64_t length(std::int64_t document) const {
    const auto offsets = file_.document_offsets();
    const auto at = static_cast<std::size_t>(document);
    return offsets[at + 1] - offsets[at];
  }
  /// The first tokens of a document; behind its end `padding`. Returns how many there are.
  std::size_t read_tokens(std::int64_t document, std::span<std::int32_t> tokens, std::int32_t padding) const {
    const std::size_t count = std::min(static_cast<std::size_t>(length(document)), tokens.size());
    file_.read(file_.document_offsets()[static_cast<std::size_t>(document)], tokens.first(count));
    std::ranges::fill(tokens.subspan(count), padding);
    return count;
  }
  std::int64_t num_items() const override { return file_.num_documents() / documents_of_item(); }
  std::int64_t read(std::int64_t item, const Sample& sample) const override {
    for (std::int64_t n = 0; n < sources_; ++n)
      read_tokens(source_of(item, n), source_text(config_.model, sample.source, n), -1);
    const std::size_t count = read_tokens(target_of(item), sample.targets, -1);
    sample.inputs[0] = file_.tokenizer().end_of_document();
    std::copy_n(sample.targets.begin(), sample.inputs.size() - 1, sample.inputs.begin() + 1);
    std::int64_t bytes = 0;
    for (const std::int32_t token : sample.targets.first(count)) bytes += file_.tokenizer().byte_length(token);
    return bytes;
  }

  TokenFile file_;
  std::int64_t sources_;  // texts that the encoder reads of an item
};

}  // namespace

std::unique_ptr<Dataset> open_pairs(const Config& config) { return std::make_unique<PairDataset>(config); }

}  // namespace choir
