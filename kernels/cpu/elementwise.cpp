// The simplest passes over memory, on the CPU.
#include "kernels/elementwise.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

// The arguments of a kernel as one struct, as the dispatch by type takes them. This part is the same for all targets.
#ifndef CHOIR_KERNELS_CPU_ELEMENTWISE_ARGUMENTS
#define CHOIR_KERNELS_CPU_ELEMENTWISE_ARGUMENTS
namespace choir::kernels {
namespace {

template <class From, class To>
struct CastArguments {
  const From* x;
  To* y;
};

}  // namespace
}  // namespace choir::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

/// Casts between f32 and bf16 use vectors of f32; those with f64 (tests) use the conversions of C++ (bf16 by way of
/// f32).
template <class From, class To>
void cast_part(const CastArguments<From, To>& args, Part elements) {
  if constexpr (sizeof(From) == 8 || sizeof(To) == 8) {
    using Between = std::conditional_t<sizeof(To) == 8, double, float>;
    for (std::int64_t i = elements.begin; i < elements.end; ++i) {
      args.y[i] = static_cast<To>(static_cast<Between>(args.x[i]));
    }
  } else {
    const Tag<float> d;
    const From* x = args.x + elements.begin;
    To* y = args.y + elements.begin;
    for_each_vector(d, elements.end - elements.begin,
                    [&](auto i, auto extent) HWY_ATTR { store(d, load(d, x + i, extent), y + i, extent); });
  }
}

template <class T>
void accumulate_part(const RowPass<T, Accumulate<T>>& args, Part elements) {
  const Tag<T> d;
  for_each_row(elements, args.width, [&](std::int64_t row, std::int64_t begin, std::int64_t count) HWY_ATTR {
    const T* x = args.x + row * args.x_stride + begin;
    Accumulate<T>* y = args.y + row * args.y_stride + begin;
    for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
      store(d, hn::Add(load(d, x + i, extent), load(d, y + i, extent)), y + i, extent);
    });
  });
}

template <class T>
void narrow_part(const RowPass<Accumulate<T>, T>& args, Part elements) {
  const Tag<T> d;
  for_each_row(elements, args.width, [&](std::int64_t row, std::int64_t begin, std::int64_t count) HWY_ATTR {
    const Accumulate<T>* x = args.x + row * args.x_stride + begin;
    T* y = args.y + row * args.y_stride + begin;
    for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR { store(d, load(d, x + i, extent), y + i, extent); });
  });
}

cpu::KernelSet<CastArguments<float, float>, CastArguments<float, bf16>, CastArguments<float, double>,
               CastArguments<bf16, float>, CastArguments<bf16, bf16>, CastArguments<bf16, double>,
               CastArguments<double, float>, CastArguments<double, bf16>, CastArguments<double, double>>
kernels() {
  return {cast_part<float, float>,  cast_part<float, bf16>,  cast_part<float, double>,  //
          cast_part<bf16, float>,   cast_part<bf16, bf16>,   cast_part<bf16, double>,   //
          cast_part<double, float>, cast_part<double, bf16>, cast_part<double, double>};
}

cpu::KernelSet<RowPass<float, float>, RowPass<bf16, float>, RowPass<double, double>> accumulate_kernels() {
  return {accumulate_part<float>, accumulate_part<bf16>, accumulate_part<double>};
}

cpu::KernelSet<RowPass<float, float>, RowPass<float, bf16>, RowPass<double, double>> narrow_kernels() {
  return {narrow_part<float>, narrow_part<bf16>, narrow_part<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);
HWY_EXPORT(accumulate_kernels);
HWY_EXPORT(narrow_kernels);

template <class T>
void fill(Cpu cpu, T* x, std::int64_t count, float value) {
  cpu::for_each_part(cpu::num_parts(cpu, count, 1), count, 64, [=](cpu::Part elements) {
    std::fill(x + elements.begin, x + elements.end, static_cast<T>(value));
  });
}

template <class T>
void zero_ranges(Cpu cpu, const ZeroRanges<T>& args) {
  for (std::int64_t i = 0; i < args.num_ranges; ++i)
    fill(cpu, args.x + args.ranges[i].begin, args.ranges[i].end - args.ranges[i].begin, 0.0f);
}

template <class From, class To>
void cast(Cpu cpu, const From* x, To* y, std::int64_t count) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), CastArguments<From, To>{x, y}, count, 1, 64);
}

template <class T>
void accumulate(Cpu cpu, const RowPass<T, Accumulate<T>>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(accumulate_kernels)(), args, args.rows * args.width, 1, 64);
}

template <class T>
void narrow(Cpu cpu, const RowPass<Accumulate<T>, T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(narrow_kernels)(), args, args.rows * args.width, 1, 64);
}

void copy_rows(Cpu cpu, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride, std::int64_t rows,
               std::int64_t row_bytes) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  // Rows without gaps are one long row, which the threads divide anywhere; others are divided between rows.
  if (rows == 1 || (from_stride == row_bytes && to_stride == row_bytes)) {
    const std::int64_t bytes = rows * row_bytes;
    cpu::for_each_part(cpu::num_parts(cpu, bytes / 4, 1), bytes, 64, [=](cpu::Part part) {
      std::memcpy(target + part.begin, source + part.begin, static_cast<std::size_t>(part.end - part.begin));
    });
    return;
  }
  cpu::for_each_part(cpu::num_parts(cpu, rows, row_bytes / 4), rows, 1, [=](cpu::Part part) {
    for (std::int64_t row = part.begin; row < part.end; ++row) {
      std::memcpy(target + row * to_stride, source + row * from_stride, static_cast<std::size_t>(row_bytes));
    }
  });
}

template void fill(Cpu, float*, std::int64_t, float);
template void fill(Cpu, bf16*, std::int64_t, float);
template void fill(Cpu, double*, std::int64_t, float);
template void zero_ranges(Cpu, const ZeroRanges<float>&);
template void zero_ranges(Cpu, const ZeroRanges<double>&);
template void accumulate<float>(Cpu, const RowPass<float, float>&);
template void accumulate<bf16>(Cpu, const RowPass<bf16, float>&);
template void accumulate<double>(Cpu, const RowPass<double, double>&);
template void narrow<float>(Cpu, const RowPass<float, float>&);
template void narrow<bf16>(Cpu, const RowPass<float, bf16>&);
template void narrow<double>(Cpu, const RowPass<double, double>&);
template void cast(Cpu, const float*, float*, std::int64_t);
template void cast(Cpu, const float*, bf16*, std::int64_t);
template void cast(Cpu, const float*, double*, std::int64_t);
template void cast(Cpu, const bf16*, float*, std::int64_t);
template void cast(Cpu, const bf16*, bf16*, std::int64_t);
template void cast(Cpu, const bf16*, double*, std::int64_t);
template void cast(Cpu, const double*, float*, std::int64_t);
template void cast(Cpu, const double*, bf16*, std::int64_t);
template void cast(Cpu, const double*, double*, std::int64_t);

}  // namespace choir::kernels
#endif
