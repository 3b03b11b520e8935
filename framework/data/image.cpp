#include "framework/data/image.h"

#include <fmt/core.h>
#include <png.h>
#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numbers>

#include "framework/core/error.h"
#include "framework/data/file.h"
#include "kernels/philox.h"

namespace choir {
namespace {

constexpr std::uint64_t largest_file = 1u << 28;  // bytes

std::string extension_of(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  std::ranges::transform(extension, extension.begin(), [](unsigned char c) { return std::tolower(c); });
  return extension;
}

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw ConfigError(Problem{.what = path + ": this image cannot be read",
                            .why = why,
                            .fix = "remove it, or save it again as PNG, JPEG or PNM"});
}

/// [height, width, channels] to [channels, height, width].
Image planes_of(std::int64_t channels, std::int64_t height, std::int64_t width,
                const std::vector<std::uint8_t>& interleaved) {
  Image image{channels, height, width, std::vector<std::uint8_t>(interleaved.size())};
  const std::int64_t area = height * width;
  for (std::int64_t i = 0; i < area; ++i)
    for (std::int64_t c = 0; c < channels; ++c)
      image.pixels[static_cast<std::size_t>(c * area + i)] = interleaved[static_cast<std::size_t>(i * channels + c)];
  return image;
}

Image decode_png(const std::string& path, const std::string& bytes, std::int64_t channels) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&png, bytes.data(), bytes.size())) refuse(path, png.message);
  png.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(png));
  const png_color black{};  // behind transparent pixels
  if (!png_image_finish_read(&png, &black, pixels.data(), 0, nullptr)) refuse(path, png.message);
  return planes_of(channels, png.height, png.width, pixels);
}

Image decode_jpeg(const std::string& path, const std::string& bytes, std::int64_t channels) {
  const std::unique_ptr<void, int (*)(tjhandle)> decoder(tjInitDecompress(), tjDestroy);
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  int width = 0, height = 0, subsampling = 0, colours = 0;
  if (tjDecompressHeader3(decoder.get(), data, bytes.size(), &width, &height, &subsampling, &colours) != 0)
    refuse(path, tjGetErrorStr2(decoder.get()));
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) *
                                   static_cast<std::size_t>(channels));
  if (tjDecompress2(decoder.get(), data, bytes.size(), pixels.data(), width, 0, height,
                    channels == 1 ? TJPF_GRAY : TJPF_RGB, TJFLAG_ACCURATEDCT) != 0)
    refuse(path, tjGetErrorStr2(decoder.get()));
  return planes_of(channels, height, width, pixels);
}

/// Portable anymaps (netpbm): P2 and P5 are grey, P3 and P6 coloured; P2 and P3 are text.
class Anymap {
 public:
  Anymap(const std::string& path, const std::string& bytes) : path_(path), bytes_(bytes) {}

  Image decode(std::int64_t channels) {
    const char kind = bytes_.size() > 1 ? bytes_[1] : '\0';
    if (bytes_[0] != 'P' || !std::strchr("2356", kind)) refuse(path_, "it does not begin with P2, P3, P5 or P6");
    const bool text = kind < '5';
    const std::int64_t colours = kind == '2' || kind == '5' ? 1 : 3;
    at_ = 2;
    const std::int64_t width = number(), height = number(), most = number();
    if (width < 1 || height < 1 || most < 1 || most > 255 || width * height > std::int64_t{1} << 28)
      refuse(path_, fmt::format("{} x {} pixels up to {} are not supported", height, width, most));
    if (!text) ++at_;  // one blank before the bytes
    std::vector<std::uint8_t> pixels;
    for (std::int64_t i = 0; i < height * width; ++i) {
      std::array<std::int64_t, 3> values{};
      for (std::int64_t c = 0; c < colours; ++c) values[static_cast<std::size_t>(c)] = text ? number() : byte();
      // Grey of a colour as ITU-R BT.601 has it.
      const std::int64_t grey = (299 * values[0] + 587 * values[1] + 114 * values[2] + 500) / 1000;
      for (std::int64_t c = 0; c < channels; ++c) {
        const std::int64_t value = colours == 1    ? values[0]
                                   : channels == 1 ? grey
                                                   : values[static_cast<std::size_t>(c)];
        pixels.push_back(static_cast<std::uint8_t>(std::min<std::int64_t>(255, (value * 255 + most / 2) / most)));
      }
    }
    return planes_of(channels, height, width, pixels);
  }

 private:
  std::int64_t byte() {
    if (at_ >= bytes_.size()) refuse(path_, "it ends before its last pixel");
    return static_cast<unsigned char>(bytes_[at_++]);
  }
  std::int64_t number() {
    const auto is_digit = [&] { return at_ < bytes_.size() && std::isdigit(static_cast<unsigned char>(bytes_[at_])); };
    while (at_ < bytes_.size() && !is_digit()) {
      if (bytes_[at_] == '#')
        at_ = std::min(bytes_.find('\n', at_), bytes_.size());
      else if (!std::isspace(static_cast<unsigned char>(bytes_[at_])))
        refuse(path_, fmt::format("'{}' is not part of a number", bytes_[at_]));
      else
        ++at_;
    }
    if (!is_digit()) refuse(path_, "it ends before its last pixel");
    std::int64_t value = 0;
    while (is_digit() && value < 1 << 24) value = value * 10 + (bytes_[at_++] - '0');
    return value;
  }

  const std::string &path_, &bytes_;
  std::size_t at_ = 0;
};

}  // namespace

bool has_image_name(const std::string& path) {
  const std::string extension = extension_of(path);
  return std::ranges::any_of(std::array{".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pnm"},
                             [&](const char* known) { return extension == known; });
}

Image decode_image(const std::string& path, std::int64_t channels) {
  const File file = File::open(path);
  const std::uint64_t size = file.size();
  if (size > largest_file) refuse(path, fmt::format("it has {} bytes, more than {}", size, largest_file));
  std::string bytes(size, '\0');
  bytes.resize(file.read(0, bytes));
  if (bytes.empty()) refuse(path, "it is empty");
  if (bytes.starts_with("\x89PNG")) return decode_png(path, bytes, channels);
  if (bytes.starts_with("\xff\xd8")) return decode_jpeg(path, bytes, channels);
  if (bytes[0] == 'P') return Anymap(path, bytes).decode(channels);
  refuse(path, "it begins neither as a PNG, nor as a JPEG, nor as a PNM file");
}

/// Calls body(place in pixels, place in patches) for each value of an image.
template <class Body>
static void for_each_value(const ModelConfig& config, const Body& body) {
  const ImageConfig& i = config.image;
  const std::int64_t patch = i.is_convolved() ? 1 : i.patch;
  std::int64_t place = config.pool == Pool::class_token && !i.is_convolved() ? i.features() : 0;
  for (std::int64_t row = 0; row < i.height; row += patch)
    for (std::int64_t column = 0; column < i.width; column += patch)
      for (std::int64_t c = 0; c < i.channels; ++c)
        for (std::int64_t y = row; y < row + patch; ++y)
          for (std::int64_t x = column; x < column + patch; ++x)
            body(static_cast<std::size_t>((c * i.height + y) * i.width + x), static_cast<std::size_t>(place++));
}

void to_patches(const ModelConfig& config, std::span<const float> pixels, std::span<float> patches) {
  std::ranges::fill(patches, 0.0f);
  for_each_value(config,
                 [&](std::size_t pixel, std::size_t place) { patches[place] = pixels[pixel] * (2.0f / 255) - 1; });
}

std::vector<float> from_patches(const ModelConfig& config, std::span<const float> patches) {
  std::vector<float> pixels(static_cast<std::size_t>(config.image.channels * config.image.height * config.image.width));
  for_each_value(config,
                 [&](std::size_t pixel, std::size_t place) { pixels[pixel] = (patches[place] + 1) * (255.0f / 2); });
  return pixels;
}

void augment(const AugmentConfig& config, const ImageConfig& image, std::uint64_t key, std::int64_t sample,
             std::span<const float> pixels, std::span<float> result) {
  // In [-1, 1).
  const auto draw = [&](std::uint64_t which) {
    return static_cast<double>(
               static_cast<std::int32_t>(kernels::philox_word(key, static_cast<std::uint64_t>(sample), which))) *
           0x1p-31;
  };
  const double angle = config.rotate * draw(0) * std::numbers::pi / 180, scale = 1 + config.scale * draw(1);
  const double down = config.shift * draw(2), right = config.shift * draw(3);
  const double flip = config.mirror && draw(4) < 0 ? -1 : 1;
  const auto height = static_cast<double>(image.height), width = static_cast<double>(image.width);
  // Of each pixel of the result, the place in the image that it shows.
  const double cosine = std::cos(angle) / scale, sine = std::sin(angle) / scale;
  const auto value = [&](std::int64_t c, std::int64_t y, std::int64_t x) {
    y = std::clamp<std::int64_t>(y, 0, image.height - 1);
    x = std::clamp<std::int64_t>(x, 0, image.width - 1);
    return static_cast<double>(pixels[static_cast<std::size_t>((c * image.height + y) * image.width + x)]);
  };
  for (std::int64_t y = 0; y < image.height; ++y)
    for (std::int64_t x = 0; x < image.width; ++x) {
      const double dy = static_cast<double>(y) - (height - 1) / 2 - down;
      const double dx = static_cast<double>(x) - (width - 1) / 2 - right;
      const double from_y = cosine * dy - sine * dx + (height - 1) / 2;
      const double from_x = flip * (sine * dy + cosine * dx) + (width - 1) / 2;
      const double top = std::floor(from_y), left = std::floor(from_x);
      const double below = from_y - top, beside = from_x - left;
      const auto first_y = static_cast<std::int64_t>(top), first_x = static_cast<std::int64_t>(left);
      for (std::int64_t c = 0; c < image.channels; ++c)
        result[static_cast<std::size_t>((c * image.height + y) * image.width + x)] = static_cast<float>(
            (1 - below) * ((1 - beside) * value(c, first_y, first_x) + beside * value(c, first_y, first_x + 1)) +
            below * ((1 - beside) * value(c, first_y + 1, first_x) + beside * value(c, first_y + 1, first_x + 1)));
    }
}

}  // namespace choir
