#include "kernels/digest.h"

#include <bit>

#include "kernels/cpu/parallel.h"

namespace choir::kernels {

static std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
static std::uint32_t bits_of(bf16 x) { return x.bits; }

template <class T>
void digest(Cpu cpu, const Digest<T>& args) {
  std::int64_t elements = 0;
  for (std::int64_t r = 0; r < args.num_ranges; ++r) elements += args.ranges[r].end - args.ranges[r].begin;
  const int parts = cpu::num_parts(cpu, args.num_ranges, elements / std::max<std::int64_t>(1, args.num_ranges));
  cpu::for_each_part(parts, args.num_ranges, 1, [&](cpu::Part part) {
    for (std::int64_t r = part.begin; r < part.end; ++r) {
      std::uint64_t sum = 0;
      for (std::int64_t i = args.ranges[r].begin; i < args.ranges[r].end; ++i)
        sum += mix(bits_of(args.x[i]), static_cast<std::uint64_t>(i));
      args.digests[r] = sum;
    }
  });
}

template void digest(Cpu, const Digest<float>&);
template void digest(Cpu, const Digest<bf16>&);

}  // namespace choir::kernels
