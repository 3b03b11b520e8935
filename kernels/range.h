// Elements of a buffer that kernels are told of by a table.
#pragma once

#include <cstdint>

namespace choir::kernels {

/// Elements [begin, end) of a buffer.
struct Range {
  std::int64_t begin, end;
};

}  // namespace choir::kernels
