// Parameters: named tensors of the model, and the slice of each that this rank holds.
//
// A layer asks the store for local buffers [rows, width] (q, k and v in one, so that they are one product) and says
// which rows of a buffer are which part of which named tensor. The store gives all buffers a place in one flat order:
// group by group (one per block) in the order of the forward pass, and in each group the matrices before the vectors,
// since the two have values of different types in bf16 runs. A range of the flat order is a message, what one rank
// updates, or a parameter. The memory is that of Shards (framework/parallel/shards.h).
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "framework/core/runtime.h"
#include "framework/core/tensor.h"

namespace choir {

/// Rows [row_begin, row_end) and columns [column_begin, column_end) of a global tensor; a 1-D tensor [n] is [n, 1].
struct Region {
  std::int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 1;
  std::int64_t rows() const { return row_end - row_begin; }
  std::int64_t columns() const { return column_end - column_begin; }
  std::int64_t count() const { return rows() * columns(); }
  bool operator==(const Region&) const = default;
};

/// Elements [begin, end) of the flat order.
struct FlatRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
  bool operator==(const FlatRange&) const = default;
};

/// A local buffer that products and norms read. Shards gives it its memory.
struct Weight {
  std::int64_t rows = 0, width = 0;
  /// Matrices, embeddings, and the biases that a product adds have a bf16 value in bf16 runs; other vectors are f32.
  bool matrix = true;
  int group = 0;            ///< of the store
  Tensor value;             ///< [rows, width], what forward reads; empty while the group is not acquired (ZeRO stage 3)
  Tensor gradient;          ///< [rows, width] f32 (f64 in tests); backward adds to it, or overwrites a new one
  std::int64_t offset = 0;  ///< of its first element in the flat order
  bool overwritten = false;  ///< by the first product that adds to the gradient, which nobody zeroes before it
  bool is_new = false;       ///< of such a one: the gradient holds nothing yet
};

/// Start values: mean + deviation * normal, keyed by (seed, name, global index).
struct Initial {
  float mean = 0, deviation = 0;
};

/// Over which ranks of the tensor axis the local gradient is a partial sum.
enum class TensorSum : std::uint8_t {
  none,      ///< complete here: split, or computed alike on every rank
  all,       ///< over all ranks of the axis: whole tensors whose inputs were split by rows (sequence parallelism)
  replicas,  ///< over the ranks that hold a copy of the same rows: replicated key/value heads
};

/// Which ranks hold the same weights of a group, so that its gradients are summed over them.
enum class Replicas : std::uint8_t {
  gradient,  ///< all ranks that have other rows of the batch
  expert,    ///< those of them that hold the same experts
};

struct Parameter {
  std::string name;              ///< "blocks.3.attention.q.weight", unchanged by any layout
  Shape shape;                   ///< global
  Region held;                   ///< the part here
  std::int64_t owned_begin = 0;  ///< rows [owned_begin, owned_end) of the held part are counted by this rank, in
  std::int64_t owned_end = 0;    ///< norms, checkpoints and parameter counts: each element by exactly one tensor rank
  TensorSum tensor_sum = TensorSum::none;
  Initial initial;
  bool decays = true;  ///< gets weight decay
  /// Given: a step moves it by so much against the sign of its gradient, which is not part of the gradient norm.
  std::optional<float> sign_step{};
  Weight* weight = nullptr;
  std::int64_t first_row = 0;  ///< of the held part in the weight's buffer

  std::int64_t offset() const { return weight->offset + first_row * weight->width; }  ///< in the flat order
  Tensor value() const { return weight->value.slice_rows(first_row, first_row + held.rows()); }
  Tensor gradient() const { return weight->gradient.slice_rows(first_row, first_row + held.rows()); }
  std::int64_t global_count() const { return shape[0] * (shape.size() > 1 ? shape[1] : 1); }
};

class ParameterStore {
 public:
  /// Opens the next group; buffers added from now on belong to it. Backward finishes groups in reverse order.
  void begin_group(Replicas replicas = Replicas::gradient);
  /// A local buffer. The address stays valid; its place comes with lay_out(), its memory with Shards.
  Weight* add_weight(std::int64_t rows, std::int64_t width, bool matrix);
  /// `parameter.weight` has been added before; rows not covered by any parameter are padding and stay zero.
  void add(Parameter parameter);

  /// Gives every buffer its place. In every group the matrices, and the vectors, begin and end at multiples of
  /// `alignment` elements.
  void lay_out(std::int64_t alignment);

  const std::deque<Parameter>& parameters() const { return parameters_; }
  std::deque<Weight>& weights() { return weights_; }
  /// Null if no parameter has this name.
  Parameter* find(std::string_view name);
  std::int64_t size() const { return size_; }  ///< elements of the flat order, padding included
  std::int64_t owned_count() const;            ///< parameters counted by this rank
  std::int64_t global_count() const;           ///< parameters of the whole model
  int groups() const { return static_cast<int>(groups_.size()); }
  FlatRange matrices(int group) const { return groups_[static_cast<std::size_t>(group)].matrices; }
  FlatRange vectors(int group) const { return groups_[static_cast<std::size_t>(group)].vectors; }
  Replicas replicas(int group) const { return groups_[static_cast<std::size_t>(group)].replicas; }
  std::int64_t group_begin(int group) const { return matrices(group).begin; }
  std::int64_t group_end(int group) const { return vectors(group).end; }

 private:
  struct Group {
    FlatRange matrices, vectors;
    Replicas replicas = Replicas::gradient;
  };
  std::deque<Weight> weights_;
  std::deque<Parameter> parameters_;
  std::vector<Group> groups_;
  std::int64_t size_ = 0;
};

/// Writes the start values of elements [begin, end) of the held part of `parameter`, in row-major order, to host
/// memory. They depend on the seed, the name and the place in the global tensor only.
void start_values(Runtime&, const Parameter& parameter, std::int64_t begin, std::int64_t end, float* to);

}  // namespace choir
