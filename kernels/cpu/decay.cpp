#include "kernels/decay.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/parallel.h"

namespace choir::kernels {
namespace {

/// An element costs about as much as so many elements of plain arithmetic.
constexpr std::int64_t cost = 16;

}  // namespace

template <class A>
void decay(Cpu cpu, const Decay<A>& args) {
  const int parts = cpu::num_parts(cpu, args.rows, cost * args.heads);
  cpu::for_each_part(parts, args.rows, 1, [&](cpu::Part rows) {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const RowMap::Place at = args.map.place(row);
      const bool first =
          args.documents && args.documents[at.sequence * args.map.length + at.position].begin == at.position;
      for (std::int64_t i = row * args.heads; i < (row + 1) * args.heads; ++i) {
        const A z = args.z[i];
        args.log_decay[i] = first ? -std::numeric_limits<A>::infinity()
                                  : (std::fmin(z, A(0)) - std::log1p(std::exp(-std::abs(z)))) / A(args.root);
      }
    }
  });
}

template <class A>
void decay_gradient(Cpu cpu, const DecayGradient<A>& args) {
  cpu::for_each_part(cpu::num_parts(cpu, args.count, cost), args.count, 16, [&](cpu::Part part) {
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const A g = args.log_decay[i];
      args.dz[i] = std::isinf(g) ? A(0) : -args.dlog_decay[i] * std::expm1(A(args.root) * g) / A(args.root);
    }
  });
}

template void decay(Cpu, const Decay<float>&);
template void decay(Cpu, const Decay<double>&);
template void decay_gradient(Cpu, const DecayGradient<float>&);
template void decay_gradient(Cpu, const DecayGradient<double>&);

}  // namespace choir::kernels
