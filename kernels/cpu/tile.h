// What multiplies on x86, as kernels see it: three units, of which a processor can have all.
//
// The tile unit (Intel AMX) has eight tiles of 16 rows of 64 bytes, and one product.
//
//   dot<c, a, b>   c [16, 16] f32 += a [16, 32] b [32, 16], a and b in bf16
//
// b is stored in pairs of rows: row p of its tile is b[2p][0], b[2p+1][0], b[2p][1], b[2p+1][1], ... The even and the
// odd rows of b are summed apart in f32, and both sums are then added to c. Denormal numbers count as 0.
//
// Vectors (AVX-512 bf16) have the product of a pair of bf16 with a row of b's tile.
//
//   dot(c, a, b)   c [16] f32 += a[0] b[2p] + a[1] b[2p+1]
//
// and vectors of f32 have that of one element with a row of b:
//
//   dot(c, a, b)   c [16] f32 += a b[p]
//
// A kernel is a template on its unit, which has the members of TileInstructions or of PairInstructions. Tests pass
// doubles in plain C++ (tests/kernels/tile_double.h). What surrounds the unit is written on vectors of the compiler, 64
// bytes wide on every instruction set, so that tests of the doubles run the code of the kernels on any processor.
//
// This header is included after "hwy/foreach_target.h", once per instruction set, as simd.h is.

#if defined(CHOIR_KERNELS_CPU_TILE_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHOIR_KERNELS_CPU_TILE_H
#undef CHOIR_KERNELS_CPU_TILE_H
#else
#define CHOIR_KERNELS_CPU_TILE_H
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/types.h"

// Vectors never cross a call: what takes or returns them is always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {

/// A row of a tile.
using f32x16 = float __attribute__((vector_size(64)));
using u16x32 = std::uint16_t __attribute__((vector_size(64)));

#if HWY_TARGET == HWY_AVX3

/// The instructions of tiles. To be run only if has_tiles() (kernels/matmul.h). They are assembly, because a tile's
/// number is part of the instruction, because the compiler must know that loads read memory, which GCC's own
/// definitions do not tell it, and because no other file is to be compiled for them.
struct TileInstructions {
  using Element = bf16;

  /// Eight whole tiles, for this thread, until release().
  static HWY_INLINE void configure() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  /// oneDNN's products release the tiles too, so that no kernel relies on what another has configured.
  static HWY_INLINE void release() { asm volatile("tilerelease"); }

  template <int tile>
  static HWY_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  /// 16 rows of 64 bytes, `stride` bytes apart.
  template <int tile>
  static HWY_INLINE void load(const void* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static HWY_INLINE void store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  template <int c, int a, int b>
  static HWY_INLINE void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }

  /// The bits of 32 values in bf16, rounded to nearest, ties to even; denormal numbers become 0.
  static HWY_INLINE u16x32 round(f32x16 low, f32x16 high) {
    u16x32 bits;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(bits) : "v"(high), "v"(low));
    return bits;
  }
  /// A store of 64 aligned bytes past the caches. Other threads see it after fence().
  static HWY_INLINE void stream(void* to, u16x32 value) {
    asm volatile("vmovntdq %1, %0" : "=m"(*static_cast<u16x32*>(to)) : "v"(value));
  }
  static HWY_INLINE void fence() { asm volatile("sfence" ::: "memory"); }
};

/// The instructions of vectors, on pairs. To be run only if has_pairs().
struct PairInstructions {
  using Element = bf16;
  using Row = u16x32;

  static void configure() {}
  static void release() {}

  /// The pair in all lanes.
  static HWY_INLINE u16x32 broadcast(const bf16* pair) {
    u16x32 pairs;
    asm("vpbroadcastd %1, %0" : "=v"(pairs) : "m"(*reinterpret_cast<const char(*)[4]>(pair)));
    return pairs;
  }
  static HWY_INLINE f32x16 dot(f32x16 c, u16x32 a, u16x32 b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
  static HWY_INLINE u16x32 round(f32x16 low, f32x16 high) { return TileInstructions::round(low, high); }
};

/// The same on f32.
struct FmaInstructions {
  using Element = float;
  using Row = f32x16;

  static void configure() {}
  static void release() {}

  static HWY_INLINE f32x16 broadcast(const float* value) {
    f32x16 values;
    asm("vbroadcastss %1, %0" : "=v"(values) : "m"(*value));
    return values;
  }
  static HWY_INLINE f32x16 dot(f32x16 c, f32x16 a, f32x16 b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
};

#endif

}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
