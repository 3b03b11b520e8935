#include "framework/core/quantity.h"

namespace choir {

std::string quantity(std::int64_t count, const std::string& noun) {
  const bool hisses = noun.ends_with("s") || noun.ends_with("x") || noun.ends_with("ch") || noun.ends_with("sh");
  return std::to_string(count) + " " + noun + (count == 1 ? "" : hisses ? "es" : "s");
}

}  // namespace choir
