#include "framework/nn/convolution_stem.h"

#include <cmath>
#include <string>

#include "framework/ops/activation.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/embedding.h"
#include "framework/ops/linear.h"

namespace choir {
namespace {

constexpr std::int64_t side = 3, square = side * side;
constexpr ops::Activation activation = ops::Activation::gelu;
constexpr std::int32_t none = -1;  // a row of zeros

struct Size {
  std::int64_t height, width;
  std::int64_t pixels() const { return height * width; }
};
/// Before convolution `layer`.
Size size_before(const ConvolutionShape& shape, std::size_t layer) {
  return {shape.height >> layer, shape.width >> layer};
}

/// For each pixel after a convolution, the nine before it that it reads: those around (2 y, 2 x).
std::vector<std::int32_t> pixels_read(std::int64_t images, const Size& before) {
  std::vector<std::int32_t> read;
  for (std::int64_t row = 0; row < images * before.height / 2; ++row) {
    const std::int64_t image = row / (before.height / 2), middle = row % (before.height / 2) * 2;
    for (std::int64_t x = 0; x < before.width; x += 2)
      for (std::int64_t n = 0; n < square; ++n) {
        const std::int64_t from_y = middle - 1 + n / side, from_x = x - 1 + n % side;
        const bool inside = from_y >= 0 && from_y < before.height && from_x >= 0 && from_x < before.width;
        const std::int64_t pixel = (image * before.height + from_y) * before.width + from_x;
        read.push_back(inside ? static_cast<std::int32_t>(pixel) : none);
      }
  }
  return read;
}

/// For each pixel before it, its places in pixels_read(): at most four, since two in each direction read it.
constexpr std::int64_t most_readers = 4;
std::vector<std::int32_t> places_read(std::int64_t images, const Size& before) {
  std::vector<std::int32_t> places(static_cast<std::size_t>(images * before.pixels() * most_readers), none);
  std::vector<std::int64_t> count(static_cast<std::size_t>(images * before.pixels()));
  const std::vector<std::int32_t> read = pixels_read(images, before);
  for (std::size_t place = 0; place < read.size(); ++place) {
    if (read[place] == none) continue;
    const auto pixel = static_cast<std::size_t>(read[place]);
    places[pixel * most_readers + static_cast<std::size_t>(count[pixel]++)] = static_cast<std::int32_t>(place);
  }
  return places;
}

/// For each row held, its square in a map of `squares` pixels of each sequence.
std::vector<std::int32_t> squares_of_rows(const Rows& rows, const kernels::Grid& grid) {
  std::vector<std::int32_t> squares;
  for (std::int64_t row = 0; row < rows.count(); ++row) {
    const auto [sequence, position] = rows.map().place(row);
    const std::int64_t of_image = position - grid.first;
    squares.push_back(of_image < 0 ? none : static_cast<std::int32_t>(sequence * grid.rows * grid.columns + of_image));
  }
  return squares;
}

std::vector<std::int32_t> rows_of_squares(const Rows& rows, const kernels::Grid& grid) {
  std::vector<std::int32_t> of_squares(static_cast<std::size_t>(rows.sequences * grid.rows * grid.columns), none);
  const std::vector<std::int32_t> squares = squares_of_rows(rows, grid);
  for (std::size_t row = 0; row < squares.size(); ++row)
    if (squares[row] != none) of_squares[static_cast<std::size_t>(squares[row])] = static_cast<std::int32_t>(row);
  return of_squares;
}

/// The rows of x with these numbers.
Tensor gather(Runtime& runtime, const std::vector<std::int32_t>& rows, const Tensor& x) {
  return ops::embedding(runtime, ops::to_device(runtime, rows, DType::i32), x, 0);
}

}  // namespace

double ConvolutionShape::products() const {
  double sum = 0;
  for (std::size_t layer = 0; layer < outputs.size(); ++layer) {
    const std::int64_t inputs = layer == 0 ? channels : outputs[layer - 1];
    sum += static_cast<double>(size_before(*this, layer + 1).pixels() * square * inputs * outputs[layer]);
  }
  return sum;
}

ConvolutionStem::ConvolutionStem(const ConvolutionShape& shape, const VocabularyTable& table, const kernels::Grid& grid,
                                 const LearnedPositions& positions, double dropout, const TensorShare& share,
                                 ParameterStore& store)
    : shape_(shape), grid_(grid), places_("embedding", positions, table.width, table.deviation, dropout, share, store) {
  std::int64_t inputs = shape.channels;
  for (std::size_t n = 0; n < shape.outputs.size(); ++n) {
    const std::string name = "embedding.convolution." + std::to_string(n);
    const std::int64_t channels = shape.outputs[n];
    // As large as keeps the size of what passes (He et al. 2015, arXiv 1502.01852).
    const auto deviation = static_cast<float>(std::sqrt(2.0 / static_cast<double>(square * inputs)));
    Layer layer{channels, vocabulary_slice(channels, share),
                vocabulary_table({name + ".weight", channels, square * inputs, deviation}, share, store), nullptr};
    if (shape.bias) {
      layer.bias = store.add_weight(layer.held.rows, 1, true);  // as of ColumnLinear
      store.add({.name = name + ".bias",
                 .shape = {channels},
                 .held = {layer.held.begin, layer.held.end, 0, 1},
                 .owned_end = layer.held.count(),
                 .initial = {0, 0},
                 .decays = false,
                 .weight = layer.bias});
    }
    layers_.push_back(layer);
    inputs = channels;
  }
  table_ = vocabulary_table(table, share, store);
}

Tensor ConvolutionStem::Layer::bias_of(const Tensor Weight::*part) const {
  return bias ? (bias->*part).reshape({held.rows}) : Tensor{};
}

/// Channels held [pixels, held rows] -> those of all ranks [pixels, channels]. The others' are zeros, so the sum rounds
/// nothing.
Tensor ConvolutionStem::all_channels(const Layer& layer, const Tensor& held, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor all = runtime.empty({held.rows(), layer.channels}, held.dtype());
  ops::fill(runtime, all, 0.0f);
  if (layer.held.count() > 0)
    ops::copy(runtime, held.slice_columns(0, layer.held.count()), all.slice_columns(layer.held.begin, layer.held.end));
  context.mesh.tensor->all_reduce(all, Reduce::sum, runtime.device.compute(), "stem");
  return all;
}

Tensor ConvolutionStem::forward(const Tensor& pixels, Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const std::int64_t images = context.rows.sequences;
  Tensor map = pixels;
  for (std::size_t n = 0; n < layers_.size(); ++n) {
    const Layer& layer = layers_[n];
    const Size before = size_before(shape_, n);
    Saved::Layer& kept = saved.layers.emplace_back();
    kept.columns = keep(gather(runtime, pixels_read(images, before), map)
                            .reshape({images * before.pixels() / 4, square * map.width()}));
    const Tensor held = ops::linear_activation(runtime, "stem", activation, kept.columns, layer.weight->value,
                                               layer.bias_of(&Weight::value), kept.before);
    keep(kept.before);
    map = n + 1 < layers_.size() ? all_channels(layer, held, context) : held;
  }
  saved.squares = keep(gather(runtime, squares_of_rows(context.rows, grid_), map));
  const Tensor partial = ops::linear_input_gradient(runtime, "embedding", saved.squares, table_->value);
  return places_.forward(leave(partial, context, "embedding"), context);
}

Tensor ConvolutionStem::of_columns(std::size_t n, const Tensor& dcolumns, Context& context) const {
  Runtime& runtime = context.runtime;
  const Layer& inputs = layers_[n - 1];
  const std::int64_t images = context.rows.sequences, channels = inputs.channels;
  const Size before = size_before(shape_, n);
  const Tensor terms =
      gather(runtime, places_read(images, before), dcolumns.reshape({images * before.pixels() / 4 * square, channels}))
          .reshape({images * before.pixels(), most_readers * channels});
  const Tensor sum = runtime.empty({terms.rows(), channels}, accumulate_type(terms.dtype()));
  ops::fill(runtime, sum, 0.0f);
  for (std::int64_t reader = 0; reader < most_readers; ++reader)
    ops::accumulate(runtime, terms.slice_columns(reader * channels, (reader + 1) * channels), sum);
  context.mesh.tensor->all_reduce(sum, Reduce::sum, runtime.device.compute(), "stem");
  const Tensor held = runtime.empty({terms.rows(), inputs.held.rows}, terms.dtype());
  ops::fill(runtime, held, 0.0f);
  if (inputs.held.count() > 0)
    ops::narrow(runtime, sum.slice_columns(inputs.held.begin, inputs.held.end),
                held.slice_columns(0, inputs.held.count()));
  return held;
}

void ConvolutionStem::backward(const Tensor& dx, const Saved& saved, Context& context) const {
  Runtime& runtime = context.runtime;
  const Tensor dy = leave_backward(places_.backward(dx, context), context, "embedding");
  ops::linear_weight_gradient(runtime, "embedding", saved.squares, dy, table_->gradient);
  const Tensor dsquares = ops::linear(runtime, "embedding", dy, table_->value, {}, dy.dtype());
  Tensor dmap = gather(runtime, rows_of_squares(context.rows, grid_), dsquares);
  for (std::size_t n = layers_.size(); n-- > 0;) {
    const Layer& layer = layers_[n];
    const Tensor dbefore = ops::activation_backward(runtime, activation, dmap, saved.layers[n].before);
    ops::linear_weight_gradient(runtime, "stem", dbefore, saved.layers[n].columns, layer.weight->gradient,
                                layer.bias_of(&Weight::gradient));
    if (n > 0) dmap = of_columns(n, ops::linear_input_gradient(runtime, "stem", dbefore, layer.weight->value), context);
  }
}

}  // namespace choir
