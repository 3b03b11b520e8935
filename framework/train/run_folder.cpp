#include "framework/train/run_folder.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "framework/core/error.h"

namespace choir {

void RunFolder::create() const {
  try {
    std::filesystem::create_directories(checkpoints());
    std::filesystem::create_directories(logs());
  } catch (const std::filesystem::filesystem_error& error) {
    throw ConfigError(Problem{.what = "train.folder = " + path + " cannot be created: " + error.code().message(),
                              .why = "a run keeps its checkpoints, logs and metrics there",
                              .fix = "set train.folder to a folder that you may write"});
  }
}

void truncate_metrics(const std::string& path, std::int64_t step) {
  std::ifstream in(path);
  if (!in) return;
  std::vector<std::string> kept;
  for (std::string line; std::getline(in, line);) {
    const auto entry = nlohmann::json::parse(line, nullptr, false);  // a torn last line is dropped
    if (entry.is_object() && entry.value("step", std::int64_t{0}) <= step) kept.push_back(line);
  }
  in.close();
  std::ofstream out(path, std::ios::trunc);
  for (const std::string& line : kept) out << line << '\n';
}

}  // namespace choir
