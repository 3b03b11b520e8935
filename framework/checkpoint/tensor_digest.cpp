#include "framework/checkpoint/tensor_digest.h"

#include <bit>
#include <vector>

#include "kernels/digest.h"

namespace choir {
namespace {

struct Run {
  std::int64_t global, local, length;
};

// Runs short enough to share among threads and to stay in a core's cache between the sum and the copy.
std::vector<Run> runs_of(const Extent& extent, std::int64_t width) {
  constexpr std::int64_t longest = 16384;
  std::vector<Run> runs;
  for_each_common_run(extent, extent, width, [&](std::int64_t global, std::int64_t local, auto, std::int64_t length) {
    for (std::int64_t i = 0; i < length; i += longest)
      runs.push_back({global + i, local + i, std::min(longest, length - i)});
  });
  return runs;
}

}  // namespace

std::uint64_t digest_and_copy(const Piece& piece, float* copy) {
  const std::vector<Run> runs = runs_of(piece.extent(), width_of(piece.shape));
  std::uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) if (piece.count() > 65536)
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const Run run = runs[r];
    const float* data = piece.data + run.local;
    std::uint64_t part = 0;
    for (std::int64_t i = 0; i < run.length; ++i)
      part += kernels::mix(std::bit_cast<std::uint32_t>(data[i]), static_cast<std::uint64_t>(run.global + i));
    if (copy) std::copy_n(data, run.length, copy + run.local);
    sum += part;
  }
  return sum;
}

std::uint64_t digest_of(const Piece& piece) { return digest_and_copy(piece, nullptr); }

}  // namespace choir
