#include "framework/core/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <numeric>
#include <utility>

namespace choir {

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

static std::int64_t product(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

Tensor::Tensor(Allocator& allocator, Shape shape, DType type, MemoryKind kind)
    : memory_(std::make_shared<TensorMemory>(allocator, product(shape) * size_of(type), kind)),
      shape_(std::move(shape)),
      row_stride_(shape_.back()),
      dtype_(type) {}

Tensor::Tensor(std::shared_ptr<TensorMemory> memory)
    : memory_(std::move(memory)), shape_({memory_->bytes}), row_stride_(memory_->bytes), dtype_(DType::u8) {}

std::int64_t Tensor::rows() const {
  return std::accumulate(shape_.begin(), shape_.end() - 1, std::int64_t{1}, std::multiplies<>());
}

Tensor Tensor::reshape(Shape shape) const {
  assert(contiguous() && product(shape) == count());
  Tensor result = *this;
  result.shape_ = std::move(shape);
  result.row_stride_ = result.shape_.back();
  return result;
}

Tensor Tensor::slice_rows(std::int64_t begin, std::int64_t end) const {
  assert(0 <= begin && begin <= end && end <= rows());
  Tensor result = *this;
  result.shape_ = {end - begin, width()};
  result.offset_ += begin * row_stride_ * size_of(dtype_);
  return result;
}

Tensor Tensor::slice_columns(std::int64_t begin, std::int64_t end) const {
  assert(0 <= begin && begin <= end && end <= width());
  Tensor result = *this;
  result.shape_.back() = end - begin;
  result.offset_ += begin * size_of(dtype_);
  return result;
}

const Tensor& Tensor::relabel(MemoryKind kind) const {
  if (memory_->block.kind == kind) return *this;
  memory_->allocator->relabel(memory_->block, kind);
  if (kind == MemoryKind::saved && memory_->allocator->kept) memory_->allocator->kept->push_back(memory_);
  return *this;
}

void Tensor::exchange_memory(const Tensor& other) const {
  assert(memory_->bytes == other.memory_->bytes);
  std::swap(memory_->allocator, other.memory_->allocator);
  std::swap(memory_->block, other.memory_->block);
}

}  // namespace choir
