// The limit of this processor's arithmetic: multiply-adds between registers, without any memory.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace choir::kernels {

/// Runs `rounds` of independent multiply-adds on every thread at once: of f32 in the widest vectors that the kernels
/// use, or of bf16 on tiles or in pairs, by Cpu::unit. Returns their floating-point operations: two for each
/// multiply-add.
double multiply_in_registers(Cpu, std::int64_t rounds);

}  // namespace choir::kernels
