// Twelve chains of multiply-adds: more than two units with a latency of four or five cycles need, and no more than AVX2
// has registers for.
#include "kernels/register_rate.h"

#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/register_rate.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile.h"

// The arguments of a kernel as one struct. This part is the same for all targets.
#ifndef CHOIR_KERNELS_CPU_REGISTER_RATE_ARGUMENTS
#define CHOIR_KERNELS_CPU_REGISTER_RATE_ARGUMENTS
namespace choir::kernels {
namespace {

struct RegisterRate {
  std::int64_t rounds;
  float* sums;         // [parts]: makes the results needed
  double* operations;  // [parts]
};

}  // namespace
}  // namespace choir::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

void multiply(const RegisterRate& args, Part thread) {
  const hn::ScalableTag<float> d;
  constexpr int chains = 12;
  const auto factor = hn::Set(d, 0.75f), term = hn::Set(d, 0.25f);  // x = 0.75 x + 0.25 goes to 1
  auto a = hn::Iota(d, 0.f), b = hn::Iota(d, 1.f), c = hn::Iota(d, 2.f), e = hn::Iota(d, 3.f);
  auto f = hn::Iota(d, 4.f), g = hn::Iota(d, 5.f), h = hn::Iota(d, 6.f), i = hn::Iota(d, 7.f);
  auto j = hn::Iota(d, 8.f), k = hn::Iota(d, 9.f), l = hn::Iota(d, 10.f), m = hn::Iota(d, 11.f);
  for (std::int64_t round = 0; round < args.rounds; ++round) {
    a = hn::MulAdd(a, factor, term);
    b = hn::MulAdd(b, factor, term);
    c = hn::MulAdd(c, factor, term);
    e = hn::MulAdd(e, factor, term);
    f = hn::MulAdd(f, factor, term);
    g = hn::MulAdd(g, factor, term);
    h = hn::MulAdd(h, factor, term);
    i = hn::MulAdd(i, factor, term);
    j = hn::MulAdd(j, factor, term);
    k = hn::MulAdd(k, factor, term);
    l = hn::MulAdd(l, factor, term);
    m = hn::MulAdd(m, factor, term);
  }
  const auto first = hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)), hn::Add(f, g));
  const auto last = hn::Add(hn::Add(hn::Add(h, i), hn::Add(j, k)), hn::Add(l, m));
  args.sums[thread.index] = hn::GetLane(hn::SumOfLanes(d, hn::Add(first, last)));
  args.operations[thread.index] = 2.0 * chains * static_cast<double>(lanes(d) * args.rounds);
}

#if HWY_TARGET == HWY_AVX3
/// Four products of tiles a round.
void multiply_on_tiles(const RegisterRate& args, Part thread) {
  using Unit = TileInstructions;
  alignas(64) float tile[256] = {};
  Unit::configure();
  Unit::zero<0>();
  Unit::zero<1>();
  Unit::zero<2>();
  Unit::zero<3>();
  Unit::load<4>(tile, 64);
  Unit::load<5>(tile, 64);
  Unit::load<6>(tile, 64);
  Unit::load<7>(tile, 64);
  for (std::int64_t round = 0; round < args.rounds; ++round) {
    Unit::dot<0, 4, 6>();
    Unit::dot<1, 4, 7>();
    Unit::dot<2, 5, 6>();
    Unit::dot<3, 5, 7>();
  }
  Unit::store<0>(tile, 64);
  Unit::release();
  args.sums[thread.index] = tile[0];
  args.operations[thread.index] = 2.0 * 4 * 16 * 16 * 32 * static_cast<double>(args.rounds);
}

/// Sixteen chains of products of pairs.
void multiply_pairs(const RegisterRate& args, Part thread) {
  constexpr int chains = 16;
  f32x16 sums[chains] = {}, all{};
  const u16x32 factors{};
  for (std::int64_t round = 0; round < args.rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) sums[i] = PairInstructions::dot(sums[i], factors, factors);
  }
#pragma GCC unroll 16
  for (int i = 0; i < chains; ++i) all += sums[i];
  args.sums[thread.index] = all[0];
  args.operations[thread.index] = 2.0 * chains * 32 * static_cast<double>(args.rounds);
}
#endif

cpu::KernelSet<RegisterRate> kernels() { return {multiply}; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

double multiply_in_registers(Cpu cpu, std::int64_t rounds) {
  const auto threads = static_cast<std::size_t>(cpu.threads);
  std::vector<float> sums(threads);
  std::vector<double> operations(threads);
  const RegisterRate args{rounds, sums.data(), operations.data()};
  auto kernel = std::get<0>(HWY_DYNAMIC_DISPATCH(kernels)());
#if HWY_TARGETS & HWY_AVX3
  if (cpu.unit == CpuUnit::vectors) kernel = N_AVX3::multiply_pairs;
  if (cpu.unit == CpuUnit::tiles) kernel = N_AVX3::multiply_on_tiles;
#endif
  cpu::for_each_part(cpu.threads, cpu.threads, 1, [&](cpu::Part thread) { kernel(args, thread); });
  double sum = 0;
  for (const double of_thread : operations) sum += of_thread;
  return sum;
}

}  // namespace choir::kernels
#endif
