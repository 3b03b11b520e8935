// Pictures in memory: decoding PNG, JPEG and PNM files, and what training does to them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "framework/data/data_config.h"
#include "framework/model/model_config.h"

namespace choir {

/// [channels, height, width], 0 to 255.
struct Image {
  std::int64_t channels = 1, height = 0, width = 0;
  std::vector<std::uint8_t> pixels;
};

/// True if the name ends as one of a picture that decode_image() reads: png, jpg, jpeg, pgm, ppm, pnm.
bool has_image_name(const std::string& path);

/// The picture with `channels` values a pixel: grey for 1, red, green and blue for 3. Throws ConfigError, with the file
/// and the library's reason, if it cannot be decoded.
Image decode_image(const std::string& path, std::int64_t channels);

/// Pixels [channels, height, width] of an image to patches [positions, features], features in the order [channels,
/// patch, patch]: 0 becomes -1 and 255 becomes 1. The class token's patch, if there is one, is zeros. For a stem of
/// convolutions to [pixels, channels].
void to_patches(const ModelConfig&, std::span<const float> pixels, std::span<float> patches);
/// The way back.
std::vector<float> from_patches(const ModelConfig&, std::span<const float> patches);

/// Moves, turns, scales and mirrors an image by what `sample` draws with `key`, with bilinear interpolation; beyond its
/// border the border goes on. `pixels` and `result` are [channels, height, width].
void augment(const AugmentConfig&, const ImageConfig&, std::uint64_t key, std::int64_t sample,
             std::span<const float> pixels, std::span<float> result);

}  // namespace choir
