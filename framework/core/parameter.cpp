#include "framework/core/parameter.h"

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
  const kernels::Cpu cpu = runtime.device.cpu();
  runtime.device.synchronize();  // the host writes what a kernel may still be reading
  const auto fill_all = [&]<class T>(T*) { kernels::fill(cpu, master.data<T>(), size_, 0.0f); };
  master.dtype() == DType::f64 ? fill_all(static_cast<double*>(nullptr)) : fill_all(static_cast<float*>(nullptr));
  std::vector<float> row;
  for (const Parameter& p : parameters_) {
    const std::int64_t global_width = p.shape.size() > 1 ? p.shape[1] : 1;
    const std::uint64_t key = random_key(runtime.seed, p.name);
    const auto start_values = [&](float* to, std::int64_t first, std::int64_t count) {
      kernels::random_normal(cpu, to, first, count, key, 0, p.initial.mean, p.initial.deviation);
    };
    const Tensor to = p.master();
    if (to.dtype() == DType::f32 && p.held.columns() == global_width) {
      start_values(to.data<float>(), p.held.row_begin * global_width, p.held.count());
      continue;
    }
    row.resize(static_cast<std::size_t>(p.held.columns()));
    for (std::int64_t r = 0; r < p.held.rows(); ++r) {
      start_values(row.data(), (p.held.row_begin + r) * global_width + p.held.column_begin, p.held.columns());
      for (std::int64_t c = 0; c < p.held.columns(); ++c) {
        const auto at = static_cast<std::size_t>(c);
        if (to.dtype() == DType::f64)
          to.data<double>()[r * p.held.columns() + c] = row[at];
        else
          to.data<float>()[r * p.held.columns() + c] = row[at];
      }
    }
  }
  round_values(runtime);
}

void ParameterStore::round_values(Runtime& runtime) {
  if (!value || runtime.device.counts_only()) return;
  runtime.device.compute().enqueue(
      [this, cpu = runtime.device.cpu()] { kernels::cast(cpu, master.data<float>(), value.data<bf16>(), size_); });
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
