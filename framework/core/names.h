// Enumerators by name, as the configuration's files write them. The table of names stands beside its enum:
//
//   enum class Position { learned, rotary, none };
//   template <>
//   inline constexpr auto names<Position> = std::array{"learned", "rotary", "none"};
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>

namespace choir {

/// The names of the values of E, in their order. A use for a type without a table does not compile. The table may leave
/// out the last enumerators of E, if no configuration can ask for them.
template <class E>
inline constexpr auto names = nullptr;

template <class E>
requires std::is_enum_v<E>
constexpr const char* name_of(E value) { return names<E>.at(static_cast<std::size_t>(value)); }

/// The enumerator called `name`; nothing if there is none.
template <class E>
constexpr std::optional<E> value_named(std::string_view name) {
  for (std::size_t i = 0; i < names<E>.size(); ++i)
    if (name == names<E>[i]) return static_cast<E>(i);
  return std::nullopt;
}

}  // namespace choir
