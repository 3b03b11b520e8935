// Texts and their classes. A sample is one document: its first tokens, filled up with the end-of-document token, which
// is also the class token if there is one. What fills it up is a document of its own, which the text does not see.

#include <fmt/format.h>

#include <algorithm>

#include "framework/core/quantity.h"
#include "framework/data/classes.h"
#include "framework/data/digest.h"
#include "framework/data/hdf5_file.h"
#include "framework/data/token_file.h"
#include "framework/train/items.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

class LabelledDataset final : public ItemDataset {
 public:
  explicit LabelledDataset(const Config& config) : ItemDataset(config, "text"), file_(config.data.path) {
    Digest digest;
    digest.add(file_.labels());
    labels_digest_ = digest.text();
  }

  std::vector<Problem> check_model() const override {
    std::vector<Problem> problems = check_fits(file_, config_.model, config_.data.tokenizer);
    const std::int64_t classes = std::ssize(file_.class_names());
    if (classes == 0)
      problems.push_back({.what = "data.path = " + file_.path() + ": its texts have no classes",
                          .why = "it was prepared for another family of models",
                          .fix = "choir prepare lines of a class, a tab and a text with model.family=classifier"});
    for (const Problem& problem : check_classes(classes, config_.model.classes, "data.path = " + file_.path()))
      problems.push_back(problem);
    return problems;
  }
  bool is_that_of(const CheckpointReader& reader) const override {
    const auto is = [&](const char* key, const std::string& value) {
      const auto found = reader.state().find(key);
      return found == reader.state().end() || found->second == value;
    };
    return is("tokens_digest", file_.tokens_digest()) && is("labels_digest", labels_digest_);
  }
  std::vector<Problem> check_weights(const CheckpointReader& reader) const override {
    return check_tokenizer(file_, tokenizer_of(reader).digest(), reader.path());
  }

  void add_to(State& state) const override {
    add_tokens(file_, state);
    state["labels_digest"] = labels_digest_;
    state["class_names"] = text_of_lines(file_.class_names());
  }

  std::string describe() const override {
    std::int64_t cut = 0;
    for (std::int64_t document = 0; document < file_.num_documents(); ++document)
      cut += length(document) > room() ? 1 : 0;
    return fmt::format("{}: {} of {}, {}; {} longer than {} and cut", file_.path(), quantity(items_.count, "text"),
                       quantity(std::ssize(file_.class_names()), "class"), items_.describe(),
                       cut == 1 ? "1 is" : fmt::format("{} are", cut), quantity(room(), "token"));
  }

 private:
  std::int64_t room() const { return config_.model.context - (config_.model.pool == Pool::class_token ? 1 : 0); }
  /// Tokens of a document, without that of its end.
  std::int64_t length(std::int64_t document) const {
    const auto offsets = file_.document_offsets();
    const auto at = static_cast<std::size_t>(document);
    return offsets[at + 1] - offsets[at] - 1;
  }
  std::int64_t num_items() const override { return file_.num_documents(); }
  std::int64_t read(std::int64_t document, const Sample& sample) const override {
    std::ranges::fill(sample.inputs, file_.tokenizer().end_of_document());
    const auto first = static_cast<std::size_t>(config_.model.context - room());
    const auto count = static_cast<std::size_t>(std::min(length(document), room()));
    file_.read(file_.document_offsets()[static_cast<std::size_t>(document)], sample.inputs.subspan(first, count));
    leave_out_filler(sample.documents, static_cast<std::int64_t>(first + count));
    sample.targets[0] = file_.labels()[static_cast<std::size_t>(document)];
    return 0;
  }

  TokenFile file_;
  std::string labels_digest_;
};

}  // namespace

std::unique_ptr<Dataset> open_labelled_text(const Config& config) { return std::make_unique<LabelledDataset>(config); }

}  // namespace choir
