// YAML to Config. yaml-cpp gives a tree of nodes with line numbers; the table says what each key takes. Every problem
// of the file and of the overrides is collected, then thrown at once.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/anchor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "framework/config/table.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t largest_file = 1 << 20;  // bytes; a configuration has a few thousand

// Where a text came from, to begin a message with: "run.yaml:3: " or "override train.steps=x: ".
struct Source {
  std::string name;
  bool is_file = true;

  std::string at(const YAML::Mark& mark) const {
    if (!is_file) return "override " + name + ": ";
    if (mark.is_null()) return name + ": ";
    return fmt::format("{}:{}: ", name, mark.line + 1);
  }
};

std::string shortened(const std::string& text) {
  constexpr std::size_t most = 60;
  if (text.size() <= most) return quote(text);
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a UTF-8 character
  return quote(text.substr(0, end)) + "...";
}

// A scalar as the user wrote it, on a terminal: keys and numbers bare, anything else quoted.
std::string shown(const std::string& text) {
  const auto bare = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_.+-", c); };
  return !text.empty() && text.size() <= 60 && std::all_of(text.begin(), text.end(), bare) ? text : shortened(text);
}

// Bytes of the UTF-8 character that `text` begins with, by RFC 3629: no overlong forms, no surrogates, nothing beyond
// U+10FFFF. 0: it does not begin with one.
std::size_t character_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4 || !follows(1)) return 0;
  if (first < 0xe0) return 2;
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || !follows(2)) return 0;
  if (first < 0xf0) return 3;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f) || !follows(3)) return 0;
  return 4;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t bytes = character_bytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

bool is_plain_scalar(const YAML::Node& node) { return node.IsScalar() && node.Tag() == "?"; }

std::string found(const YAML::Node& node) {
  if (node.IsMap()) return "a section";
  if (node.IsSequence()) return "a list";
  if (!node.IsScalar()) return "empty";
  return is_plain_scalar(node) ? shown(node.Scalar()) : "the text " + shortened(node.Scalar());
}

template <class T>
std::optional<T> number(const std::string& text) {
  const std::size_t sign = text.size() > 1 && text[0] == '+' && text[1] != '-' ? 1 : 0;  // from_chars refuses "+1"
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + sign, end, value);
  if (error != std::errc{} || stop != end) return std::nullopt;
  if constexpr (std::is_floating_point_v<T>)
    if (!std::isfinite(value)) return std::nullopt;
  return value;
}

// The value that the user probably meant by `node`, written as the field takes it; empty if that is not clear.
struct Suggestion {
  const YAML::Node& node;

  template <class Integer>
  std::string integer() const {
    if (!node.IsScalar()) return "";
    std::string digits = node.Scalar();
    std::erase_if(digits, [](char c) { return c == '_' || c == ','; });
    if (const auto whole = number<Integer>(digits)) return fmt::format("{}", *whole);
    const auto value = number<double>(digits);
    const bool whole = value && *value == std::floor(*value) && *value >= 0 && *value < 9e15;  // exact in a double
    return whole ? fmt::format("{}", static_cast<std::int64_t>(*value)) : "";
  }
  std::string operator()(const std::int64_t*) const { return integer<std::int64_t>(); }
  std::string operator()(const std::uint64_t*) const { return integer<std::uint64_t>(); }
  std::string operator()(const double*) const {
    return node.IsScalar() && number<double>(node.Scalar()) ? node.Scalar() : "";
  }
  std::string operator()(const bool*) const {
    if (!node.IsScalar()) return "";
    std::string lower;
    for (const char c : node.Scalar()) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    for (const char* yes : {"yes", "on", "y", "1", "true"})
      if (lower == yes) return "true";
    for (const char* no : {"no", "off", "n", "0", "false"})
      if (lower == no) return "false";
    return "";
  }
  std::string operator()(const std::string*) const { return ""; }
  std::string operator()(const std::array<double, 2>*) const { return ""; }
  std::string operator()(const std::vector<std::int64_t>*) const { return ""; }
  std::string operator()(const Choice&) const { return ""; }
};

// Stores the value of `node`, or returns false and leaves the slot alone.
struct Store {
  const YAML::Node& node;

  template <class T>
  bool store_number(T* slot) const {
    if (!is_plain_scalar(node)) return false;
    const auto value = number<T>(node.Scalar());
    if (value) *slot = *value;
    return value.has_value();
  }
  bool operator()(std::int64_t* slot) const { return store_number(slot); }
  bool operator()(std::uint64_t* slot) const { return store_number(slot); }
  bool operator()(double* slot) const { return store_number(slot); }
  bool operator()(bool* slot) const {
    if (!is_plain_scalar(node) || (node.Scalar() != "true" && node.Scalar() != "false")) return false;
    *slot = node.Scalar() == "true";
    return true;
  }
  bool operator()(std::string* slot) const {
    if (!node.IsScalar() && !node.IsNull()) return false;
    *slot = node.IsNull() ? "" : node.Scalar();  // "folder:" with nothing behind it is the empty text
    return true;
  }
  bool operator()(std::array<double, 2>* slot) const {
    if (!node.IsSequence() || node.size() != slot->size()) return false;
    std::array<double, 2> values{};
    for (std::size_t i = 0; i < values.size(); ++i)
      if (const YAML::Node item = node[i]; !Store{item}(&values[i])) return false;
    *slot = values;
    return true;
  }
  bool operator()(std::vector<std::int64_t>* slot) const {
    if (!node.IsSequence()) return false;
    std::vector<std::int64_t> values(node.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      if (const YAML::Node item = node[i]; !Store{item}(&values[i])) return false;
    *slot = values;
    return true;
  }
  bool operator()(const Choice& choice) const {
    std::string name;
    if (!(*this)(&name)) return false;
    const auto place = std::find(choice.names.begin(), choice.names.end(), name);
    if (place == choice.names.end()) return false;
    choice.set(static_cast<std::size_t>(place - choice.names.begin()));
    return true;
  }
};

// `name` is not one of the names that `field` takes.
Problem unknown_name(const Field& field, std::string name) {
  const std::vector<std::string>& names = std::get<Choice>(field.slot).names;
  const std::string given = fmt::format("{} = {}", field.key, value_text(&name));
  const std::string set = fmt::format("set {} to {}", field.key, fmt::join(names, " or "));
  const std::string near = nearest(name, names);
  return {given + " is not a known value",
          fmt::format("{} is {}: {}", field.key, type_text(field), field.documentation),
          near.empty() ? set : fmt::format("did you mean {}?", near)};
}

std::string last_part(const std::string& key) { return key.substr(key.rfind('.') + 1); }

class Reader {
 public:
  explicit Reader(Config& config) : table_(table(config)) {}

  void read_file_text(const std::string& text, const Source& source);
  void read_override(const std::string& text);
  void add(Problem problem) { problems_.push_back(std::move(problem)); }
  std::vector<Problem> problems() const;

 private:
  const Field* find(const std::string& key) const;
  bool is_section(const std::string& key) const;
  std::optional<YAML::Node> parse(const std::string& text, const Source& source);
  void read_section(const YAML::Node& map, const std::string& section, const Source& source);
  void read_value(const std::string& key, const YAML::Node& value, const YAML::Mark& mark, const Source& source);
  Problem unknown_key(const std::string& key, const YAML::Mark& mark, const Source& source) const;

  std::vector<Field> table_;
  std::vector<Problem> problems_;
};

// A file that is not a configuration can have thousands.
std::vector<Problem> Reader::problems() const {
  constexpr std::size_t most = 20;
  if (problems_.size() <= most) return problems_;
  std::vector<Problem> first(problems_.begin(), problems_.begin() + most);
  first.push_back(
      {fmt::format("and {} more problems", problems_.size() - most), "only the first are shown", "fix these first"});
  return first;
}

const Field* Reader::find(const std::string& key) const {
  for (const Field& field : table_)
    if (field.key == key) return &field;
  return nullptr;
}

bool Reader::is_section(const std::string& key) const {
  return std::any_of(table_.begin(), table_.end(), [&](const Field& f) { return f.key.starts_with(key + "."); });
}

// The keys and sections directly inside `section` ("" is the whole file), by their last name.
std::vector<std::string> names_inside(const std::vector<Field>& table, const std::string& section) {
  const std::string prefix = section.empty() ? "" : section + ".";
  std::vector<std::string> names;
  for (const Field& field : table) {
    if (!field.key.starts_with(prefix)) continue;
    std::string name = field.key.substr(prefix.size(), field.key.find('.', prefix.size()) - prefix.size());
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  }
  return names;
}

// All keys and sections called `name`, in any section: "kind" is in five sections.
std::vector<std::string> keys_called(const std::vector<Field>& table, const std::string& name) {
  std::vector<std::string> keys;
  for (const Field& field : table) {
    for (std::size_t end = field.key.find('.');; end = field.key.find('.', end + 1)) {
      std::string key = field.key.substr(0, end);
      if (last_part(key) == name && std::find(keys.begin(), keys.end(), key) == keys.end())
        keys.push_back(std::move(key));
      if (end == std::string::npos) break;
    }
  }
  return keys;
}

Problem Reader::unknown_key(const std::string& key, const YAML::Mark& mark, const Source& source) const {
  std::size_t begin = 0;  // of the first name in `key` that is not a section
  for (std::size_t dot = key.find('.'); dot != std::string::npos && is_section(key.substr(0, dot));
       dot = key.find('.', dot + 1))
    begin = dot + 1;
  const std::string section = begin == 0 ? "" : key.substr(0, begin - 1);
  const std::string name = key.substr(begin, key.find('.', begin) - begin);
  const std::string place = section.empty() ? "the configuration" : section;
  const std::vector<std::string> siblings = names_inside(table_, section);

  const bool is_value = find(key.substr(0, begin + name.size())) != nullptr;
  std::vector<std::string> meant = keys_called(table_, last_part(key));  // right name, wrong section
  if (meant.empty() && is_value) meant = {key.substr(0, begin + name.size())};
  if (meant.empty()) {
    std::vector<std::string> names = siblings;  // first, so that they win if others are as near
    for (const Field& field : table_) names.push_back(last_part(field.key));
    const std::string near = nearest(name, names);
    const bool is_sibling = std::find(siblings.begin(), siblings.end(), near) != siblings.end();
    meant = is_sibling ? std::vector{section.empty() ? near : section + "." + near} : keys_called(table_, near);
  }
  return {source.at(mark) + "unknown key " + shown(key),
          is_value ? fmt::format("{} in {} is a value, not a section", name, place)
                   : fmt::format("{} has no key {}", place, shown(name)),
          meant.empty() ? fmt::format("the keys of {} are {}", place, fmt::join(siblings, ", "))
                        : fmt::format("did you mean {}?", fmt::join(meant, " or "))};
}

void Reader::read_value(const std::string& key, const YAML::Node& value, const YAML::Mark& mark, const Source& source) {
  if (is_section(key)) {
    if (value.IsMap()) return read_section(value, key, source);
    add({source.at(mark) + fmt::format("{} is {}", key, found(value)),
         fmt::format("{} is a section: keys with values ({})", key, fmt::join(names_inside(table_, key), ", ")),
         value.IsNull()
             ? "write its keys below it, indented by two spaces, or delete the line"
             : fmt::format("write {}: {{key: value, ...}}, or one indented key: value per line", last_part(key))});
    return;
  }
  const Field* field = find(key);
  if (!field) return add(unknown_key(key, mark, source));
  if (value.IsScalar() && !is_utf8(value.Scalar()))
    return add({source.at(mark) + key + " is not UTF-8",
                "the configuration is printed as YAML and saved in checkpoints, which hold UTF-8 only",
                "convert the text to UTF-8, or rename the file that it names"});
  if (std::visit(Store{value}, field->slot)) return;
  if (std::string name; std::holds_alternative<Choice>(field->slot) && Store{value}(&name)) {
    Problem problem = unknown_name(*field, std::move(name));
    if (source.is_file) problem.what = source.at(mark) + problem.what;  // it is the words of an override
    return add(std::move(problem));
  }

  const std::string meant = std::visit(Suggestion{value}, field->slot);
  const std::string example = meant.empty() ? value_text(field->slot) : meant;
  const std::string written = source.is_file ? last_part(key) + ": " + example : key + "=" + example;
  add({source.at(mark) + fmt::format("{} is {}", key, found(value)),
       fmt::format("{} takes {}: {}", key, type_text(*field), field->documentation),
       fmt::format("{} {}", meant.empty() ? "give it such a value, as in" : "write", written)});
}

void Reader::read_section(const YAML::Node& map, const std::string& section, const Source& source) {
  std::map<std::string, int> first_line;
  for (const auto& entry : map) {
    const YAML::Mark mark = entry.first.Mark();
    if (!entry.first.IsScalar()) {
      add({source.at(mark) +
               fmt::format("a key of {} is {}", section.empty() ? "the configuration" : section, found(entry.first)),
           "a key is a name", "write name: value"});
      continue;
    }
    const std::string key = section.empty() ? entry.first.Scalar() : section + "." + entry.first.Scalar();
    const auto [earlier, is_new] = first_line.emplace(key, mark.line + 1);
    if (!is_new) {
      add({source.at(mark) + shown(key) + " is given twice",
           source.is_file ? fmt::format("it is also on line {}", earlier->second) : "a key has one value",
           "delete one of the two"});
      continue;
    }
    // A dot inside a name would look like the section of an override.
    if (entry.first.Scalar().find('.') != std::string::npos)
      add({source.at(mark) + "unknown key " + shown(key), "in YAML a dot is part of the name",
           "write sections inside each other, or give it as an override on the command line"});
    else
      read_value(key, entry.second, mark, source);
  }
}

// Where the second document of `text` begins, if there is one. YAML::Load() reads the first and ignores the others;
// YAML::LoadAll() of yaml-cpp 0.7 does not return on some texts ("{a: 1}, b").
std::optional<YAML::Mark> second_document(const std::string& text) {
  struct Starts : YAML::EventHandler {
    std::vector<YAML::Mark> marks;
    void OnDocumentStart(const YAML::Mark& mark) override { marks.push_back(mark); }
    void OnDocumentEnd() override {}
    void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
    void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
    void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
    void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
    void OnSequenceEnd() override {}
    void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
    void OnMapEnd() override {}
  } starts;
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  if (!parser.HandleNextDocument(starts) || !parser.HandleNextDocument(starts)) return std::nullopt;
  return starts.marks.at(1);
}

// yaml-cpp's own message, or a better one if it does not say what happened.
std::string reason(const YAML::Exception& error) {
  if (error.msg == YAML::ErrorMsg::DOC_IN_SCALAR) return "a quote opened above is not closed";
  if (error.msg == YAML::ErrorMsg::BAD_FILE) return "it is nested too deeply";
  return error.msg;
}

// The one document in `text`, or nothing and a problem.
std::optional<YAML::Node> Reader::parse(const std::string& text, const Source& source) {
  const std::string begin = source.at(YAML::Mark::null_mark());
  if (text.size() > largest_file) {
    add({begin + fmt::format("more than {} bytes", largest_file), "no configuration is that long",
         "give the name of a YAML file"});
    return std::nullopt;
  }
  if (const std::size_t zero = text.find('\0'); zero != std::string::npos) {
    add({begin + fmt::format("not a text file: byte {} is zero", zero), "a configuration is YAML in UTF-8",
         "give the name of a YAML file"});
    return std::nullopt;
  }
  // With the mark of a document's end yaml-cpp reports a quote that is not closed; at the end of a file it does not.
  const std::string ended = text + (text.ends_with('\n') ? "...\n" : "\n...\n");
  try {
    if (const std::optional<YAML::Mark> second = second_document(ended)) {
      add({source.at(*second) + "more text after the end of the configuration",
           "a configuration is one YAML document; a line '---' or '...', or what follows a closing bracket, begins "
           "another",
           "delete that line, or check the brackets"});
      return std::nullopt;
    }
    return YAML::Load(ended);
  } catch (const YAML::Exception& error) {
    const std::string place = !source.is_file || error.mark.is_null()
                                  ? source.at(error.mark)
                                  : fmt::format("{}:{}:{}: ", source.name, error.mark.line + 1, error.mark.column + 1);
    add({place + "not valid YAML: " + reason(error), "the reader stopped at this place",
         source.is_file ? "check indentation (spaces, no tabs), quotes and brackets here and above"
                        : "put the value in quotes, or close its quotes and brackets"});
    return std::nullopt;
  }
}

void Reader::read_file_text(const std::string& text, const Source& source) {
  const std::optional<YAML::Node> root = parse(text, source);
  if (!root) return;
  if (root->IsMap()) return read_section(*root, "", source);
  const std::string sections = fmt::format("{}", fmt::join(names_inside(table_, ""), ", "));
  add({source.at(YAML::Mark::null_mark()) + (root->IsNull() ? "the file is empty" : "the file is " + found(*root)),
       "a configuration is a YAML map of the sections " + sections, "begin with a line such as model:"});
}

void Reader::read_override(const std::string& text) {
  const Source source{shown(text) == text ? text : text.size() <= 60 ? text : shortened(text), false};
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    return add({"override " + shortened(text) + " is not of the form section.key=value", "overrides set one key each",
                "write for example train.steps=100"});
  const std::string key = text.substr(0, equals);
  const std::string value = text.substr(equals + 1);
  // Text is taken as it is: the shell has removed the user's quotes, and any that are left are meant.
  const Field* field = find(key);
  if (field && (std::holds_alternative<std::string*>(field->slot) || std::holds_alternative<Choice>(field->slot)))
    return read_value(key, YAML::Node(value), YAML::Mark::null_mark(), source);
  if (const std::optional<YAML::Node> node = parse(value, source))
    read_value(key, *node, YAML::Mark::null_mark(), source);
}

// "quickstart.yaml, quick.yaml": up to three files of `folder` with names like `name`, else its first YAML files.
std::string names_like(const std::string& name, const fs::path& folder) {
  std::vector<std::string> names, near;
  std::error_code ignored;  // a folder that cannot be listed has no names to offer
  for (fs::directory_iterator entry(folder, ignored), end; entry != end; entry.increment(ignored))
    if (const fs::path& path = entry->path(); path.extension() == ".yaml" || path.extension() == ".yml")
      if (path.filename() != name) names.push_back(path.filename().string());
  std::sort(names.begin(), names.end());
  while (near.size() < 3) {
    const std::string next = nearest(name, names);
    if (next.empty()) break;
    near.push_back(next);
    std::erase(names, next);
  }
  if (near.empty()) near.assign(names.begin(), names.begin() + std::min<std::ptrdiff_t>(10, std::ssize(names)));
  return fmt::format("{}", fmt::join(near, ", "));
}

Problem unreadable(const std::string& file, const std::string& reason) {
  const fs::path path(file);
  std::error_code ignored;
  fs::path folder = fs::is_directory(path, ignored) ? path : path.parent_path();
  if (folder.empty()) folder = ".";
  Problem problem{"cannot read the configuration file " + file, reason, "check the path"};
  if (const fs::path target = fs::read_symlink(path, ignored); !target.empty())
    problem.why = "it is a link to " + target.string() + ": " + reason;
  if (!fs::is_directory(folder, ignored)) {
    problem.why = "there is no folder " + folder.string();
  } else if (const std::string names = names_like(path.filename().string(), folder); !names.empty()) {
    problem.fix = fmt::format("in {} there is {}", folder.string(), names);
  }
  return problem;
}

std::string file_text(const std::string& file) {
  std::error_code ignored;
  if (fs::is_directory(file, ignored)) throw ConfigError(unreadable(file, "it is a folder"));
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw ConfigError(unreadable(file, std::strerror(errno)));
  std::string text(largest_file + 1, '\0');  // one more than allowed, so that parse() sees that it is too much
  stream.read(text.data(), std::ssize(text));
  text.resize(static_cast<std::size_t>(stream.gcount()));
  return text;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& name, const std::vector<std::string>& overrides) {
  Config config;
  Reader reader(config);
  reader.read_file_text(text, {name.empty() ? "configuration" : name});
  for (const std::string& override : overrides) reader.read_override(override);
  std::vector<Problem> problems = reader.problems();
  if (problems.empty()) return config;
  // What was not read has its default, which is within its limits: these are mistakes of their own.
  for (WrongValue& wrong : values_outside_limits(config)) problems.push_back(std::move(wrong.problem));
  throw ConfigError(problems);
}

Config read_config(const std::string& file, const std::vector<std::string>& overrides) {
  return file.empty() ? parse_config("{}", file, overrides) : parse_config(file_text(file), file, overrides);
}

}  // namespace choir
