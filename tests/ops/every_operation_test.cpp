// The list of operations is complete: it names every function of framework/ops/*.h, and nothing else, and each entry
// and each table calls what it names.
#include "tests/ops/every_operation.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

namespace choir::tests {
namespace {

std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

/// The functions that `header` declares: they take a Runtime& first.
std::set<std::string> functions_in(const std::string& header) {
  static const std::regex function(R"re((?:^|\n)[A-Za-z][\w:<>]*[ &*]+(\w+)\(Runtime&)re");
  std::set<std::string> names;
  for (std::sregex_iterator it(header.begin(), header.end(), function), end; it != end; ++it) names.insert((*it)[1]);
  return names;
}

TEST(EveryOperation, IsInTheList) {
  std::set<std::string> declared, listed;
  for (const auto& entry : std::filesystem::directory_iterator(CHOIR_SOURCE_DIR "/framework/ops"))
    if (entry.path().extension() == ".h" && entry.path().filename() != "dispatch.h")  // what operations are made of
      declared.merge(functions_in(text_of(entry.path())));
  for (const Operation& operation : every_operation())
    EXPECT_TRUE(listed.insert(operation.name).second) << operation.name << " is in the list twice";
  EXPECT_GT(declared.size(), 30u);
  for (const std::string& name : declared)
    EXPECT_TRUE(listed.contains(name)) << "ops::" << name << " has no entry in tests/ops/every_operation.h";
  for (const std::string& name : listed)
    EXPECT_TRUE(declared.contains(name)) << "no header of framework/ops declares " << name;
}

TEST(EveryOperation, IsCalledByItsEntryAndByTheTestsThatNameIt) {
  const std::string folder = CHOIR_SOURCE_DIR "/tests/ops/";
  const std::string list = text_of(folder + "every_operation.h"), adjoints = text_of(folder + "adjoint_test.cpp"),
                    rules = text_of(folder + "operands_test.cpp");
  const auto calls = [](const std::string& text, const std::string& name) {
    return text.find("ops::" + name + "(") != std::string::npos;
  };
  for (const Operation& operation : every_operation()) {
    EXPECT_TRUE(calls(list, operation.name)) << operation.name;
    EXPECT_TRUE(!operation.why_no_adjoint.empty() || calls(adjoints, operation.name)) << operation.name;
    EXPECT_TRUE(!operation.why_no_rule.empty() || calls(rules, operation.name)) << operation.name;
  }
}

TEST(FunctionsInAHeader, AreFoundWhateverTheyReturn) {
  EXPECT_EQ(functions_in("Tensor a(Runtime&, int);\nvoid b(Runtime&);\n  inner(Runtime&);\n/// c(Runtime&)\n"
                         "template <class T>\nTensor d(Runtime& runtime) {\n"),
            (std::set<std::string>{"a", "b", "d"}));
}

}  // namespace
}  // namespace choir::tests
