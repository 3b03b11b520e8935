// Numbers of things, in the grammar of English.
#pragma once

#include <cstdint>
#include <string>

namespace choir {

/// "1 document", "2 documents", "0 micro-batches". `noun` is regular: it takes -s, or -es after s, x, ch and sh.
std::string quantity(std::int64_t count, const std::string& noun);

}  // namespace choir
