// A tensor: a reference-counted handle to elements of one type, the last dim contiguous.
//
// All dims but the last are "rows", `row_stride` elements apart; so the query part of a fused [N, q + k + v] buffer is
// a tensor of its own. Copying a tensor copies the handle. The memory goes back to its allocator with the last handle.
//
// Letters used everywhere: B batch, T tokens in a sequence, N = B x T rows, D model width, H query heads, K key/value
// heads, E width of a head, F feed-forward width, V vocabulary, L layers.
#pragma once

#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "framework/core/allocator.h"
#include "framework/core/dtype.h"

namespace choir {

using Shape = std::vector<std::int64_t>;

/// "[2, 3]"
std::string to_string(const Shape& shape);

/// What the handles of a tensor have in common.
struct TensorMemory {
  Allocator* allocator;
  Allocator::Block block;
  std::int64_t bytes;  ///< asked for
  TensorMemory(Allocator& of, std::int64_t asked, MemoryKind kind)
      : allocator(&of), block(of.allocate(asked, kind)), bytes(asked) {}
  ~TensorMemory() { allocator->release(block); }
  TensorMemory(const TensorMemory&) = delete;
  TensorMemory& operator=(const TensorMemory&) = delete;
};

class Tensor {
 public:
  Tensor() = default;
  /// All of it, as u8 [bytes].
  explicit Tensor(std::shared_ptr<TensorMemory> memory);
  /// Fresh, uninitialised memory from `allocator`, which outlives the tensor.
  Tensor(Allocator& allocator, Shape shape, DType type, MemoryKind kind);

  explicit operator bool() const { return memory_ != nullptr; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return shape_[static_cast<std::size_t>(i)]; }
  std::int64_t width() const { return shape_.back(); }  ///< the last dim
  std::int64_t rows() const;                            ///< the product of all other dims
  std::int64_t count() const { return rows() * width(); }
  std::int64_t bytes() const { return count() * size_of(dtype_); }
  std::int64_t row_stride() const { return row_stride_; }  ///< in elements
  bool contiguous() const { return row_stride_ == width() || rows() <= 1; }
  DType dtype() const { return dtype_; }

  /// On device `count` the address must not be read.
  void* raw() const { return memory_ ? static_cast<char*>(memory_->block.address) + offset_ : nullptr; }
  /// T is the type of the elements, or `char` for the bytes of any tensor.
  template <class T>
  T* data() const {
    if constexpr (!std::is_same_v<T, char>) {
      [[maybe_unused]] constexpr DType type = dtype_of<T>;
      assert(type == dtype_);
    }
    return static_cast<T*>(raw());
  }

  Tensor reshape(Shape shape) const;                                 ///< contiguous only; the same elements
  Tensor slice_rows(std::int64_t begin, std::int64_t end) const;     ///< [end - begin, width] of the flattened rows
  Tensor slice_columns(std::int64_t begin, std::int64_t end) const;  ///< [..., end - begin]

  /// Accounts the memory under another line of the plan, e.g. `saved`; returns this handle.
  const Tensor& relabel(MemoryKind kind) const;

  /// From now on every handle to the memory of this tensor is one to that of `other`, of the same size, and the other
  /// way round. Work that has been enqueued with addresses of before keeps them: not for streams of worker threads,
  /// whose work may ask for addresses when it runs.
  void exchange_memory(const Tensor& other) const;

 private:
  std::shared_ptr<TensorMemory> memory_;
  std::int64_t offset_ = 0;  // in bytes
  Shape shape_;
  std::int64_t row_stride_ = 0;
  DType dtype_ = DType::f32;
};

/// For a `Saved` struct: the tensor, accounted as saved until its last handle goes.
inline const Tensor& keep(const Tensor& tensor) { return tensor.relabel(MemoryKind::saved); }

}  // namespace choir
