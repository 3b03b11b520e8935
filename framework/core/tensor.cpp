#include "framework/core/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <numeric>

namespace choir {

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

static std::int64_t product(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

Tensor::Tensor(Allocator& allocator, Shape shape, DType type, MemoryKind kind)
    : storage_(std::make_shared<Storage>(allocator, allocator.allocate(product(shape) * size_of(type), kind))),
      address_(storage_->block.address),
      shape_(std::move(shape)),
      row_stride_(shape_.back()),
      dtype_(type) {}

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
  result.address_ = static_cast<char*>(address_) + begin * row_stride_ * size_of(dtype_);
  return result;
}

Tensor Tensor::slice_columns(std::int64_t begin, std::int64_t end) const {
  assert(0 <= begin && begin <= end && end <= width());
  Tensor result = *this;
  result.shape_.back() = end - begin;
  result.address_ = static_cast<char*>(address_) + begin * size_of(dtype_);
  return result;
}

const Tensor& Tensor::relabel(MemoryKind kind) const {
  if (storage_->block.kind != kind) storage_->allocator->relabel(storage_->block, kind);
  return *this;
}

}  // namespace choir
