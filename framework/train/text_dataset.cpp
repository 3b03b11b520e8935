// Text, for decoders and encoders.

#include <fmt/format.h>

#include <optional>

#include "framework/core/quantity.h"
#include "framework/data/token_file.h"
#include "framework/train/snapshot.h"
#include "framework/train/text_samples.h"

namespace choir {
namespace {

class TextDataset final : public Dataset {
 public:
  explicit TextDataset(const Config& config) : config_(config), file_(config.data.path) {}

  std::vector<Problem> check_model() const override { return check_fits(file_, config_.model, config_.data.tokenizer); }

  bool is_that_of(const CheckpointReader& reader) const override {
    const auto digest = reader.state().find("tokens_digest");
    return digest == reader.state().end() || digest->second == file_.tokens_digest();
  }
  std::vector<Problem> check_weights(const CheckpointReader& reader) const override {
    return check_tokenizer(file_, tokenizer_of(reader).digest(), reader.path());
  }

  void split(const CheckpointReader* from) override {
    SamplerOptions options{
        .sequence_length = config_.model.context, .seed = config_.train.seed, .held_out = config_.data.held_out};
    if (from && is_that_of(*from))
      options.first_held_out_token =
          position_of(*from).first_held_out.value_or(held_out_split_by_documents(file_, config_.data.held_out));
    sampler_.emplace(file_, options);
  }

  ReadSample training(std::int64_t first) const override { return training_samples(config_, *sampler_, first); }
  HeldOut held_out() const override { return held_out_samples(config_, *sampler_); }
  std::int64_t first_held_out() const override { return sampler_->first_held_out_token(); }

  void add_to(State& state) const override { add_tokens(file_, state); }

  std::string describe() const override {
    return fmt::format("{}: {}, {} for training ({} of {}), {}", file_.path(), quantity(file_.num_tokens(), "token"),
                       sampler_->first_held_out_token(), quantity(sampler_->num_train_windows(), "window"),
                       config_.model.context, quantity(sampler_->num_evaluation_sequences(), "held-out sequence"));
  }

 private:
  Config config_;
  TokenFile file_;
  std::optional<Sampler> sampler_;
};

}  // namespace

std::unique_ptr<Dataset> open_text(const Config& config) { return std::make_unique<TextDataset>(config); }

}  // namespace choir
