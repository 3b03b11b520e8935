// The simplest passes over memory, on the GPU.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/elementwise.h"

namespace choir::kernels {

// Elements are stored as the unsigned integer that has their bits, or 16 bytes of copies of it.
template <class Bits>
__global__ void fill_kernel(Bits* x, std::int64_t count, Bits value, uint4 values) {
  constexpr int n = 16 / sizeof(Bits);
  // Before the first aligned address and after the last: one by one.
  const std::int64_t misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(x) / sizeof(Bits) % n);
  const std::int64_t head = min((n - misaligned) % n, count);
  const std::int64_t packs = (count - head) / n, tail = head + packs * n;
  auto* aligned = reinterpret_cast<uint4*>(x + head);
  for (std::int64_t i = cuda::thread_of_grid(); i < packs; i += cuda::threads_of_grid()) aligned[i] = values;
  const std::int64_t i = cuda::thread_of_grid();
  if (i < head) x[i] = value;
  if (tail + i < count) x[tail + i] = value;
}

template <class Bits>
static void fill_bits(Cuda cuda, void* x, std::int64_t count, Bits value) {
  constexpr int n = 16 / sizeof(Bits);
  Bits copies[n];
  std::fill(copies, copies + n, value);
  uint4 values;
  std::memcpy(&values, copies, sizeof(values));
  fill_kernel<<<cuda::blocks_for_elements<n>(cuda, count), cuda::threads_per_block, 0, cuda.stream>>>(
      static_cast<Bits*>(x), count, value, values);
  cuda::check_launch("fill");
}

template <class T>
void fill(Cuda cuda, T* x, std::int64_t count, float value) {
  if constexpr (sizeof(T) == 2) fill_bits(cuda, x, count, bf16(value).bits);
  if constexpr (sizeof(T) == 4) fill_bits(cuda, x, count, std::bit_cast<std::uint32_t>(value));
  if constexpr (sizeof(T) == 8) fill_bits(cuda, x, count, std::bit_cast<unsigned long long>(double{value}));
}

// The ranges are cut into chunks of fixed length, assigned in turn to the blocks.
constexpr std::int64_t zeroed_at_once = cuda::threads_per_block * 16;

__global__ void zero_ranges_kernel(ZeroRanges<float> args) {
  constexpr std::int64_t chunk = zeroed_at_once;
  const std::int64_t blocks = gridDim.x;
  std::int64_t turn = 0;  // of the range's first chunk
  for (std::int64_t r = 0; r < args.num_ranges; ++r) {
    const Range range = args.ranges[r];
    const std::int64_t chunks = (range.end - range.begin + chunk - 1) / chunk;
    const std::int64_t first = (blockIdx.x - turn % blocks + blocks) % blocks;  // of this block's
    for (std::int64_t c = first; c < chunks; c += blocks) {
      const std::int64_t begin = range.begin + c * chunk, end = min(begin + chunk, range.end);
      for (std::int64_t i = begin + threadIdx.x; i < end; i += cuda::threads_per_block) args.x[i] = 0;
    }
    turn += chunks;
  }
}

template <class T>
void zero_ranges(Cuda cuda, const ZeroRanges<T>& args) {
  const std::int64_t chunks = (args.elements + zeroed_at_once - 1) / zeroed_at_once;
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(chunks, 1, cuda.multiprocessors * 4));
  zero_ranges_kernel<<<blocks, cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("zero_ranges");
}

template <class From, class To, int N>
__global__ void cast_kernel(const From* x, To* y, std::int64_t count) {
  cuda::for_each_pack<N>(count, [=]<int M>(std::int64_t i) { cuda::store(cuda::load<M>(x + i), y + i); });
}

template <class From, class To>
void cast(Cuda cuda, const From* x, To* y, std::int64_t count) {
  using Narrow = std::conditional_t<sizeof(From) < sizeof(To), From, To>;
  cuda::with_pack_size<Narrow>(0, {x, y}, [&]<int N>() {
    cast_kernel<From, To, N>
        <<<cuda::blocks_for_elements<N>(cuda, count), cuda::threads_per_block, 0, cuda.stream>>>(x, y, count);
  });
  cuda::check_launch("cast");
}

/// y = x, or y += x if `adds`. N divides the width.
template <bool adds, class From, class To, int N>
__global__ void rows_kernel(RowPass<From, To> args) {
  const std::int64_t packs = args.width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < args.rows * packs; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / packs, column = (i - row * packs) * N;
    cuda::Pack<N> value = cuda::load<N>(args.x + row * args.x_stride + column);
    To* y = args.y + row * args.y_stride + column;
    if constexpr (adds) {
      const cuda::Pack<N> sum = cuda::load<N>(y);
#pragma unroll
      for (int j = 0; j < N; ++j) value.value[j] += sum.value[j];
    }
    cuda::store(value, y);
  }
}

template <bool adds, class From, class To>
static void pass_over_rows(Cuda cuda, const RowPass<From, To>& args, const char* name) {
  using Narrow = std::conditional_t<sizeof(From) < sizeof(To), From, To>;
  const std::int64_t common = args.width | args.x_stride | args.y_stride;  // a power of two divides all or not this
  cuda::with_pack_size<Narrow>(common, {args.x, args.y}, [&]<int N>() {
    rows_kernel<adds, From, To, N>
        <<<cuda::blocks_for_elements<N>(cuda, args.rows * args.width), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch(name);
}

template <class T>
void accumulate(Cuda cuda, const RowPass<T, Accumulate<T>>& args) {
  pass_over_rows<true>(cuda, args, "accumulate");
}

template <class T>
void narrow(Cuda cuda, const RowPass<Accumulate<T>, T>& args) {
  pass_over_rows<false>(cuda, args, "narrow");
}

/// Rows of `width` units, strides in units.
template <class Unit>
__global__ void copy_rows_kernel(const Unit* from, std::int64_t from_stride, Unit* to, std::int64_t to_stride,
                                 std::int64_t rows, std::int64_t width) {
  for (std::int64_t i = cuda::thread_of_grid(); i < rows * width; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / width, column = i % width;
    to[row * to_stride + column] = from[row * from_stride + column];
  }
}

void copy_rows(Cuda cuda, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
               std::int64_t rows, std::int64_t row_bytes) {
  if (rows == 0 || row_bytes == 0) return;
  if (rows == 1 || (from_stride == row_bytes && to_stride == row_bytes)) {
    cuda::check(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(rows * row_bytes), cudaMemcpyDeviceToDevice, cuda.stream),
        "cudaMemcpyAsync (copy_rows)");
    return;
  }
  const auto copy_units = [&]<class Unit>(Unit) {
    constexpr auto bytes = static_cast<std::int64_t>(sizeof(Unit));
    copy_rows_kernel<<<cuda::blocks_for_elements<1>(cuda, rows * row_bytes / bytes), cuda::threads_per_block, 0,
                       cuda.stream>>>(static_cast<const Unit*>(from), from_stride / bytes, static_cast<Unit*>(to),
                                      to_stride / bytes, rows, row_bytes / bytes);
    cuda::check_launch("copy_rows");
  };
  // The largest unit that divides all addresses, strides and the width: they have these low bits in common.
  const std::uintptr_t bits = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) |
                              static_cast<std::uintptr_t>(from_stride | to_stride | row_bytes);
  if (bits % 16 == 0)
    copy_units(uint4{});
  else if (bits % 4 == 0)
    copy_units(std::uint32_t{});
  else if (bits % 2 == 0)
    copy_units(std::uint16_t{});
  else
    copy_units(std::uint8_t{});
}

template void fill(Cuda, float*, std::int64_t, float);
template void zero_ranges(Cuda, const ZeroRanges<float>&);
template void fill(Cuda, bf16*, std::int64_t, float);
template void fill(Cuda, double*, std::int64_t, float);
template void accumulate<float>(Cuda, const RowPass<float, float>&);
template void accumulate<bf16>(Cuda, const RowPass<bf16, float>&);
template void narrow<float>(Cuda, const RowPass<float, float>&);
template void narrow<bf16>(Cuda, const RowPass<float, bf16>&);
template void cast(Cuda, const float*, float*, std::int64_t);
template void cast(Cuda, const float*, bf16*, std::int64_t);
template void cast(Cuda, const bf16*, float*, std::int64_t);
template void cast(Cuda, const bf16*, bf16*, std::int64_t);

}  // namespace choir::kernels
