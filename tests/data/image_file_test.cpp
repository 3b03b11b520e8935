// The image file: what was written is read, and damage is named.
#include "framework/data/image_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "framework/data/prepare_images.h"
#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

/// An IDX file: two zero bytes, 8, the number of dimensions, their sizes, the elements.
std::string idx(const std::vector<int>& extents, const std::string& elements) {
  std::string bytes{0, 0, 8, static_cast<char>(extents.size())};
  for (const int extent : extents)
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(extent >> shift & 255);
  return bytes + elements;
}

class ImageFiles : public ::testing::Test {
 protected:
  ImageFiles() {
    std::string pixels, labels;
    for (int i = 0; i < 10; ++i) {
      pixels += std::string(6, static_cast<char>(100 + i));
      labels += static_cast<char>(i % 3);
    }
    std::ofstream(folder_ / "images", std::ios::binary) << idx({10, 2, 3}, pixels);
    std::ofstream(folder_ / "labels", std::ios::binary) << idx({10}, labels);
  }
  PrepareImagesResult prepare(std::vector<std::string> inputs) {
    return prepare_images(
        {.inputs = std::move(inputs), .output = path_, .image = {.height = 2, .width = 3}, .classes = 3},
        [](const PrepareProgress&) {});
  }
  template <class Action>
  static std::string error_of(Action&& action) {
    try {
      action();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }
  TemporaryFolder folder_;
  std::string path_ = folder_ / "images.h5", images_ = folder_ / "images", labels_ = folder_ / "labels";
};

TEST_F(ImageFiles, HaveEachImageOnceWithItsClass) {
  const PrepareImagesResult result = prepare({labels_, images_});
  EXPECT_EQ(result.images, 10);
  EXPECT_EQ(result.class_names, (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(result.images_of_class, (std::vector<std::int64_t>{4, 3, 3}));
  const ImageFile file(path_);
  ASSERT_EQ(file.num_images(), 10);
  std::vector<int> found;
  for (std::int64_t i = 0; i < 10; ++i) {
    std::vector<std::uint8_t> pixels(6);
    file.read(i, pixels);
    EXPECT_EQ(pixels, std::vector<std::uint8_t>(6, pixels[0]));
    EXPECT_EQ(file.label(i), (pixels[0] - 100) % 3);
    found.push_back(pixels[0] - 100);
  }
  EXPECT_FALSE(std::is_sorted(found.begin(), found.end())) << "they are in an order drawn at random";
  std::sort(found.begin(), found.end());
  for (int i = 0; i < 10; ++i) EXPECT_EQ(found[static_cast<std::size_t>(i)], i);
}

TEST_F(ImageFiles, ThatAreDamagedAreRefused) {
  prepare({images_, labels_});
  std::ifstream in(path_, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto open = [&] { ImageFile file(path_); };
  const auto write = [&](const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; };
  write(whole.substr(0, whole.size() - 1));
  EXPECT_NE(error_of(open).find("truncated"), std::string::npos) << error_of(open);
  for (const std::size_t at : {std::size_t{30}, std::size_t{700}, whole.size() / 2}) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    write(damaged);
    EXPECT_NE(error_of(open).find("damaged"), std::string::npos) << at << ": " << error_of(open);
  }
  write(whole);
  const ImageFile file(path_);
  std::vector<std::uint8_t> pixels(6);
  file.read(0, pixels);
  write(whole + " ");
  EXPECT_NE(error_of([&] { file.read(0, pixels); }).find("was written to while it was in use"), std::string::npos);
}

TEST_F(ImageFiles, AreNotMadeFromFilesThatDoNotBelongTogether) {
  std::ofstream(folder_ / "nine", std::ios::binary) << idx({9}, std::string(9, 1));
  std::ofstream(folder_ / "short", std::ios::binary) << idx({10, 2, 3}, std::string(59, 1));
  std::ofstream(folder_ / "wrong", std::ios::binary) << idx({10}, std::string("\0\1\2\3\0\1\2\310\0\1", 10));
  const auto said = [&](std::vector<std::string> inputs) { return error_of([&] { prepare(inputs); }); };
  EXPECT_NE(said({images_, folder_ / "nine"}).find("10 images and 9 labels"), std::string::npos);
  EXPECT_NE(said({folder_ / "short", labels_}).find("this IDX file is not whole"), std::string::npos);
  EXPECT_NE(said({images_}).find("come in pairs"), std::string::npos);
  const std::string labels = said({images_, folder_ / "wrong"});
  for (const char* each : {"wrong: label 3 of image 3 is out of range", "wrong: label 200 of image 7 is out of range",
                           "with model.classes = 3 labels are 0 to 2"})
    EXPECT_NE(labels.find(each), std::string::npos) << labels;
  EXPECT_NE(said({images_, labels_, folder_ / "none"}).find("there is no such file"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace choir::tests
