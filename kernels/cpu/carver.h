// Cuts one workspace into arrays that begin at multiples of 64 bytes; from null it only counts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace choir::kernels::cpu {

class Carver {
 public:
  explicit Carver(void* start) : start_(static_cast<std::byte*>(start)) {}

  template <class A>
  A* take(std::int64_t elements) {
    std::byte* here = start_ ? start_ + bytes_ : nullptr;
    bytes_ += (elements * static_cast<std::int64_t>(sizeof(A)) + 63) / 64 * 64;
    return reinterpret_cast<A*>(here);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* start_;
  std::int64_t bytes_ = 0;
};

}  // namespace choir::kernels::cpu
