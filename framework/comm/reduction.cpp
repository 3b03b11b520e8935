#include "framework/comm/reduction.h"

#include <algorithm>
#include <cassert>
#include <type_traits>

namespace choir {
namespace {

constexpr std::int64_t piece_bytes = 1 << 20;         // on all ranks together: stays in a core's share of the cache
constexpr std::int64_t least_block_bytes = 64 << 10;  // per rank: below this, the latency of a message matters

/// The type of partial results. Integers wrap around, as MPI's do; the overflow of signed ones would be undefined.
template <class T>
struct Partial {
  using type = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
};

template <Reduce op, class P>
P combine(P a, P b) {
  if constexpr (op == Reduce::max) {
    return b > a || b != b ? b : a;  // b != b: NaN, which stays once it is in a
  } else if constexpr (std::is_same_v<P, std::int32_t>) {
    return static_cast<P>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
  } else {
    return static_cast<P>(a + b);
  }
}

// A strip at a time through a partial result in the first-level cache, so that the inner loops are plain and `out` is
// written only after every source of the strip has been read.
template <Reduce op, class T>
void reduce(const std::vector<const void*>& sources, void* out, std::int64_t count) {
  using P = typename Partial<T>::type;
  constexpr std::int64_t strip = 1024;
  P partial[strip];
  for (std::int64_t begin = 0; begin < count; begin += strip) {
    const std::int64_t n = std::min(strip, count - begin);
    const T* first = static_cast<const T*>(sources[0]) + begin;
    const T* second = static_cast<const T*>(sources[1]) + begin;
    for (std::int64_t i = 0; i < n; ++i) partial[i] = combine<op>(static_cast<P>(first[i]), static_cast<P>(second[i]));
    for (std::size_t r = 2; r < sources.size(); ++r) {
      const T* source = static_cast<const T*>(sources[r]) + begin;
      for (std::int64_t i = 0; i < n; ++i) partial[i] = combine<op>(partial[i], static_cast<P>(source[i]));
    }
    T* to = static_cast<T*>(out) + begin;
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(partial[i]);
  }
}

template <Reduce op>
void reduce(const std::vector<const void*>& sources, void* out, std::int64_t count, DType type) {
  switch (type) {
    case DType::f32:
      return reduce<op, float>(sources, out, count);
    case DType::bf16:
      return reduce<op, bf16>(sources, out, count);
    case DType::f64:
      return reduce<op, double>(sources, out, count);
    case DType::i32:
      return reduce<op, std::int32_t>(sources, out, count);
    case DType::u8:
      return reduce<op, std::uint8_t>(sources, out, count);
  }
}

}  // namespace

std::int64_t reduction_block(std::int64_t count, int ranks, DType type) {
  return std::min(count, std::max(piece_bytes / ranks, least_block_bytes) / size_of(type));
}

std::int64_t reduction_workspace_bytes(std::int64_t count, int ranks, DType type) {
  // A small tensor has at most ranks * count elements, on each of the ranks.
  const std::int64_t small = std::min(small_reduction_bytes, ranks * ranks * count * size_of(type));
  return std::max(small, ranks * reduction_block(count, ranks, type) * size_of(type));
}

void reduce_in_order(const std::vector<const void*>& sources, void* out, std::int64_t count, DType type, Reduce op) {
  assert(sources.size() >= 2);
  if (op == Reduce::sum)
    reduce<Reduce::sum>(sources, out, count, type);
  else
    reduce<Reduce::max>(sources, out, count, type);
}

}  // namespace choir
