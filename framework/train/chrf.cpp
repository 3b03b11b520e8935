#include "framework/train/chrf.h"

#include <algorithm>
#include <map>
#include <string>

namespace choir {
namespace {

bool is_space(char32_t c) {
  return c == 0x20 || (c >= 0x9 && c <= 0xd) || (c >= 0x1c && c <= 0x1f) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/// The code points of UTF-8, without white space; a byte that is no UTF-8 is one.
std::u32string characters(std::string_view text) {
  std::u32string result;
  while (!text.empty()) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const std::size_t length = byte(0) < 0x80 ? 1 : byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : byte(0) >= 0xc0 ? 2 : 0;
    bool whole = length > 0 && length <= text.size();
    for (std::size_t i = 1; whole && i < length; ++i) whole = (byte(i) & 0xc0) == 0x80;
    char32_t c = byte(0);
    if (whole && length > 1) {
      c = byte(0) & (0xffu >> (length + 1));
      for (std::size_t i = 1; i < length; ++i) c = c << 6 | (byte(i) & 0x3fu);
    }
    if (!is_space(c)) result.push_back(c);
    text.remove_prefix(whole ? length : 1);
  }
  return result;
}

std::map<std::u32string_view, std::int64_t> n_grams(std::u32string_view text, std::size_t n) {
  std::map<std::u32string_view, std::int64_t> counts;
  for (std::size_t i = 0; i + n <= text.size(); ++i) ++counts[text.substr(i, n)];
  return counts;
}

}  // namespace

void ChrF::add(std::string_view hypothesis, std::string_view reference) {
  const std::u32string of_hypothesis = characters(hypothesis), of_reference = characters(reference);
  for (std::size_t n = 1; n <= counts_.size(); ++n) {
    const auto references = n_grams(of_reference, n);
    Counts& counts = counts_[n - 1];
    for (const auto& [gram, count] : references) counts.reference += count;
    if (references.empty()) continue;  // then n-grams of the hypothesis do not count
    for (const auto& [gram, count] : n_grams(of_hypothesis, n)) {
      counts.hypothesis += count;
      const auto found = references.find(gram);
      if (found != references.end()) counts.shared += std::min(count, found->second);
    }
  }
}

double ChrF::score() const {
  double precision = 0, recall = 0;
  int orders = 0;
  for (const auto& [hypothesis, reference, shared] : counts_) {
    if (hypothesis == 0 || reference == 0) continue;
    precision += static_cast<double>(shared) / static_cast<double>(hypothesis);
    recall += static_cast<double>(shared) / static_cast<double>(reference);
    ++orders;
  }
  if (precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  return 100 * 5 * precision * recall / (4 * precision + recall);
}

}  // namespace choir
