// Images and their classes. Each epoch goes through all of them in an order of its own, and changes each in a way of
// its own (data.augment).

#include <fmt/format.h>

#include "framework/core/quantity.h"
#include "framework/core/runtime.h"
#include "framework/data/hdf5_file.h"
#include "framework/data/image.h"
#include "framework/data/image_file.h"
#include "framework/train/items.h"
#include "framework/train/snapshot.h"

namespace choir {
namespace {

class ImageDataset final : public ItemDataset {
 public:
  explicit ImageDataset(const Config& config)
      : ItemDataset(config, "image"), key_(random_key(config.train.seed, "augment")), file_(config.data.path) {}

  std::vector<Problem> check_model() const override { return check_fits(file_, config_.model); }
  bool is_that_of(const CheckpointReader& reader) const override {
    const auto digest = reader.state().find("pixels_digest");
    return digest == reader.state().end() || digest->second == file_.digest();
  }
  std::vector<Problem> check_weights(const CheckpointReader&) const override { return {}; }

  ReadSample training(std::int64_t first) const override {
    return [this, first](std::int64_t index, const Sample& sample) {
      const std::vector<float> pixels = read_image(items_.of_sample(first + index), sample);
      std::vector<float> changed(pixels.size());
      augment(config_.data.augment, config_.model.image, key_, first + index, pixels, changed);
      to_patches(config_.model, changed, sample.patches);
      return std::int64_t{0};
    };
  }

  void add_to(State& state) const override {
    state["pixels_digest"] = file_.digest();
    state["class_names"] = text_of_lines(file_.class_names());
  }

  std::string describe() const override {
    return fmt::format("{}: {} of {}, {}", file_.path(), quantity(items_.count, "image"),
                       quantity(std::ssize(file_.class_names()), "class"), items_.describe());
  }

 private:
  /// Writes the class of an image, and returns its pixels.
  std::vector<float> read_image(std::int64_t image, const Sample& sample) const {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(file_.image_bytes()));
    file_.read(image, pixels);
    sample.targets[0] = file_.label(image);
    return {pixels.begin(), pixels.end()};
  }

  std::int64_t num_items() const override { return file_.num_images(); }
  std::int64_t read(std::int64_t image, const Sample& sample) const override {
    to_patches(config_.model, read_image(image, sample), sample.patches);
    return 0;
  }

  std::uint64_t key_;
  ImageFile file_;
};

}  // namespace

std::unique_ptr<Dataset> open_images(const Config& config) { return std::make_unique<ImageDataset>(config); }

}  // namespace choir
