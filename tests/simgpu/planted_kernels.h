// Runs one of the planted kernels (planted/*.cu) in the interpreter, without the run-time.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "tests/simgpu/memory_checker.h"
#include "tests/simgpu/ptx.h"

namespace choir::simgpu::tests {

inline std::string planted_ptx(const std::string& file, int target) {
  std::ifstream stream(std::string(CHOIR_PLANTED_PTX) + "/" + file + "_" + std::to_string(target) + ".ptx");
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Memory that is registered with the checker.
template <class T>
class CheckedArray {
 public:
  /// Initialised if values are given.
  CheckedArray(MemoryChecker& checker, std::vector<T> values) : CheckedArray(checker, std::move(values), true) {}
  CheckedArray(MemoryChecker& checker, std::size_t count) : CheckedArray(checker, std::vector<T>(count), false) {}
  ~CheckedArray() { checker_.remove_allocation(values_.data()); }
  CheckedArray(const CheckedArray&) = delete;
  CheckedArray& operator=(const CheckedArray&) = delete;

  T* data() { return values_.data(); }
  const std::vector<T>& values() const { return values_; }

 private:
  CheckedArray(MemoryChecker& checker, std::vector<T> values, bool initialised)
      : checker_(checker), values_(std::move(values)) {
    const auto bytes = static_cast<std::int64_t>(values_.size() * sizeof(T));
    checker_.add_allocation(values_.data(), bytes);
    if (initialised) checker_.mark_initialised(values_.data(), bytes);
  }

  MemoryChecker& checker_;
  std::vector<T> values_;
};

/// Seeds of the order: 0 as numbered, the others random; whole warps, but with 1 and 65 single lanes.
inline constexpr unsigned seeds[] = {0, 1, 2, 3, 65};

/// Every test runs for each target and in several orders of threads and blocks.
class PlantedKernels : public ::testing::TestWithParam<int> {
 protected:
  template <class... Arguments>
  LaunchResult launch(const PtxModule& kernels, const std::string& name, Launch how, Arguments... arguments) {
    std::vector<std::byte> packed(256);
    std::size_t i = 0;
    const auto parameters = kernels.parameters(name);
    const auto add = [&](const auto& argument) {
      EXPECT_EQ(parameters.at(i).second, static_cast<std::int64_t>(sizeof argument)) << name << ", argument " << i;
      std::memcpy(packed.data() + parameters.at(i++).first, &argument, sizeof argument);
    };
    (add(arguments), ...);
    how.parameters = packed;
    return const_cast<PtxModule&>(kernels).launch(name, how, checker);
  }

  MemoryChecker checker;
};

inline std::string describe(const std::vector<Finding>& findings) {
  std::ostringstream text;
  for (const Finding& finding : findings) text << finding.kind << ": " << finding.text << "\n";
  return text.str();
}

}  // namespace choir::simgpu::tests
