// A 64-bit digest of a sequence of integers: the sum over elements of a mix of (index, value).
//
// The sum does not depend on the pieces, the number of threads or the order in which the elements are added, as each is
// added with its index. It detects damage; it does not protect against an adversary. The mix is the finalizer of
// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace choir {

class Digest {
 public:
  /// Adds the next values; the first value added has index 0.
  template <class T>
  void add(std::span<const T> values) {
    for (const T value : values) sum_ += mix(++count_ * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(value));
  }
  void add(std::string_view bytes) {
    add(std::span(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
  }

  std::uint64_t value() const { return sum_; }
  /// Sixteen hexadecimal digits.
  std::string text() const { return fmt::format("{:016x}", sum_); }

 private:
  static constexpr std::uint64_t mix(std::uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
  }

  std::uint64_t sum_ = 0, count_ = 0;
};

}  // namespace choir
