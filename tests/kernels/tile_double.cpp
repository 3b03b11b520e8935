#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/tile_double.cpp"
#include "tests/kernels/tile_double.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/tile.h"
#include "kernels/cpu/tile_attention_kernel.h"
#include "kernels/cpu/tile_matmul_kernel.h"
#include "kernels/cpu/tile_pack.h"
#include "kernels/cpu/vector_matmul_kernel.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

struct TileDouble {
  using Element = bf16;

  struct Tiles {
    bool configured;
    alignas(64) unsigned char bytes[8][16][64];
  };
  static Tiles& tiles() {
    thread_local Tiles of_this_thread{};  // as in the processor
    return of_this_thread;
  }
  static unsigned char (*use(int tile))[64] {
    if (!tiles().configured) ADD_FAILURE() << "tile " << tile << " is used, but the tiles are not configured";
    return tiles().bytes[tile];
  }

  static void configure() {
    tiles().configured = true;
    std::memset(tiles().bytes, 0xff, sizeof(tiles().bytes));  // NaN
  }
  static void release() { tiles().configured = false; }
  template <int tile>
  static void zero() {
    std::memset(use(tile), 0, 1024);
  }
  template <int tile>
  static void load(const void* from, std::int64_t stride) {
    const auto rows = use(tile);
    for (int row = 0; row < 16; ++row) std::memcpy(rows[row], static_cast<const char*>(from) + row * stride, 64);
  }
  template <int tile>
  static void store(void* to, std::int64_t stride) {
    const auto rows = use(tile);
    for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, rows[row], 64);
  }
  template <int c, int a, int b>
  static void dot() {
    static_assert(c != a && c != b && a != b, "the instruction would be undefined");
    const auto left = use(a), right = use(b), sums = use(c);
    for (int m = 0; m < 16; ++m) {
      float even[16] = {}, odd[16] = {}, sum[16];
      for (int pair = 0; pair < 16; ++pair) {
        std::uint32_t word, row[16];
        std::memcpy(&word, left[m] + 4 * pair, 4);
        std::memcpy(row, right[pair], 64);
        const float left_even = std::bit_cast<float>(word << 16), left_odd = std::bit_cast<float>(word & 0xffff0000u);
        for (int n = 0; n < 16; ++n) {
          even[n] += left_even * std::bit_cast<float>(row[n] << 16);
          odd[n] += left_odd * std::bit_cast<float>(row[n] & 0xffff0000u);
        }
      }
      std::memcpy(sum, sums[m], 64);
      for (int n = 0; n < 16; ++n) sum[n] += even[n] + odd[n];
      std::memcpy(sums[m], sum, 64);
    }
  }

  static HWY_INLINE u16x32 round(f32x16 low, f32x16 high) {
    u16x32 bits{};
    for (int i = 0; i < 16; ++i) {
      bits[i] = bf16(low[i]).bits;
      bits[16 + i] = bf16(high[i]).bits;
    }
    return bits;
  }
  static HWY_INLINE void stream(void* to, u16x32 value) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(to) % 64, 0u) << "the instruction would fault";
    std::memcpy(to, &value, 64);
  }
  static void fence() {}
};

struct PairDouble {
  using Element = bf16;
  using Row = u16x32;
  static void configure() {}
  static void release() {}
  static HWY_INLINE u16x32 broadcast(const bf16* pair) {
    u16x32 pairs{};
    for (int i = 0; i < 32; ++i) pairs[i] = pair[i % 2].bits;
    return pairs;
  }
  static HWY_INLINE f32x16 dot(f32x16 c, u16x32 a, u16x32 b) {
    const auto value = [](std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); };
    for (int i = 0; i < 16; ++i) c[i] += value(a[2 * i]) * value(b[2 * i]) + value(a[2 * i + 1]) * value(b[2 * i + 1]);
    return c;
  }
  static HWY_INLINE u16x32 round(f32x16 low, f32x16 high) { return TileDouble::round(low, high); }
};

struct FmaDouble {
  using Element = float;
  using Row = f32x16;
  static void configure() {}
  static void release() {}
  static HWY_INLINE f32x16 broadcast(const float* value) { return f32x16{} + *value; }
  static HWY_INLINE f32x16 dot(f32x16 c, f32x16 a, f32x16 b) { return c + a * b; }
};

template <class Out>
void multiply_part(const Matmul<bf16, Out>& args, const TileMatmulPlan& plan, int index, void* workspace) {
  tile_matmul_part<TileDouble>(args, plan, index, workspace);
}
template <class Out>
void multiply(Cpu cpu, const Matmul<bf16, Out>& args) {
  cpu::tile_matmul<Out>(cpu, args, multiply_part<Out>);
}
template <class Unit, class Out>
void multiply_vector_part(const Matmul<typename Unit::Element, Out>& args, const VectorMatmulPlan& plan, int index,
                          void* workspace) {
  vector_matmul_part<Unit>(args, plan, index, workspace);
}
template <class Unit, class Out>
void multiply_in_vectors(Cpu cpu, const Matmul<typename Unit::Element, Out>& args) {
  cpu::vector_matmul<typename Unit::Element, Out>(cpu, args, multiply_vector_part<Unit, Out>);
}
template <class Unit>
void forward_groups(const AttentionForward<typename Unit::Element>& args, cpu::Part groups, void* workspace) {
  tile_forward_part<Unit>(args, groups, workspace);
}
template <class Unit>
void backward_groups(const AttentionBackward<typename Unit::Element>& args, cpu::Part groups, void* workspace) {
  tile_backward_part<Unit>(args, groups, workspace);
}
template <class Unit>
void forward(Cpu cpu, const AttentionForward<typename Unit::Element>& args) {
  cpu::run_tile_attention<cpu::TileForwardMemory<typename Unit::Element>>(cpu, args, forward_groups<Unit>);
}
template <class Unit>
void backward(Cpu cpu, const AttentionBackward<typename Unit::Element>& args) {
  cpu::run_tile_attention<cpu::TileBackwardMemory<typename Unit::Element>>(cpu, args, backward_groups<Unit>);
}

// Not without vectors: compiling that would take a minute, and no processor runs these kernels so.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

tests::ProductKernels products_on_tiles() { return {}; }
tests::ProductKernels products_in_vectors() { return {}; }
tests::AttentionKernels<bf16> attention_on_tiles() { return {}; }
tests::AttentionKernels<bf16> attention_on_pairs() { return {}; }
tests::AttentionKernels<float> attention_in_f32() { return {}; }

#else

tests::ProductKernels products_on_tiles() {
  return {{"double of tiles", multiply<bf16>, cpu::tile_matmul_workspace_bytes<bf16>},
          {"double of tiles", multiply<float>, cpu::tile_matmul_workspace_bytes<float>},
          {}};
}
tests::ProductKernels products_in_vectors() {
  return {
      {"double of vectors", multiply_in_vectors<PairDouble, bf16>, cpu::vector_matmul_workspace_bytes<bf16, bf16>},
      {"double of vectors", multiply_in_vectors<PairDouble, float>, cpu::vector_matmul_workspace_bytes<bf16, float>},
      {"double of vectors", multiply_in_vectors<FmaDouble, float>, cpu::vector_matmul_workspace_bytes<float, float>}};
}
tests::AttentionKernels<bf16> attention_on_tiles() {
  return {"double of tiles", CpuUnit::tiles, forward<TileDouble>, backward<TileDouble>};
}
tests::AttentionKernels<bf16> attention_on_pairs() {
  return {"double of pairs", CpuUnit::vectors, forward<PairDouble>, backward<PairDouble>};
}
tests::AttentionKernels<float> attention_in_f32() {
  return {"double of vectors of f32", CpuUnit::vectors, forward<FmaDouble>, backward<FmaDouble>};
}

#endif

template <class Packer, class T>
void pack_with(const T* from, std::int64_t stride, std::int64_t lines, std::int64_t depth, T* to) {
  pack<Packer>(from, stride, lines, depth, to);
}
template <class T>
tests::TilePackers<T> packers() {
  return {pack_with<PackRows, T>, pack_with<PackRowsTransposed, T>, pack_with<PackColumns, T>,
          pack_with<PackColumnsTransposed, T>};
}
tests::TilePackers<bf16> packers_of_bf16() { return packers<bf16>(); }
tests::TilePackers<float> packers_of_f32() { return packers<float>(); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
namespace {
HWY_EXPORT(products_on_tiles);
HWY_EXPORT(products_in_vectors);
HWY_EXPORT(attention_on_tiles);
HWY_EXPORT(attention_on_pairs);
HWY_EXPORT(attention_in_f32);
HWY_EXPORT(packers_of_bf16);
HWY_EXPORT(packers_of_f32);
}  // namespace

tests::ProductKernels tests::products_on_tile_double() { return HWY_DYNAMIC_DISPATCH(products_on_tiles)(); }
tests::ProductKernels tests::products_on_vector_double() { return HWY_DYNAMIC_DISPATCH(products_in_vectors)(); }
tests::AttentionKernels<bf16> tests::attention_on_tile_double() { return HWY_DYNAMIC_DISPATCH(attention_on_tiles)(); }
template <>
tests::AttentionKernels<bf16> tests::attention_on_vector_double() {
  return HWY_DYNAMIC_DISPATCH(attention_on_pairs)();
}
template <>
tests::AttentionKernels<float> tests::attention_on_vector_double() {
  return HWY_DYNAMIC_DISPATCH(attention_in_f32)();
}
template <>
tests::TilePackers<bf16> tests::tile_packers() {
  return HWY_DYNAMIC_DISPATCH(packers_of_bf16)();
}
template <>
tests::TilePackers<float> tests::tile_packers() {
  return HWY_DYNAMIC_DISPATCH(packers_of_f32)();
}

}  // namespace choir::kernels
#endif
