// Every file in configs/ reads and validates with each number of ranks and each override that its own comment names.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "framework/config/config.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

const fs::path root = CHOIR_SOURCE_DIR;

std::vector<fs::path> files() {
  std::vector<fs::path> result;
  for (const auto& entry : fs::directory_iterator(root / "configs")) result.push_back(entry.path());
  std::sort(result.begin(), result.end());
  return result;
}

// "#   mpirun -n 2 choir bench train configs/x.yaml train.threads=1"
struct Command {
  std::int64_t ranks = 1;
  std::string file;
  std::vector<std::string> overrides;
};

std::vector<Command> commands(const fs::path& file) {
  std::vector<Command> result;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line) && line.starts_with("#");) {
    Command command;
    std::istringstream words(line);
    for (std::string word, before; words >> word; before = word) {
      if (before == "-n" || before == "--ranks") command.ranks = std::stoll(word);
      if (word.ends_with("launch/train")) command.ranks = 0;  // it starts as many as the file needs
      if (word.starts_with("configs/")) command.file = word;
      if (!command.file.empty() && word.find('=') != std::string::npos) command.overrides.push_back(word);
    }
    if (!command.file.empty() && line.find("choir prepare") == std::string::npos) result.push_back(command);
  }
  return result;
}

TEST(Configs, TheNamedOnesAreThere) {
  for (const char* name : {"quickstart", "gpt2-124m", "gpt2-xl", "llama3-8b", "experts-small", "mixtral-8x7b",
                           "bench-small", "bench-gpt2", "encoder-kjv"})
    EXPECT_TRUE(fs::exists(root / "configs" / (std::string(name) + ".yaml"))) << name;
}

TEST(Configs, EveryFileValidatesWithTheCommandsInItsComment) {
  for (const fs::path& file : files()) {
    ASSERT_EQ(file.extension(), ".yaml") << file;
    const std::vector<Command> all = commands(file);
    EXPECT_FALSE(all.empty()) << file << " names no command that runs it";
    for (Command command : all) {
      EXPECT_EQ(root / command.file, file) << "the comment names another file";
      command.overrides.push_back("train.emulate_bf16=true");  // the processor at hand is not the file's problem
      const Config config = read_config(file.string(), command.overrides);
      const std::vector<Problem> problems = validate(config, command.ranks);
      EXPECT_TRUE(problems.empty()) << file << " on " << command.ranks << " ranks:\n" << describe(problems);
      EXPECT_EQ(parse_config(print(config), ""), config) << file;
    }
  }
}

TEST(Configs, TheModelsAreWhatTheirNamesSay) {
  const auto model = [](const char* name) { return read_config((root / "configs" / name).string()).model; };
  EXPECT_EQ(model("gpt2-124m.yaml"), ModelConfig{.feed_forward = {.width = 3072}});  // GPT-2 small is the default
  EXPECT_EQ(model("gpt2-xl.yaml").layers, 48);
  EXPECT_EQ(model("gpt2-xl.yaml").attention.heads, 25);
  EXPECT_EQ(model("gpt2-xl.yaml").head_width(), 64);
  EXPECT_EQ(model("llama3-8b.yaml").head_width(), 128);
  EXPECT_EQ(model("llama3-8b.yaml").kv_heads(), 8);
  EXPECT_EQ(model("llama3-8b.yaml").feed_forward_width(), 14336);
  EXPECT_EQ(model("quickstart.yaml").head_width(), 32);
}

}  // namespace
}  // namespace choir
