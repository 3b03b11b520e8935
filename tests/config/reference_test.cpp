// The README's configuration reference is what the program reads: its table is markdown_keys(), word for word.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "framework/config/config.h"

namespace choir {
namespace {

TEST(Reference, TheReadmeListsEveryKeyAsTheProgramReadsIt) {
  std::ifstream file(CHOIR_SOURCE_DIR "/README.md");
  std::stringstream readme;
  readme << file.rdbuf();
  EXPECT_NE(readme.str().find(markdown_keys()), std::string::npos)
      << "put this table into README.md, below \"All keys of the configuration\":\n\n"
      << markdown_keys();
}

}  // namespace
}  // namespace choir
