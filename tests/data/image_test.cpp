// Pictures: what is decoded is what was drawn, patches are where their pixels are, and augmentation does what it says.
#include "framework/data/image.h"

#include <gtest/gtest.h>
#include <png.h>
#include <turbojpeg.h>

#include <fstream>

#include "tests/data/corpus.h"

namespace choir::tests {
namespace {

using Bytes = std::vector<std::uint8_t>;

/// 5 x 3 pixels of three values.
Bytes drawn() {
  Bytes pixels;
  for (int i = 0; i < 5 * 3 * 3; ++i) pixels.push_back(static_cast<std::uint8_t>(i * 37 % 256));
  return pixels;
}

/// [height, width, channels] as planes.
Bytes planes(const Bytes& interleaved, std::size_t channels) {
  Bytes result;
  for (std::size_t c = 0; c < channels; ++c)
    for (std::size_t i = c; i < interleaved.size(); i += channels) result.push_back(interleaved[i]);
  return result;
}

class Images : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  static std::string error_of(const std::string& path) {
    try {
      decode_image(path, 1);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }
  TemporaryFolder folder_;
};

TEST_F(Images, OfPngAreThePixelsDrawn) {
  const Bytes pixels = drawn();
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = 3;
  png.height = 5;
  png.format = PNG_FORMAT_RGB;
  const std::string path = folder_ / "picture.png";
  ASSERT_TRUE(png_image_write_to_file(&png, path.c_str(), 0, pixels.data(), 0, nullptr));
  const Image image = decode_image(path, 3);
  EXPECT_EQ(image.height, 5);
  EXPECT_EQ(image.width, 3);
  EXPECT_EQ(image.pixels, planes(pixels, 3));
  EXPECT_EQ(decode_image(path, 1).pixels.size(), 15u);
}

TEST_F(Images, OfJpegAreNearThePixelsDrawn) {
  Bytes pixels(16 * 24 * 3);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i / 3 % 24 * 8 + i % 3 * 20);
  const std::unique_ptr<void, int (*)(tjhandle)> encoder(tjInitCompress(), tjDestroy);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  ASSERT_EQ(tjCompress2(encoder.get(), pixels.data(), 24, 0, 16, TJPF_RGB, &bytes, &size, TJSAMP_444, 100, 0), 0);
  const std::string path = write("picture.JPG", std::string(reinterpret_cast<char*>(bytes), size));
  tjFree(bytes);
  const Image image = decode_image(path, 3);
  const Bytes expected = planes(pixels, 3);
  ASSERT_EQ(image.pixels.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(image.pixels[i], expected[i], 4) << i;
}

TEST_F(Images, OfAnymapsInTextAndInBytesAreThePixelsDrawn) {
  const Bytes pixels = drawn();
  std::string text = "P3\n# a comment\n3 5 255\n", bytes = "P6 3 5 255\n";
  for (const std::uint8_t value : pixels) {
    text += std::to_string(value) + ' ';
    bytes += static_cast<char>(value);
  }
  EXPECT_EQ(decode_image(write("a.ppm", text), 3).pixels, planes(pixels, 3));
  EXPECT_EQ(decode_image(write("b.ppm", bytes), 3).pixels, planes(pixels, 3));
  // Up to 4, of which 255 is white; grey as three equal values.
  const std::string grey = write("c.pgm", "P2 2 2 4  0 1 2 4");
  EXPECT_EQ(decode_image(grey, 1).pixels, (Bytes{0, 64, 128, 255}));
  EXPECT_EQ(decode_image(grey, 3).pixels, (Bytes{0, 64, 128, 255, 0, 64, 128, 255, 0, 64, 128, 255}));
}

TEST_F(Images, ThatCannotBeReadAreNamedWithTheReason) {
  const std::pair<const char*, std::string> broken[] = {
      {"it is empty", ""},
      {"it begins neither as", "GIF89a"},
      {"it does not begin with P2, P3, P5 or P6", "P4 8 8"},
      {"it ends before its last pixel", "P2 2 2 9 1 2 3"},
      {"'x' is not part of a number", "P2 2 x"},
      {"70000 x 70000 pixels up to 255 are not supported", "P5 70000 70000 255 "},
      {"this image cannot be read", "\x89PNG\r\n\x1a\n..."},
      {"this image cannot be read", "\xff\xd8\xff..."},
  };
  for (const auto& [why, bytes] : broken) {
    const std::string error = error_of(write("broken.png", bytes));
    EXPECT_NE(error.find(why), std::string::npos) << why << "\n" << error;
    EXPECT_NE(error.find("broken.png"), std::string::npos) << error;
  }
}

TEST(Patches, AreInRowsWithTheirPlanesOneAfterAnother) {
  ModelConfig model;
  model.family = ModelFamily::vision;
  model.image = {.height = 4, .width = 6, .channels = 2, .patch = 2};
  model.context = 6;
  std::vector<float> pixels(48), patches(48);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i);
  to_patches(model, pixels, patches);
  const auto value = [](float pixel) { return pixel * (2.0f / 255) - 1; };
  // The square in the second row and third column: y = 2 and 3, x = 4 and 5.
  const float expected[] = {16, 17, 22, 23, 40, 41, 46, 47};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(patches[5 * 8 + i], value(expected[i])) << i;

  model.pool = Pool::class_token;
  std::vector<float> with_token(56, 7);
  to_patches(model, pixels, with_token);
  EXPECT_EQ(std::vector<float>(with_token.begin(), with_token.begin() + 8), std::vector<float>(8));
  EXPECT_EQ(std::vector<float>(with_token.begin() + 8, with_token.end()), patches);

  model.image.stem = Stem::convolution;  // the values of a pixel side by side, and no class token
  to_patches(model, pixels, patches);
  for (std::size_t i = 0; i < 24; ++i) {
    EXPECT_EQ(patches[2 * i], value(static_cast<float>(i))) << i;
    EXPECT_EQ(patches[2 * i + 1], value(static_cast<float>(i + 24))) << i;
  }
  for (const Stem stem : {Stem::patch, Stem::convolution}) {
    model.image.stem = stem;
    std::vector<float> there(stem == Stem::patch ? 56 : 48);
    to_patches(model, pixels, there);
    const std::vector<float> back = from_patches(model, there);
    for (std::size_t i = 0; i < pixels.size(); ++i) EXPECT_NEAR(back[i], pixels[i], 1e-4) << i;
  }
}

class Augmentation : public ::testing::Test {
 protected:
  Augmentation() {
    for (std::size_t i = 0; i < pixels_.size(); ++i) pixels_[i] = static_cast<float>(i * i % 97);
  }
  std::vector<float> changed(const AugmentConfig& config, std::int64_t sample) const {
    std::vector<float> result(pixels_.size());
    augment(config, image_, 5, sample, pixels_, result);
    return result;
  }
  ImageConfig image_{.height = 5, .width = 7, .channels = 2, .patch = 1};
  std::vector<float> pixels_ = std::vector<float>(70);
};

TEST_F(Augmentation, OfNothingGivesTheImage) { EXPECT_EQ(changed({}, 3), pixels_); }

TEST_F(Augmentation, IsAFunctionOfTheSample) {
  const AugmentConfig all{.shift = 1, .rotate = 20, .scale = 0.2, .mirror = true};
  EXPECT_EQ(changed(all, 3), changed(all, 3));
  EXPECT_NE(changed(all, 3), changed(all, 4));
}

TEST_F(Augmentation, MirrorsAboutHalfOfTheImages) {
  std::vector<float> mirrored(pixels_.size());
  for (std::size_t row = 0; row < 10; ++row)
    for (std::size_t x = 0; x < 7; ++x) mirrored[row * 7 + x] = pixels_[row * 7 + 6 - x];
  int count = 0;
  for (std::int64_t sample = 0; sample < 1000; ++sample) {
    const std::vector<float> result = changed({.mirror = true}, sample);
    ASSERT_TRUE(result == pixels_ || result == mirrored);
    count += result == mirrored ? 1 : 0;
  }
  EXPECT_NEAR(count, 500, 80) << "five standard deviations";
}

// An image whose values are its places shows where each pixel came from.
TEST_F(Augmentation, MovesTurnsAndScalesWithinItsLimits) {
  ImageConfig large{.height = 41, .width = 41, .channels = 2, .patch = 1};
  std::vector<float> places(2 * 41 * 41), result(places.size());
  for (std::size_t y = 0; y < 41; ++y)
    for (std::size_t x = 0; x < 41; ++x) {
      places[y * 41 + x] = static_cast<float>(y);
      places[41 * 41 + y * 41 + x] = static_cast<float>(x);
    }
  // From the middle and from 10 pixels to its right.
  const std::size_t middle = 20 * 41 + 20, right = middle + 10;
  double most_shift = 0, most_angle = 0, most_scale = 0;
  for (std::int64_t sample = 0; sample < 500; ++sample) {
    augment({.shift = 3, .rotate = 30, .scale = 0.25}, large, 9, sample, places, result);
    const double y = result[middle], x = result[41 * 41 + middle];
    const double dy = result[right] - y, dx = result[41 * 41 + right] - x;
    most_angle = std::max(most_angle, std::abs(std::atan2(dy, dx)) * 57.29578);
    const double scale = 10 / std::hypot(dy, dx);
    most_scale = std::max(most_scale, std::abs(scale - 1));
    most_shift = std::max({most_shift, std::abs(y - 20) * scale, std::abs(x - 20) * scale});
  }
  EXPECT_LE(most_angle, 30.001);
  EXPECT_GT(most_angle, 29);
  EXPECT_LE(most_scale, 0.25001);
  EXPECT_GT(most_scale, 0.24);
  EXPECT_LE(most_shift, 3 * 1.4143);  // both axes, turned
  EXPECT_GT(most_shift, 2.8);
}

}  // namespace
}  // namespace choir::tests
