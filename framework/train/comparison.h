// How far two correct runs may differ if they round at different places, and the comparison of their tensors.
//
// Error model. A gradient is the end of a chain of k rounded results, each the sum of up to n products. A rounding is
// off by at most u of the value, and roundings are independent: a sum of n terms is off by u sqrt(n) of its size, and k
// sums in a row by u sqrt(k n). Both runs have errors (sqrt 2), and a factor of 2 covers steps that enlarge an error,
// such as the mean that a norm subtracts. Relative to the root mean square of a tensor, its elements are off by
//
//   2 sqrt(2 k n) u
//
// in the root mean square. k: through a block there are 14 results forward: norm, qkv, rotary, softmax, mix, out, its
// sum over ranks, residual, norm, up, activation, down, its sum over ranks, residual. Backward meets each twice: in the
// gradient that flows through it, and in the saved value that it is multiplied by. Experts add four: router, weights,
// weighted sum, shared experts; norms of q and k add two, routed heads three: router, gate, gated output; linear
// attention five: decay or rate, state, sums of both parts and both sides, norm; the delta rule's values are never
// rounded to bf16. Around the blocks there are embedding, position, final norm and head, forward and back. An encoder's
// blocks are links of the chain too; cross-attention adds seven: norm, q or kv, softmax, mix, out, its sum over ranks,
// residual; and the encoder's end a norm. n: the longest of the widths and of the rows of the global batch; but bf16
// products are summed in f32 and only their results are rounded, so that n is 1 there.
//
// With two layers in bf16 this is 0.108: a tensor of zeros is off by 1, one whose heads changed places by sqrt(2).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "framework/core/dtype.h"
#include "framework/core/parameter.h"
#include "framework/model/model_config.h"

namespace choir {

/// Whole tensors by global name, row-major.
using NamedTensors = std::map<std::string, std::vector<double>>;

/// The largest relative error of one rounding.
constexpr double unit_roundoff(DType type) {
  if (type == DType::f64) return 0x1p-53;
  return type == DType::bf16 ? 0x1p-8 : 0x1p-24;
}

/// The bound above, for gradients of `rows` rows of the global batch computed in `type`.
inline double rounding_bound(const ModelConfig& c, std::int64_t rows, DType type) {
  const std::int64_t of_block = c.attention.norm ? 16 : 14;
  const std::int64_t of_source = c.has_source() ? of_block * c.encoder_blocks() + of_block / 2 * c.layers + 1 : 0;
  const std::int64_t blocks = c.layers + c.encoder_blocks();  // that may have experts
  std::int64_t linear = c.blocks_with_linear_attention();
  for (std::int64_t i = 0; i < c.encoder_blocks(); ++i) linear += c.has_linear_attention(i) ? 1 : 0;
  const auto results = static_cast<double>(3 * (of_block * c.layers + of_source) +
                                           (c.experts.count > 0 ? 3 * 4 * (blocks / c.experts.every) : 0) +
                                           (c.routes_heads() ? 3 * 3 * blocks : 0) + 3 * 5 * linear + 3 * 4);
  const std::int64_t texts = c.attention.sources.read(TokenStream::second_source) ? 2 : 1;
  const std::int64_t rows_of_source = rows / c.context * texts * c.source_length();
  const auto longest = static_cast<double>(std::max(
      {c.width, c.feed_forward_width(), c.attention.heads * c.head_width(), c.outputs(), rows, rows_of_source}));
  return 2 * std::sqrt(2 * results * (type == DType::bf16 ? 1 : longest)) * unit_roundoff(type);
}

/// The bound of gradients computed in bf16 with products of 8 bits.
///
/// A number that is rounded to 8 bits is a step away from that of the other run if it differs by little but falls to
/// the other side of a middle; at worst the two errors are independent. An error is even over a step, at most 2^-4 of
/// the number, and numbers are even over an octave by their logarithm: the root mean square of an error is
///
///   u = 2^-4 / sqrt(3) sqrt(3 / (8 ln 2)) = 0.0266
///
/// of the number. In the chain above, what a product reads is so rounded: four results of a block, three of
/// cross-attention; weights are equal in both runs. As for bf16, n is 1, and the errors are added to those of bf16.
/// With two layers this is 0.38, below the 0.7 by which a sum lacks one of two ranks.
inline double rounding_bound_of_8_bits(const ModelConfig& c, std::int64_t rows) {
  constexpr double u = 0.0266;
  const std::int64_t read = 4 * (c.layers + c.encoder_blocks()) + (c.has_source() ? 3 * c.layers : 0);
  return std::hypot(2 * std::sqrt(2 * static_cast<double>(3 * read)) * u, rounding_bound(c, rows, DType::bf16));
}

/// Of one tensor or number in two runs.
struct Comparison {
  std::string what;       ///< "gradient of blocks.0.attention.q.weight"
  double difference = 0;  ///< root mean square over the elements, relative to that of the tensor
  double tolerance = 0;   ///< relative too
  std::string note{};     ///< what is to be said of it even if it holds
  bool holds() const { return difference <= tolerance; }  // false for NaN
};

inline double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return values.empty() ? 0 : std::sqrt(sum / static_cast<double>(values.size()));
}

/// a - b; NaN if they do not have the same number of elements.
inline std::vector<double> difference_of(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return {std::numeric_limits<double>::quiet_NaN()};
  std::vector<double> difference(a);
  for (std::size_t i = 0; i < b.size(); ++i) difference[i] -= b[i];
  return difference;
}

/// The root mean square that errors of `name` are relative to: its own, with exceptions. A key bias changes all
/// scores of a query by the same amount, except for the rotation between positions. So its gradient is zero or small,
/// and most of the computed value is rounding. It is the sum over rows of the gradient of the keys. The gradient of the
/// key weight sums the same rows times the output of a norm, whose root mean square is 1: its size is the one that the
/// rounding is relative to. So it is for the weights of the norms of q and k: their few elements are sums over rows and
/// heads, which may cancel, of the same gradients times the output of a norm. And so it is for the bias of the norm at
/// an encoder's end, if decoders have only keys from there.
inline double error_scale(const NamedTensors& tensors, const std::string& name) {
  const double own = root_mean_square(tensors.at(name));
  for (const std::string end : {".k.bias", ".q_norm.weight", ".k_norm.weight"})
    if (name.ends_with("attention" + end))
      return std::max(own, root_mean_square(tensors.at(name.substr(0, name.size() - end.size() + 2) + ".weight")));
  if (name == "encoder.final_norm.bias")
    return std::max(own, root_mean_square(tensors.at("encoder.final_norm.weight")));
  return own;
}

/// Compares each tensor of `expected` with that of `actual`. The tolerance is `bound`, and `rounding` of the root mean
/// square of the tensor in `rounded`, if there is one.
inline std::vector<Comparison> compare(const std::string& what, const NamedTensors& expected,
                                       const NamedTensors& actual, double bound, const NamedTensors& rounded = {},
                                       double rounding = 0) {
  std::vector<Comparison> comparisons;
  for (const auto& [name, tensor] : expected) {
    const auto found = actual.find(name), other = rounded.find(name);
    const double scale = error_scale(expected, name);
    const double difference =
        root_mean_square(difference_of(tensor, found == actual.end() ? std::vector<double>{} : found->second));
    const double size = other == rounded.end() ? 0 : root_mean_square(other->second);
    // A tensor of zeros allows no error.
    comparisons.push_back({.what = what + name,
                           .difference = difference == 0 ? 0 : difference / scale,
                           .tolerance = scale > 0 ? bound + rounding * size / scale : 0});
  }
  return comparisons;
}

/// The change of the weights since `before`.
inline NamedTensors updates(const NamedTensors& before, const NamedTensors& after) {
  NamedTensors result;
  for (const auto& [name, tensor] : before) result[name] = difference_of(after.at(name), tensor);
  return result;
}

/// Compares the changes of the weights in three steps from `start`.
///
/// A step of SGD is linear in the gradient. One of AdamW is linear for gradients far below epsilon, and an error grows
/// by at most 2 if epsilon is not smaller than the largest_gradient(). Later gradients come from weights that
/// differ by less than the steps do. f32 weights are rounded once a step.
inline std::vector<Comparison> compare_updates(const std::string& what, const NamedTensors& start,
                                               const NamedTensors& expected, const NamedTensors& actual, double bound) {
  return compare(what, updates(start, expected), updates(start, actual), 2 * bound, expected,
                 3 * unit_roundoff(DType::f32));
}

/// The largest element of the gradients that SGD and AdamW step by: not of those with a Parameter::sign_step.
inline double largest_gradient(const NamedTensors& gradients, const ParameterStore& model) {
  double result = 0;
  for (const Parameter& p : model.parameters())
    if (!p.sign_step)
      for (const double value : gradients.at(p.name)) result = std::max(result, std::abs(value));
  return result;
}

}  // namespace choir
