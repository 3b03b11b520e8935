// Images and their classes. Each epoch goes through all of them in an order of its own, and changes each in a way of
// its own (data.augment).

#include <fmt/format.h>

#include <cmath>

#include "framework/core/quantity.h"
#include "framework/core/runtime.h"
#include "framework/data/hdf5_file.h"
#include "framework/data/image.h"
#include "framework/data/image_file.h"
#include "framework/data/sampler.h"
#include "framework/train/dataset.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

class ImageDataset final : public Dataset {
 public:
  explicit ImageDataset(const Config& config)
      : config_(config), key_(random_key(config.train.seed, "augment")), file_(config.data.path) {}

  std::vector<Problem> check_model() const override { return check_fits(file_, config_.model); }
  bool is_that_of(const CheckpointReader& reader) const override {
    const auto digest = reader.state().find("pixels_digest");
    return digest == reader.state().end() || digest->second == file_.digest();
  }
  std::vector<Problem> check_weights(const CheckpointReader&) const override { return {}; }

  void split(const CheckpointReader* from) override {
    const std::int64_t images = file_.num_images();
    const auto held_out = static_cast<std::int64_t>(std::ceil(config_.data.held_out * static_cast<double>(images)));
    first_held_out_ = images - held_out;
    if (from && is_that_of(*from)) first_held_out_ = position_of(*from).first_held_out.value_or(first_held_out_);
    if (first_held_out_ < 1)
      throw ConfigError(Problem{.what = fmt::format("data.path = {} has no image for training", file_.path()),
                                .why = fmt::format("data.held_out = {} keeps {} of {} for evaluation",
                                                   config_.data.held_out, held_out, quantity(images, "image")),
                                .fix = "prepare more images, or set a smaller data.held_out"});
  }

  ReadSample training(std::int64_t first) const override {
    return [this, first](std::int64_t index, const Sample& sample) {
      const std::int64_t i = first + index, epoch = i / first_held_out_;
      const std::int64_t image = permute(i % first_held_out_, first_held_out_, config_.train.seed, epoch);
      const std::vector<float> pixels = read(image, sample);
      std::vector<float> changed(pixels.size());
      augment(config_.data.augment, config_.model.image, key_, i, pixels, changed);
      to_patches(config_.model, changed, sample.patches);
      return std::int64_t{0};
    };
  }

  HeldOut held_out() const override {
    const std::int64_t all = file_.num_images() - first_held_out_, wanted = config_.train.evaluate_sequences;
    const std::int64_t samples = wanted > 0 ? std::min(wanted, all) : all;
    const auto of = [this, all, samples](std::int64_t index, const Sample& sample) {
      to_patches(config_.model, read(first_held_out_ + index * all / samples, sample), sample.patches);
      return std::int64_t{0};
    };
    return {.all = all, .samples = samples, .read = of};
  }

  std::int64_t first_held_out() const override { return first_held_out_; }

  void add_to(State& state) const override {
    state["pixels_digest"] = file_.digest();
    state["class_names"] = text_of_lines(file_.class_names());
  }

  std::string describe() const override {
    return fmt::format("{}: {} of {}, {} for training, {} held out", file_.path(),
                       quantity(file_.num_images(), "image"), quantity(std::ssize(file_.class_names()), "class"),
                       first_held_out_, file_.num_images() - first_held_out_);
  }

 private:
  /// Writes the class of an image, and returns its pixels.
  std::vector<float> read(std::int64_t image, const Sample& sample) const {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(file_.image_bytes()));
    file_.read(image, pixels);
    sample.targets[0] = file_.label(image);
    return {pixels.begin(), pixels.end()};
  }

  Config config_;
  std::uint64_t key_;
  ImageFile file_;
  std::int64_t first_held_out_ = 0;
};

}  // namespace

std::unique_ptr<Dataset> open_images(const Config& config) { return std::make_unique<ImageDataset>(config); }

}  // namespace choir
