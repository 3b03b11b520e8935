// What products do with 16 sums of a row of c before they store them (kernels/matmul.h), for any unit (tile.h).
//
// This header is included after "hwy/foreach_target.h", once per instruction set, as simd.h is.
#if defined(CHOIR_KERNELS_CPU_EPILOGUE_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_EPILOGUE_H
#undef CHOIR_KERNELS_CPU_EPILOGUE_H
#else
#define CHOIR_KERNELS_CPU_EPILOGUE_H
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/gelu.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/matmul.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

inline constexpr std::int64_t lanes_of_sums = 16;

/// `count` values of T as f32; lanes from count on are zero.
template <class T>
HWY_INLINE f32x16 read_lanes(const T* from, std::int64_t count) {
  T whole[lanes_of_sums] = {};
  if (count < lanes_of_sums) {
    std::memcpy(static_cast<void*>(whole), from, static_cast<std::size_t>(count) * sizeof(T));
    from = whole;
  }
  return widen(from);
}
template <class Unit, class T>
HWY_INLINE void write_lanes(T* to, std::int64_t count, f32x16 value) {
  T whole[lanes_of_sums];
  T* place = count < lanes_of_sums ? whole : to;
  if constexpr (std::is_same_v<T, float>) {
    store_vector(place, value);
  } else {
    const u16x32 twice = Unit::round(value, value);
    store_vector(place, __builtin_shufflevector(twice, twice, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  if (count < lanes_of_sums) std::memcpy(static_cast<void*>(to), whole, static_cast<std::size_t>(count) * sizeof(T));
}

/// What gelu or gelu_gradient makes of `count` sums; `before` is their place in Matmul::before.
template <class Unit, Epilogue epilogue, class Out>
HWY_INLINE f32x16 activate(f32x16 sum, Out* before, std::int64_t count) {
  static_assert(epilogue == Epilogue::gelu || epilogue == Epilogue::gelu_gradient);
  if constexpr (epilogue == Epilogue::gelu) {
    write_lanes<Unit>(before, count, sum);
    return map_lanes(sum, [](auto d, auto x) HWY_ATTR { return hn::Mul(x, Gelu::gate(d, x).value); });
  } else {
    return sum * map_lanes(read_lanes(before, count), [](auto d, auto x) HWY_ATTR {
             const auto gate = Gelu::gate(d, x);
             return hn::Add(gate.value, gate.slope);
           });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
