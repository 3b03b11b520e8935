// Parameters: named tensors of the model, and the slice of each that this rank holds.
//
// A layer asks the store for local buffers [rows, width] (q, k and v in one, so that they are one product) and says
// which rows of a buffer are which part of which named tensor. The store lays all buffers out in one flat array of
// masters, one of gradients and, in bf16 runs, one of rounded values, in the order of the forward pass, cut into groups
// (one per block): a range of the flat array is a data-parallel bucket, an optimizer shard, or a parameter.
#pragma once

#include <cstdint>
#include <deque>
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

/// A local buffer that products and norms read. Filled in by ParameterStore::allocate.
struct Weight {
  std::int64_t rows = 0, width = 0;
  bool matrix = true;       ///< matrices and embeddings have a bf16 value in bf16 runs; 1-D weights are always f32
  Tensor value;             ///< [rows, width], what forward reads
  Tensor master;            ///< [rows, width] f32 (f64 in tests); the same memory as value if the types are equal
  Tensor gradient;          ///< [rows, width] f32 (f64 in tests); backward adds to it
  std::int64_t offset = 0;  ///< of its first element in the flat arrays
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

struct Parameter {
  std::string name;              ///< "blocks.3.attention.q.weight", unchanged by any layout
  Shape shape;                   ///< global
  Region held;                   ///< the part here
  std::int64_t owned_begin = 0;  ///< rows [owned_begin, owned_end) of the held part are counted by this rank, in
  std::int64_t owned_end = 0;    ///< norms, checkpoints and parameter counts: each element by exactly one tensor rank
  TensorSum tensor_sum = TensorSum::none;
  Initial initial;
  bool decays = true;  ///< gets weight decay
  Weight* weight = nullptr;
  std::int64_t first_row = 0;  ///< of the held part in the weight's buffer

  std::int64_t offset() const { return weight->offset + first_row * weight->width; }  ///< in the flat arrays
  Tensor master() const { return weight->master.slice_rows(first_row, first_row + held.rows()); }
  Tensor gradient() const { return weight->gradient.slice_rows(first_row, first_row + held.rows()); }
  std::int64_t global_count() const { return shape[0] * (shape.size() > 1 ? shape[1] : 1); }
};

class ParameterStore {
 public:
  /// Opens the next group; buffers added from now on belong to it. Backward finishes groups in reverse order.
  void begin_group();
  /// A local buffer. The address stays valid; the tensors appear with allocate().
  Weight* add_weight(std::int64_t rows, std::int64_t width, bool matrix);
  /// `parameter.weight` has been added before; rows not covered by any parameter are padding and stay zero.
  void add(Parameter parameter);

  /// Allocates the flat arrays, gradients included unless `inference`; every group begins and ends at a multiple of
  /// `alignment` elements.
  void allocate(Runtime& runtime, std::int64_t alignment, bool inference = false);
  /// Writes the start values (on the host) and the rounded values.
  void initialize(Runtime& runtime);
  /// Rounds all masters into the bf16 values. Does nothing if master and value are the same memory.
  void round_values(Runtime& runtime);

  const std::deque<Parameter>& parameters() const { return parameters_; }
  /// Null if no parameter has this name.
  Parameter* find(std::string_view name);
  std::int64_t size() const { return size_; }  ///< elements of the flat arrays, padding included
  std::int64_t owned_count() const;            ///< parameters counted by this rank
  std::int64_t global_count() const;           ///< parameters of the whole model
  int groups() const { return static_cast<int>(group_begin_.size()); }
  std::int64_t group_begin(int group) const { return group_begin_[static_cast<std::size_t>(group)]; }
  int group_of(const Parameter&) const;
  std::int64_t group_end(int group) const { return group + 1 < groups() ? group_begin(group + 1) : size_; }

  Tensor master, gradient, value;  ///< the flat arrays [size]; value is empty if it would equal master

 private:
  std::deque<Weight> weights_;
  std::vector<int> weight_group_;
  std::deque<Parameter> parameters_;
  std::vector<std::int64_t> group_begin_;
  std::int64_t size_ = 0;
};

}  // namespace choir
