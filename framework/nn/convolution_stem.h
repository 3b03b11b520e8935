// The stem of a model of images: convolutions of 3 x 3 that each halve height and width, until a square of the image is
// one pixel. Xiao et al. 2021, arXiv 2106.14881, without norms between them.
//
//   map_0 = pixels [B H W, C],   map_n = gelu(convolution_n(map_n-1) + bias_n),   borders are zeros
//   x = dropout(sum over channels c of map[c] * table[c] + position[t])           of the square t
//
// A convolution is a gather of nine pixels, side by side, and one product. Every rank of the context axis convolves
// whole images and keeps the squares whose positions it holds. The channels that each product computes, and those that
// the last one reads, are split over the tensor axis; between two convolutions every rank gets all of them.
#pragma once

#include <vector>

#include "framework/nn/embedding.h"

namespace choir {

struct ConvolutionShape {
  std::int64_t height = 0, width = 0;   ///< of an image, multiples of 2^outputs.size()
  std::int64_t channels = 0;            ///< of its pixels
  std::vector<std::int64_t> outputs{};  ///< channels after each convolution
  bool bias = true;

  /// Multiply-adds of the convolutions of one image.
  double products() const;
};

class ConvolutionStem {
 public:
  static constexpr bool backward_reads_values = true;
  struct Saved {
    struct Layer {
      Tensor columns;  // [pixels after it, 9 C]: what its product read
      Tensor before;   // [pixels after it, channels held]: before the activation
    };
    std::vector<Layer> layers;
    Tensor squares;  // [N, channels held]: what the last product read
  };

  /// `table` has a row for each channel after the last convolution.
  ConvolutionStem(const ConvolutionShape&, const VocabularyTable& table, const kernels::Grid& grid,
                  const LearnedPositions&, double dropout, const TensorShare&, ParameterStore&);

  /// pixels [B H W, C] of whole images -> x [rows held, D]
  Tensor forward(const Tensor& pixels, Saved&, Context&) const;
  void backward(const Tensor& dx, const Saved&, Context&) const;

 private:
  struct Layer {
    std::int64_t channels;  ///< after it
    VocabularySlice held;   ///< of these
    Weight *weight, *bias;  ///< [held rows, 9 C]: by pixel of the square, then by channel; null: none

    Tensor bias_of(const Tensor Weight::*part) const;
  };
  Tensor all_channels(const Layer&, const Tensor& held, Context&) const;
  /// The gradient of map_n-1's channels held, from that of layer n's columns.
  Tensor of_columns(std::size_t layer, const Tensor& dcolumns, Context&) const;

  ConvolutionShape shape_;
  kernels::Grid grid_;
  std::vector<Layer> layers_;
  Weight* table_;
  Places places_;
};

}  // namespace choir
