// The configuration as text: YAML that can be read back, and the list of keys for --help and the README.
#include <fmt/format.h>

#include <algorithm>

#include "framework/config/table.h"

namespace choir {
namespace {

// "model.attention.heads" -> {"model", "attention", "heads"}
std::vector<std::string> parts(const std::string& key) {
  std::vector<std::string> result(1);
  for (const char c : key) {
    if (c == '.')
      result.emplace_back();
    else
      result.back() += c;
  }
  return result;
}

std::size_t shared_sections(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::size_t n = 0;
  while (n + 1 < a.size() && n + 1 < b.size() && a[n] == b[n]) ++n;
  return n;
}

}  // namespace

std::string print(const Config& config) {
  Config copy = config;  // rows point into what they can write
  std::string text;
  std::vector<std::string> open;
  for (const Field& field : table(copy)) {
    const std::vector<std::string> path = parts(field.key);
    for (std::size_t depth = shared_sections(open, path); depth + 1 < path.size(); ++depth)
      text += std::string(2 * depth, ' ') + path[depth] + ":\n";
    text += std::string(2 * (path.size() - 1), ' ') + path.back() + ": " + value_text(field.slot) + "\n";
    open = path;
  }
  return text;
}

std::vector<Difference> differences(const Config& left, const Config& right) {
  Config left_copy = left, right_copy = right;
  const std::vector<Field> left_rows = table(left_copy), right_rows = table(right_copy);
  std::vector<Difference> result;
  for (std::size_t i = 0; i < left_rows.size(); ++i) {
    Difference row{left_rows[i].key, value_text(left_rows[i].slot), value_text(right_rows[i].slot)};
    if (row.left != row.right) result.push_back(std::move(row));
  }
  return result;
}

std::vector<std::string> default_words(const std::string& section) {
  Config defaults;
  std::vector<std::string> words;
  for (const Field& field : table(defaults))
    if (field.key.starts_with(section + ".")) words.push_back(field.key + "=" + value_text(field.slot));
  return words;
}

std::string describe_keys() {
  Config defaults;
  const std::vector<Field> rows = table(defaults);
  std::size_t key_width = 0, type_width = 0, value_width = 0;
  for (const Field& field : rows) {
    key_width = std::max(key_width, field.key.size());
    type_width = std::max(type_width, type_text(field).size());
    value_width = std::max(value_width, value_text(field.slot).size());
  }
  const auto line = [&](const std::string& key, const std::string& type, const std::string& value,
                        const std::string& documentation) {
    return fmt::format("{:<{}}  {:<{}}  {:<{}}  {}\n", key, key_width, type, type_width, value, value_width,
                       documentation);
  };
  std::string text = line("key", "values", "default", "meaning");
  for (const Field& field : rows)
    text += line(field.key, type_text(field), value_text(field.slot), field.documentation);
  return text;
}

std::string markdown_keys() {
  const auto cell = [](const std::string& text) {  // a bar would end the cell, in backquotes too
    std::string result;
    for (const char c : text) result += c == '|' ? std::string("\\|") : std::string(1, c);
    return result;
  };
  Config defaults;
  std::string text = "| key | values | default | meaning |\n|---|---|---|---|\n";
  for (const Field& field : table(defaults))
    text += fmt::format("| `{}` | {} | `{}` | {} |\n", field.key, cell(type_text(field)), cell(value_text(field.slot)),
                        cell(field.documentation));
  return text;
}

}  // namespace choir
