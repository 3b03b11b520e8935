#include "framework/core/parameter.h"

#include <algorithm>
#include <cassert>

#include "kernels/elementwise.h"

namespace choir {

void ParameterStore::begin_group() { group_begin_.push_back(0); }

Weight* ParameterStore::add_weight(std::int64_t rows, std::int64_t width, bool matrix) {
  assert(!group_begin_.empty());
  weights_.push_back({.rows = rows, .width = width, .matrix = matrix});
  weight_group_.push_back(groups() - 1);
  return &weights_.back();
}

void ParameterStore::add(Parameter parameter) { parameters_.push_back(std::move(parameter)); }

Parameter* ParameterStore::find(std::string_view name) {
  const auto found =
      std::find_if(parameters_.begin(), parameters_.end(), [&](const Parameter& p) { return p.name == name; });
  return found == parameters_.end() ? nullptr : &*found;
}

int ParameterStore::group_of(const Parameter& parameter) const {
  const auto found =
      std::find_if(weights_.begin(), weights_.end(), [&](const Weight& w) { return &w == parameter.weight; });
  return weight_group_[static_cast<std::size_t>(found - weights_.begin())];
}

void ParameterStore::allocate(Runtime& runtime, std::int64_t alignment, bool inference) {
  const auto align = [](std::int64_t at, std::int64_t unit) { return (at + unit - 1) / unit * unit; };
  int group = -1;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    while (group < weight_group_[i]) {
      size_ = align(size_, alignment);
      group_begin_[static_cast<std::size_t>(++group)] = size_;
    }
    weights_[i].offset = size_;
    size_ = align(size_ + weights_[i].rows * weights_[i].width, 16);  // every buffer starts on a cache line
  }
  size_ = align(size_, alignment);

  const DType type = accumulate_type(runtime.compute_type);
  master = runtime.empty({size_}, type, MemoryKind::parameters);
  if (!inference) gradient = runtime.empty({size_}, type, MemoryKind::gradients);
  if (runtime.compute_type != type) value = runtime.empty({size_}, runtime.compute_type, MemoryKind::parameters);
  for (Weight& weight : weights_) {
    const auto view = [&](const Tensor& flat) {
      return flat.slice_columns(weight.offset, weight.offset + weight.rows * weight.width)
          .reshape({weight.rows, weight.width});
    };
    weight.master = view(master);
    if (!inference) weight.gradient = view(gradient);
    weight.value = weight.matrix && value ? view(value) : weight.master;
  }
}

void ParameterStore::initialize(Runtime& runtime) {
  if (runtime.device.counts_only()) return;
  Device& device = runtime.device;
  device.compute().enqueue([this, &device] {  // the padding
    const auto fill = [&]<class A>(A* to) {
      device.with_kernels<float>([&](auto kernels_of) { kernels::fill(kernels_of, to, size_, 0.0f); });
    };
    master.dtype() == DType::f64 ? fill(master.data<double>()) : fill(master.data<float>());
  });
  // Some rows at a time on the host, so that all devices start from the same bits.
  std::vector<float> rows;
  for (const Parameter& p : parameters_) {
    const std::int64_t columns = p.held.columns(), global_width = p.shape.size() > 1 ? p.shape[1] : 1;
    const std::int64_t rows_at_once = std::max<std::int64_t>(1, (1 << 20) / columns);
    const std::uint64_t key = random_key(runtime.seed, p.name);
    for (std::int64_t begin = 0; begin < p.held.rows(); begin += rows_at_once) {
      const std::int64_t end = std::min(p.held.rows(), begin + rows_at_once);
      rows.resize(static_cast<std::size_t>((end - begin) * columns));
      const auto start_values = [&](float* to, std::int64_t row, std::int64_t count) {
        kernels::random_normal(device.cpu(), to, (p.held.row_begin + row) * global_width + p.held.column_begin, count,
                               key, 0, p.initial.mean, p.initial.deviation);
      };
      if (columns == global_width)
        start_values(rows.data(), begin, (end - begin) * columns);
      else
        for (std::int64_t r = begin; r < end; ++r) start_values(rows.data() + (r - begin) * columns, r, columns);
      const Tensor to = p.master().slice_rows(begin, end);
      if (to.dtype() == DType::f64)
        device.upload(std::vector<double>(rows.begin(), rows.end()).data(), to.raw(), to.bytes());
      else
        device.upload(rows.data(), to.raw(), to.bytes());
    }
  }
  round_values(runtime);
}

void ParameterStore::round_values(Runtime& runtime) {
  if (!value || runtime.device.counts_only()) return;
  runtime.device.compute().enqueue([this, &device = runtime.device] {
    device.with_kernels<bf16>(
        [this](auto kernels_of) { kernels::cast(kernels_of, master.data<float>(), value.data<bf16>(), size_); });
  });
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

}  // namespace choir
