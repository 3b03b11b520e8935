// One row per key of the configuration: reading, printing, --help, differences() and the limits of validate() all come
// from these rows, so that they cannot disagree. A row points into one Config; rows of two Configs have the same order.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "framework/config/config.h"

namespace choir {

/// A value from a fixed list: an enumerator, by its place in the list of names.
struct Choice {
  template <class E>
  requires std::is_enum_v<E> Choice(E* slot)
      : names(choir::names<E>.begin(), choir::names<E>.end()),
        get([slot] { return static_cast<std::size_t>(*slot); }),
        set([slot](std::size_t place) { *slot = static_cast<E>(place); }) {}

  std::vector<std::string> names;
  std::function<std::size_t()> get;
  std::function<void(std::size_t)> set;
};

/// Where a value is stored. The type of the value is the type of the pointer.
using Slot = std::variant<std::int64_t*, std::uint64_t*, double*, bool*, std::string*, std::array<double, 2>*,
                          std::vector<std::int64_t>*, Choice>;

/// The values that are allowed whatever the other keys are. validate() checks what depends on other keys.
struct Limits {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above_least = false;  ///< `least` itself is left out
  bool below_most = false;   ///< `most` itself is left out
  std::string why{};         ///< why a number beyond `most` is not available
};

struct Field {
  std::string key;  ///< "model.attention.heads"
  Slot slot;
  std::string documentation;  ///< one line
  Limits limits{};
};

/// All keys, in the order in which they are printed. Valid until `config` is moved or destroyed.
std::vector<Field> table(Config& config);

/// The keys whose values are outside the limits of their rows, with a problem for each.
struct WrongValue {
  std::string key;
  Problem problem;
};
std::vector<WrongValue> values_outside_limits(Config config);

/// The value as YAML on one line: 12, 6e-04, true, "a b", [0.9, 0.95]. Doubles have the fewest digits from which the
/// same value is read back.
std::string value_text(const Slot& slot);

/// What the key takes: "integer >= 1", "number in [0, 1)", "gelu | gelu_erf | swiglu", "text".
std::string type_text(const Field& field);

/// `text` in double quotes, escaped as YAML requires. Also used to show a user's bytes on a terminal.
std::string quote(const std::string& text);

}  // namespace choir
