// Whether bf16 can be multiplied on the tile unit of this processor (Intel AMX; kernels/cpu/tile.h).
#pragma once

#include <cstdint>

namespace choir::kernels::cpu {

enum class Tiles : std::uint8_t {
  missing,  ///< no tiles with bf16 products beside AVX-512 with bf16, or Linux does not let this process use them
  wrong,    ///< a product on them is not what it must be
  right,
};

/// The first call asks the operating system, and multiplies small integers on the tiles: their products are exact, so
/// that each bit can be compared.
Tiles examine_tiles();

/// Why tiles are not used: "this processor has no tiles, ...".
const char* describe(Tiles);

}  // namespace choir::kernels::cpu
