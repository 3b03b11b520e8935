#include "framework/train/timed_products.h"

#include <sstream>

namespace choir {

std::string ProductChoices::text() const {
  std::string text = place + "\n";
  for (const auto& [product, algorithm] : algorithms) text += product + ": " + algorithm + "\n";
  return text;
}

ProductChoices ProductChoices::parse(const std::string& text) {
  ProductChoices choices;
  std::istringstream lines(text);
  std::getline(lines, choices.place);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t colon = line.find(": ");
    if (colon == std::string::npos) return {};
    choices.algorithms[line.substr(0, colon)] = line.substr(colon + 2);
  }
  return choices;
}

}  // namespace choir
