#include "framework/core/parameter.h"

#include <algorithm>
#include <cassert>

#include "kernels/elementwise.h"

namespace choir {

void ParameterStore::begin_group(Replicas replicas) { groups_.push_back({.replicas = replicas}); }

Weight* ParameterStore::add_weight(std::int64_t rows, std::int64_t width, bool matrix) {
  assert(!groups_.empty());
  weights_.push_back({.rows = rows, .width = width, .matrix = matrix, .group = groups() - 1});
  return &weights_.back();
}

void ParameterStore::add(Parameter parameter) { parameters_.push_back(std::move(parameter)); }

Parameter* ParameterStore::find(std::string_view name) {
  const auto found =
      std::find_if(parameters_.begin(), parameters_.end(), [&](const Parameter& p) { return p.name == name; });
  return found == parameters_.end() ? nullptr : &*found;
}

void ParameterStore::lay_out(std::int64_t alignment) {
  const auto align = [](std::int64_t at, std::int64_t unit) { return (at + unit - 1) / unit * unit; };
  const auto place = [&](int group, bool matrix) {
    const std::int64_t begin = size_;
    for (Weight& weight : weights_) {
      if (weight.group != group || weight.matrix != matrix) continue;
      weight.offset = size_;
      size_ = align(size_ + weight.rows * weight.width, 16);  // every buffer starts on a cache line
    }
    size_ = align(size_, alignment);
    return FlatRange{begin, size_};
  };
  size_ = 0;
  for (int group = 0; group < groups(); ++group) {
    const FlatRange matrices = place(group, true), vectors = place(group, false);
    Group& here = groups_[static_cast<std::size_t>(group)];
    here.matrices = matrices;
    here.vectors = vectors;
  }
}

std::int64_t ParameterStore::owned_count() const {
  std::int64_t count = 0;
  for (const Parameter& p : parameters_) count += (p.owned_end - p.owned_begin) * p.held.columns();
  return count;
}

std::int64_t ParameterStore::global_count() const {
  std::int64_t count = 0;
  for (const Parameter& p : parameters_) count += p.global_count();
  return count;
}

void start_values(Runtime& runtime, const Parameter& p, std::int64_t begin, std::int64_t end, float* to) {
  const std::int64_t columns = p.held.columns(), global_width = p.shape.size() > 1 ? p.shape[1] : 1;
  const std::uint64_t key = random_key(runtime.seed, p.name);
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t row = at / columns, column = at % columns;
    // A run of elements that are neighbours in the global tensor as well.
    const std::int64_t count = columns == global_width ? end - at : std::min(end - at, columns - column);
    kernels::random_normal(runtime.device.cpu(), to + (at - begin),
                           (p.held.row_begin + row) * global_width + p.held.column_begin + column, count, key, 0,
                           p.initial.mean, p.initial.deviation);
    at += count;
  }
}

}  // namespace choir
