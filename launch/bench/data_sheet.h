// What the data sheets of GPUs say, since others divide by it: clocks differ from one GPU to the next.
#pragma once

#include <string_view>
#include <utility>

namespace choir {

/// bf16 operations a second on dense tensor cores, of a GPU by the name that its driver gives; 0: not in the table.
constexpr double bf16_of_data_sheet(std::string_view gpu) {
  constexpr std::pair<std::string_view, double> sheets[] = {
      {"A100", 312e12},   {"H100 PCIe", 756e12}, {"H100 NVL", 835.5e12}, {"H100", 989.4e12},  {"GH200", 989.4e12},
      {"H200", 989.4e12}, {"GB200", 2500e12},    {"B200", 2250e12},      {"L40S", 362.05e12},
  };
  for (const auto& [name, rate] : sheets)
    if (gpu.find(name) != std::string_view::npos) return rate;
  return 0;
}

}  // namespace choir
