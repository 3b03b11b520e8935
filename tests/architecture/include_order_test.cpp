// The rules of the tree that a file alone can break. Each is a function of a path and a text, so that the tests below
// can show it failing as well as walk the tree with it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace choir::tests {
namespace {

namespace fs = std::filesystem;
using Problems = std::vector<std::string>;

// A file includes only from its own folder or from folders to its left.
constexpr std::array order = {"kernels", "core", "ops",        "comm",   "parallel", "nn",    "model",
                              "optim",   "data", "checkpoint", "config", "train",    "launch"};
constexpr std::array top_folders = {"kernels", "framework", "launch", "tests", "examples"};
// Highway's headers are read once per instruction set; its own convention writes them in quotes.
constexpr std::array libraries_in_quotes = {"hwy"};
constexpr std::array words_that_say_nothing = {"common", "utils", "util", "misc", "helpers"};

template <std::size_t n>
bool contains(const std::array<const char*, n>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// "framework/comm/mesh.h" -> "comm", "kernels/cpu/matmul.cpp" -> "kernels"; what is in no folder of the order -> "".
std::string folder_of(const fs::path& path) {
  auto part = path.begin();
  if (part == path.end()) return "";
  if (*part == "framework" && ++part == path.end()) return "";
  return *part == "tests" || *part == "examples" || std::next(part) == path.end() ? "" : part->string();
}

int place_in_order(const std::string& folder) {
  const auto found = std::find(order.begin(), order.end(), folder);
  return found == order.end() ? -1 : static_cast<int>(found - order.begin());
}

Problems check_includes(const std::string& path, const std::string& text) {
  Problems problems;
  const std::string folder = folder_of(path);
  if (!folder.empty() && place_in_order(folder) < 0)
    return {path + " is in " + folder + ", which has no place in the order of folders"};
  static const std::regex include(R"re(^[ \t]*#[ \t]*include[ \t]*"([^"]+)")re", std::regex::multiline);
  for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it) {
    const std::string included = (*it)[1];
    const std::string top = fs::path(included).begin()->string();
    if (contains(libraries_in_quotes, top)) continue;
    if (!contains(top_folders, top)) {
      problems.push_back(path + " includes " + included + ", but includes are written from the root of the tree");
      continue;
    }
    const std::string other = folder_of(included);
    if (folder.empty()) continue;  // tests and examples may include anything
    if (other.empty())
      problems.push_back(path + " includes " + included + ", but nothing may include tests or examples");
    else if (place_in_order(other) < 0)
      problems.push_back(path + " includes " + included + ", which has no place in the order of folders");
    else if (place_in_order(other) > place_in_order(folder))
      problems.push_back(path + " includes " + included + ", but " + folder + " comes before " + other);
  }
  return problems;
}

Problems check_environment(const std::string& path, const std::string& text) {
  const bool below_launch = path.starts_with("kernels/") || path.starts_with("framework/");
  static const std::regex reads_environment(R"(\b(secure_getenv|getenv|setenv|putenv|environ)\b)");
  if (!below_launch || !std::regex_search(text, reads_environment)) return {};
  return {path + " reads the environment, but below launch/ state is passed, never found"};
}

Problems check_header(const std::string& path, const std::string& text) {
  Problems problems;
  if (!path.ends_with(".h")) return problems;
  if (!text.starts_with("//")) problems.push_back(path + " does not open with a comment that says what is here");
  // Or the guard that lets Highway read a header once per instruction set.
  static const std::regex once(R"(^#pragma once$|^#if defined\(\w+\) == defined\(HWY_TARGET_TOGGLE\))",
                               std::regex::multiline);
  if (!std::regex_search(text, once)) problems.push_back(path + " has no #pragma once");
  return problems;
}

Problems check_folder(const std::string& path) {
  if (!contains(words_that_say_nothing, fs::path(path).filename().string())) return {};
  return {path + ": a folder's name says what is in it"};
}

bool is_source(const fs::path& path) {
  return path.extension() == ".h" || path.extension() == ".cpp" || path.extension() == ".cu" ||
         path.extension() == ".cuh";
}

TEST(Architecture, TheTreeKeepsItsRules) {
  const fs::path root = CHOIR_SOURCE_DIR;
  int files = 0;
  for (const char* top : top_folders) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string path = entry.path().lexically_relative(root).generic_string();
      Problems problems;
      if (entry.is_directory()) {
        problems = check_folder(path);
      } else if (is_source(entry.path())) {
        ++files;
        std::ostringstream text;
        text << std::ifstream(entry.path()).rdbuf();
        for (const auto& check : {check_includes, check_environment, check_header})
          for (std::string& problem : check(path, text.str())) problems.push_back(std::move(problem));
      }
      for (const std::string& problem : problems) ADD_FAILURE() << problem;
    }
  }
  EXPECT_GT(files, 20) << "too few sources under " << root << ": is this the tree?";
}

TEST(Architecture, AnIncludeToTheRightIsNamed) {
  EXPECT_EQ(check_includes("framework/comm/mesh.cpp", "#include <mpi.h>\n#include \"framework/nn/linear.h\"\n"),
            Problems{"framework/comm/mesh.cpp includes framework/nn/linear.h, but comm comes before nn"});
  EXPECT_EQ(check_includes("kernels/cpu/matmul.cpp", "  #  include \"framework/core/dtype.h\""),
            Problems{"kernels/cpu/matmul.cpp includes framework/core/dtype.h, but kernels comes before core"});
  EXPECT_EQ(check_includes("framework/nn/a.h", "#include \"framework/comm/mesh.h\"\n#include \"kernels/types.h\"\n"),
            Problems{});
  EXPECT_EQ(check_includes("kernels/cpu/norm.cpp", "#include \"hwy/highway.h\"\n"), Problems{});
  EXPECT_EQ(check_includes("framework/nn/a.h", "// #include \"framework/train/step.h\"\n"), Problems{});
  EXPECT_EQ(check_includes("tests/nn/a_test.cpp", "#include \"launch/main.h\"\n"), Problems{});
}

TEST(Architecture, OtherWrongIncludesAreNamed) {
  EXPECT_EQ(check_includes("framework/nn/a.h", "#include \"b.h\"\n"),
            Problems{"framework/nn/a.h includes b.h, but includes are written from the root of the tree"});
  EXPECT_EQ(check_includes("framework/nn/a.h", "#include \"tests/support/b.h\"\n"),
            Problems{"framework/nn/a.h includes tests/support/b.h, but nothing may include tests or examples"});
  EXPECT_EQ(check_includes("framework/magic/a.h", ""),
            Problems{"framework/magic/a.h is in magic, which has no place in the order of folders"});
}

TEST(Architecture, TheOtherRulesCanFail) {
  EXPECT_EQ(check_environment("framework/core/a.cpp", "auto x = std::getenv(\"HOME\");").size(), 1u);
  EXPECT_EQ(check_environment("launch/a.cpp", "auto x = std::getenv(\"HOME\");").size(), 0u);
  EXPECT_EQ(check_header("kernels/a.h", "#pragma once\n").size(), 1u);
  EXPECT_EQ(check_header("kernels/a.h", "// What is here.\n").size(), 1u);
  EXPECT_EQ(check_header("kernels/a.h", "// What is here.\n#pragma once\n").size(), 0u);
  EXPECT_EQ(check_folder("framework/utils").size(), 1u);
  EXPECT_EQ(check_folder("framework/comm").size(), 0u);
}

}  // namespace
}  // namespace choir::tests
