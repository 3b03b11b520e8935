// What the reader says about a text: the whole message, or "" if it reads.
#pragma once

#include <string>
#include <vector>

#include "framework/config/config.h"

namespace choir::tests {

/// parse_config() as "run.yaml".
inline std::string problems_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(text, "run.yaml", overrides);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace choir::tests
