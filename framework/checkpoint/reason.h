// Why something failed, on one line.
#pragma once

#include <exception>
#include <string>

namespace choir {

/// The message of `failure` on one line, without the place in the program; `folder`/ is left out of paths.
std::string reason_of(const std::exception& failure, const std::string& folder = "");

}  // namespace choir
