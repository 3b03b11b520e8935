// Texts of lines, as people write them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace choir {

/// All bytes of a file. Throws ConfigError if it cannot be read.
std::string contents_of(const std::string& path);

/// Calls body(line, number) for each line that is not empty, without its end ("\n" or "\r\n"). Numbers begin at 1.
void for_each_line(std::string_view text, const std::function<void(std::string_view line, std::int64_t number)>& body);

}  // namespace choir
