#include "framework/model/families.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "framework/model/parts.h"
#include "framework/model/stage.h"
#include "kernels/band.h"

namespace choir {

std::vector<PartSpec> make_parts(const ModelConfig& config, bool recompute) {
  switch (config.family) {
    case ModelFamily::decoder:
      return decoder_parts(config, recompute);
    case ModelFamily::encoder:
      return encoder_parts(config, recompute);
    case ModelFamily::classifier:
      return classifier_parts(config, recompute);
    case ModelFamily::vision:
      return vision_parts(config, recompute);
  }
  std::abort();  // all values are above
}

std::int64_t num_parts(const ModelConfig& config) {
  switch (config.family) {
    case ModelFamily::decoder:
    case ModelFamily::encoder:
    case ModelFamily::classifier:
    case ModelFamily::vision:
      return std::min(config.layers, std::numeric_limits<std::int64_t>::max() - 2) + 2;  // embedding and head
  }
  std::abort();  // all values are above
}

kernels::Band attention_band(const ModelConfig& config) {
  switch (config.family) {
    case ModelFamily::decoder:
      return decoder_band(config);
    case ModelFamily::encoder:
    case ModelFamily::classifier:
      return encoder_band(config);
    case ModelFamily::vision:
      return vision_band(config);
  }
  std::abort();  // all values are above
}

ParameterStore all_parameters(const ModelConfig& config) {
  ParameterStore store;
  const Stage whole(make_parts(config, /*recompute=*/false), {}, store);
  return store;
}

double model_flops(const ModelConfig& c, std::int64_t sequences) {
  const auto d = [](std::int64_t x) { return static_cast<double>(x); };
  const double gates = c.feed_forward.kind == FeedForwardKind::swiglu ? 3 : 2;
  const double feed_forward = gates * d(c.width) * d(c.feed_forward_width());
  const double block = d(c.width) * d(c.head_width()) * (2 * d(c.attention.heads) + 2 * d(c.kv_heads())) + feed_forward;
  const double with_experts = d(c.experts.chosen + c.experts.shared - 1) * feed_forward + d(c.experts.count * c.width);
  // A lookup of tokens is no product.
  double stem = 0;
  if (c.family == ModelFamily::vision && c.image.is_convolved()) {
    const ConvolutionShape convolutions = convolution_shape(c);
    stem = convolutions.products() + d(c.context * convolutions.outputs.back() * c.width);
  } else if (c.family == ModelFamily::vision) {
    stem = d(c.context * c.image.features() * c.width);
  }
  const double parameters = d(c.layers) * block + d(c.blocks_with_experts()) * with_experts;
  const double head = d(c.outputs()) * d(c.width) * d(c.targets_of_sequence());
  const double pairs = d(kernels::VisiblePairs<std::int64_t>(attention_band(c), c.context, c.context).count());
  const double attention = 3 * 4 * pairs * d(c.attention.heads) * d(c.head_width()) * d(c.layers);
  return d(sequences) * (6 * (parameters * d(c.context) + stem + head) + attention);
}

}  // namespace choir
