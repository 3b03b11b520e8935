// How attention gets the keys and values of positions that other ranks of the context axis hold
// (framework/parallel/context.h).
#pragma once

#include <array>
#include <cstdint>

#include "framework/core/names.h"

namespace choir {

enum class ContextKind : std::uint8_t { automatic, ring, heads, gather };
template <>
inline constexpr auto names<ContextKind> = std::array{"auto", "ring", "heads", "gather"};

}  // namespace choir
