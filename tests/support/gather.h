// Tensors of the whole model, put together from what each rank holds.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/comm/context.h"
#include "framework/model/families.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/shards.h"
#include "framework/train/comparison.h"
#include "tests/support/device.h"

namespace choir::tests {

using Tensors = NamedTensors;

/// The elements of a tensor of f32, f64 or bf16. Waits for everything enqueued.
inline std::vector<double> elements(Device& device, const Tensor& flat) {
  if (flat.dtype() == DType::f64) return host_values<double>(device, flat);
  if (flat.dtype() == DType::bf16) {
    const std::vector<bf16> values = host_values<bf16>(device, flat);
    return {values.begin(), values.end()};
  }
  const std::vector<float> values = host_values<float>(device, flat);
  return {values.begin(), values.end()};
}

/// The index in the global tensor of element `i` of the held part.
inline std::int64_t global_index(const Parameter& p, std::int64_t i) {
  const std::int64_t width = p.shape.size() > 1 ? p.shape[1] : 1, columns = p.held.columns();
  return (p.held.row_begin + i / columns) * width + p.held.column_begin + i % columns;
}

/// All parameters' elements of `tensor` (Bucket::gradient or Bucket::master) on every rank, each from the one rank that
/// counts it. Fails if an element is counted by no rank or by several. Collective.
inline Tensors gather(const ModelConfig& config, const ParameterStore& store, const Shards& shards,
                      const Tensor Bucket::*tensor, Context& context) {
  Runtime& runtime = context.runtime;
  const ParameterStore model = all_parameters(config);
  const auto total = static_cast<std::size_t>(model.global_count());
  std::vector<double> host(2 * total);  // the values, then the number of ranks that count each
  std::map<std::string, std::size_t> begin;
  std::size_t at = 0;
  for (const Parameter& p : model.parameters()) {
    begin[p.name] = at;
    at += static_cast<std::size_t>(p.global_count());
  }
  for (const ParameterPart& part : parts_in(store, shards.counted(), true)) {
    const std::vector<double> local = elements(runtime.device, shards.at(part.flat(), tensor));
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const std::size_t to = begin[part.parameter->name] + static_cast<std::size_t>(global_index(*part.parameter, i));
      host[to] += local[static_cast<std::size_t>(i - part.begin)];
      host[total + to] += 1;
    }
  }
  const Tensor device = ops::to_device(runtime, host, DType::f64);
  context.mesh.world->all_reduce(device, Reduce::sum, runtime.device.compute(), "test: gather");
  ops::download(runtime, device, host.data());
  Tensors tensors;
  for (const Parameter& p : model.parameters()) {
    const auto first = static_cast<std::ptrdiff_t>(begin[p.name]),
               count = static_cast<std::ptrdiff_t>(p.global_count());
    tensors[p.name].assign(host.begin() + first, host.begin() + first + count);
    const auto counts = host.begin() + static_cast<std::ptrdiff_t>(total) + first;
    EXPECT_TRUE(std::all_of(counts, counts + count, [](double n) { return n == 1; }))
        << p.name << ": an element is counted by no rank, or by several";
  }
  return tensors;
}

/// Every rank that updates an element has the same bits of `tensor`, that of the buckets.
inline void expect_held_equal(Device& device, const ParameterStore& store, const Shards& shards,
                              const Tensor Bucket::*tensor, const Tensors& whole, const char* what) {
  for (const ParameterPart& part : parts_in(store, shards.updated(), false)) {
    const std::vector<double> local = elements(device, shards.at(part.flat(), tensor));
    const std::vector<double>& global = whole.at(part.parameter->name);
    for (std::int64_t i = part.begin; i < part.end; ++i)
      ASSERT_EQ(local[static_cast<std::size_t>(i - part.begin)],
                global[static_cast<std::size_t>(global_index(*part.parameter, i))])
          << what << " of " << part.parameter->name << " differs between the ranks that hold it, element " << i
          << " here";
  }
}

/// The values that layers read are the masters, rounded if the type is another, on every rank. Collective.
inline void expect_values_are_masters(const ParameterStore& store, Shards& shards, const Tensors& masters,
                                      Context& context) {
  for (int group = 0; group < store.groups(); ++group) {
    shards.acquire(group, context);
    for (const Parameter& p : store.parameters()) {
      if (p.weight->group != group) continue;
      const Tensor value = p.value();
      const std::vector<double> local = elements(context.runtime.device, value.reshape({value.count()}));
      for (std::int64_t i = 0; i < p.held.count(); ++i) {
        const double master = masters.at(p.name)[static_cast<std::size_t>(global_index(p, i))];
        const double expected =
            value.dtype() == DType::bf16 ? static_cast<float>(bf16(static_cast<float>(master))) : master;
        ASSERT_EQ(local[static_cast<std::size_t>(i)], expected)
            << p.name << ": the value is not the rounded master, element " << i;
      }
    }
    shards.release(group);
  }
}

/// Expects every comparison to be within its tolerance. Returns the largest share of a tolerance that is used.
inline double expect_holds(const std::vector<Comparison>& comparisons) {
  double worst = 0;
  for (const Comparison& c : comparisons) {
    EXPECT_TRUE(c.holds()) << c.what << " differs by " << c.difference << " of its root mean square, tolerance "
                           << c.tolerance;
    if (c.tolerance > 0) worst = std::max(worst, c.difference / c.tolerance);
  }
  return worst;
}

}  // namespace choir::tests
