// How a CPU kernel divides its loop over OpenMP threads: contiguous parts of nearly equal length, the same ones on
// every run, and a single part if a team would cost more than it saves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "kernels/types.h"

namespace choir::kernels::cpu {

/// Items [begin, end) of a loop, computed by one thread.
struct Part {
  std::int64_t begin, end;
  int index;  ///< 0 ... parts - 1, ascending with begin
};

/// Waking a team takes microseconds: about as long as one thread needs for this many elements.
inline constexpr std::int64_t elements_worth_a_thread = 16384;

/// The number of parts into which to divide `items` items of `elements` elements each.
inline int num_parts(Cpu cpu, std::int64_t items, std::int64_t elements) {
  const std::int64_t worth = items * elements / elements_worth_a_thread;
  return static_cast<int>(std::max<std::int64_t>(1, std::min({std::int64_t{cpu.threads}, items, worth})));
}

/// Calls body(Part) for `parts` parts of [0, items), one per thread, cut at multiples of `granule`. Returns when all
/// are done.
template <class Body>
void for_each_part(int parts, std::int64_t items, std::int64_t granule, const Body& body) {
  const std::int64_t granules = (items + granule - 1) / granule;
  const auto boundary = [=](std::int64_t part) { return std::min(items, part * granules / parts * granule); };
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
  for (int i = 0; i < parts; ++i) body(Part{boundary(i), boundary(i + 1), i});
}

/// The kernels of one file, compiled for one instruction set: one function for each type of argument struct.
template <class... Args>
using KernelSet = std::tuple<void (*)(const Args&, Part)...>;

/// Calls the function of `kernels` for these arguments on [0, items), each item worth `elements` elements.
template <class Set, class Args>
void run_parts(Cpu cpu, const Set& kernels, const Args& args, std::int64_t items, std::int64_t elements,
               std::int64_t granule = 1) {
  const auto kernel = std::get<void (*)(const Args&, Part)>(kernels);
  for_each_part(num_parts(cpu, items, elements), items, granule, [&](Part part) { kernel(args, part); });
}

/// Elements from one row of partial sums to the next: no two threads write to one cache line.
inline std::int64_t padded(std::int64_t width) { return (width + 15) / 16 * 16; }

/// sum[i] += partial[part * stride + i], parts in ascending order.
template <class A>
void add_partial_sums(Cpu cpu, A* sum, const A* partial, int parts, std::int64_t stride, std::int64_t count) {
  for_each_part(num_parts(cpu, count, parts), count, 16, [=](Part columns) {
    for (int part = 0; part < parts; ++part) {
      for (std::int64_t i = columns.begin; i < columns.end; ++i) sum[i] += partial[part * stride + i];
    }
  });
}

}  // namespace choir::kernels::cpu
