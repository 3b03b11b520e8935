#include "framework/checkpoint/reason.h"

namespace choir {

static void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

std::string reason_of(const std::exception& failure, const std::string& folder) {
  std::string text = failure.what();
  if (const std::size_t at = text.find("\n  at:  "); at != std::string::npos) text.resize(at);
  replace_all(text, "\n  why: ", ": ");
  replace_all(text, "\n  fix: ", "; ");
  replace_all(text, "\n", "; ");
  if (!folder.empty()) replace_all(text, folder + "/", "");
  return text;
}

}  // namespace choir
