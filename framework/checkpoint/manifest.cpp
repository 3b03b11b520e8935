#include "framework/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "framework/core/error.h"
#include "framework/data/digest.h"

namespace choir {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view seal_key = "\"end\": \"";
constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();

std::string hex(std::uint64_t digest) { return fmt::format("{:016x}", digest); }

[[noreturn]] void reject(std::string what) { throw ConfigError({.what = std::move(what)}); }

std::string shortened(const Json& json) {
  std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// A value inside the manifest, with its place in it for messages such as "tensors[3].parts[0].rank: ...".
class Node {
 public:
  Node(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  Node operator[](const char* key) const {
    if (!json_.is_object()) expected("an object");
    const auto found = json_.find(key);
    if (found == json_.end()) reject(fmt::format("manifest.json: {}'{}' is missing", prefix(), key));
    return {*found, prefix() + key};
  }
  std::vector<Node> array(std::size_t length = 0) const {
    if (!json_.is_array() || (length > 0 && json_.size() != length))
      expected(length > 0 ? fmt::format("a list of {}", length) : "a list");
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < json_.size(); ++i) nodes.emplace_back(json_[i], fmt::format("{}[{}]", where_, i));
    return nodes;
  }
  std::int64_t integer(std::int64_t least, std::int64_t most) const {
    const auto wanted = [&] { return fmt::format("a whole number from {} to {}", least, most); };
    if (!json_.is_number_integer()) expected(wanted());
    if (json_.is_number_unsigned() && json_.get<std::uint64_t>() > static_cast<std::uint64_t>(largest))
      expected(wanted());
    const auto value = json_.get<std::int64_t>();
    if (value < least || value > most) expected(wanted());
    return value;
  }
  std::string text() const {
    if (!json_.is_string()) expected("a text");
    return json_.get<std::string>();
  }
  std::uint64_t digest() const {
    const std::string digits = text();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != 16 || error != std::errc{} || end != digits.data() + digits.size())
      expected("16 hexadecimal digits");
    return value;
  }
  State texts() const {
    if (!json_.is_object()) expected("an object");
    State state;
    for (const auto& [key, value] : json_.items()) state[key] = Node(value, prefix() + key).text();
    return state;
  }

 private:
  std::string prefix() const { return where_.empty() ? "" : where_ + "."; }
  [[noreturn]] void expected(const std::string& what) const {
    reject(fmt::format("manifest.json: {}: {} expected, found {}", where_, what, shortened(json_)));
  }

  const Json& json_;
  std::string where_;
};

Json to_json(const TensorEntry& tensor) {
  Json parts = Json::array();
  for (const StoredPart& p : tensor.parts) {
    const Region& r = p.extent.region;
    parts.push_back({{"rank", p.rank},
                     {"rows", {r.row_begin, r.row_end}},
                     {"columns", {r.column_begin, r.column_end}},
                     {"elements", {p.extent.begin, p.extent.end}},
                     {"offset", p.offset},
                     {"digest", hex(p.digest)}});
  }
  return {{"name", tensor.name},
          {"shape", tensor.shape},
          {"type", "f32"},
          {"digest", hex(tensor.digest)},
          {"parts", std::move(parts)}};
}

StoredPart parse_part(const Node& node) {
  const auto interval = [&node](const char* key) {
    const std::vector<Node> both = node[key].array(2);
    return std::pair(both[0].integer(0, largest), both[1].integer(0, largest));
  };
  StoredPart part;
  part.rank = static_cast<int>(node["rank"].integer(0, std::numeric_limits<int>::max()));
  std::tie(part.extent.region.row_begin, part.extent.region.row_end) = interval("rows");
  std::tie(part.extent.region.column_begin, part.extent.region.column_end) = interval("columns");
  std::tie(part.extent.begin, part.extent.end) = interval("elements");
  part.offset = node["offset"].integer(0, largest);
  part.digest = node["digest"].digest();
  return part;
}

TensorEntry parse_tensor(const Node& node) {
  TensorEntry tensor;
  tensor.name = node["name"].text();
  for (const Node& dim : node["shape"].array()) tensor.shape.push_back(dim.integer(1, largest));
  if (const std::string type = node["type"].text(); type != "f32")
    reject(fmt::format("manifest.json: tensor '{}' is of type '{}', 'f32' expected", tensor.name, type));
  tensor.digest = node["digest"].digest();
  for (const Node& part : node["parts"].array()) tensor.parts.push_back(parse_part(part));
  return tensor;
}

// Two ranks that own the same element of a tensor; {-1, -1} if there are none. Boxes in the order of their first
// rows, each compared with those that begin before it ends.
std::pair<int, int> owners_in_common(const TensorEntry& tensor) {
  struct Owned {
    Region box;
    int rank;
  };
  std::vector<Owned> all;
  for (const StoredPart& part : tensor.parts)
    for (const Region& box : boxes_of(part.extent)) all.push_back({box, part.rank});
  std::sort(all.begin(), all.end(), [](const Owned& a, const Owned& b) { return a.box.row_begin < b.box.row_begin; });
  for (auto a = all.begin(); a != all.end(); ++a)
    for (auto b = a + 1; b != all.end() && b->box.row_begin < a->box.row_end; ++b)
      if (std::max(a->box.column_begin, b->box.column_begin) < std::min(a->box.column_end, b->box.column_end))
        return {a->rank, b->rank};
  return {-1, -1};
}

std::string inconsistency(const TensorEntry& tensor, int ranks) {
  const std::string name = fmt::format("tensor '{}'", tensor.name);
  if (tensor.name.empty() || tensor.name == "state" || tensor.name == "." ||
      tensor.name.find('/') != std::string::npos || tensor.name.find('\0') != std::string::npos)
    return name + ": not a name that a dataset can have";
  if (!is_tensor_shape(tensor.shape))
    return fmt::format("{}: shape {} is not 1-D or 2-D", name, to_string(tensor.shape));
  const std::int64_t elements = tensor.shape[0] * width_of(tensor.shape);
  std::int64_t covered = 0;
  std::uint64_t digest = 0;
  for (const StoredPart& p : tensor.parts) {
    if (p.rank >= ranks) return fmt::format("{}: a part from rank {}, but ranks = {}", name, p.rank, ranks);
    if (!lies_inside(p.extent, tensor.shape) || p.extent.count() == 0)
      return fmt::format("{}: the part from rank {} lies outside of shape {}", name, p.rank, to_string(tensor.shape));
    covered += p.extent.count();
    digest += p.digest;
  }
  if (const auto [a, b] = owners_in_common(tensor); a >= 0)
    return fmt::format("{}: ranks {} and {} both own some of its elements", name, std::min(a, b), std::max(a, b));
  if (covered != elements) return fmt::format("{}: {} of its {} elements are owned by a rank", name, covered, elements);
  if (digest != tensor.digest)
    return fmt::format("{}: digest {}, but those of its parts add up to {}", name, hex(tensor.digest), hex(digest));
  return "";
}

}  // namespace

const TensorEntry* Manifest::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string rank_file_name(std::int64_t rank) { return fmt::format("rank-{}.h5", rank); }

std::vector<std::string> dataset_names(const TensorEntry& tensor) {
  std::map<int, int> parts_of_rank;
  std::vector<std::string> names;
  for (const StoredPart& part : tensor.parts) {
    const int before = parts_of_rank[part.rank]++;
    names.push_back(before == 0 ? tensor.name : fmt::format("{}#{}", tensor.name, before));
  }
  return names;
}

Manifest merge(std::vector<Manifest> reports) {
  Manifest whole;
  std::map<std::string, std::size_t> places;
  for (Manifest& report : reports) {
    for (TensorEntry& tensor : report.tensors) {
      const auto [place, fresh] = places.emplace(tensor.name, whole.tensors.size());
      if (fresh) whole.tensors.push_back({tensor.name, tensor.shape, 0, {}});
      TensorEntry& known = whole.tensors[place->second];
      if (known.shape != tensor.shape)
        throw Error({.what = fmt::format("tensor '{}' has shape {} on one rank and {} on another", tensor.name,
                                         to_string(known.shape), to_string(tensor.shape))});
      known.digest += tensor.digest;
      known.parts.insert(known.parts.end(), tensor.parts.begin(), tensor.parts.end());
    }
    whole.files.insert(whole.files.end(), report.files.begin(), report.files.end());
  }
  return whole;
}

std::vector<std::vector<ByteRange>> element_ranges(const Manifest& manifest) {
  std::vector<std::vector<ByteRange>> ranges(static_cast<std::size_t>(manifest.ranks));
  for (const TensorEntry& tensor : manifest.tensors)
    for (const StoredPart& part : tensor.parts)
      ranges[static_cast<std::size_t>(part.rank)].push_back({part.offset, part.extent.count() * 4});
  for (auto& file : ranges)
    std::sort(file.begin(), file.end(), [](const ByteRange& a, const ByteRange& b) { return a.offset < b.offset; });
  return ranges;
}

std::string inconsistency(const Manifest& manifest) {
  for (std::size_t i = 0; i < manifest.files.size() || static_cast<int>(i) <= manifest.ranks; ++i) {
    const bool last = static_cast<int>(i) == manifest.ranks;
    const std::string expected = last ? "checkpoint.h5" : rank_file_name(static_cast<std::int64_t>(i));
    if (i >= manifest.files.size()) return fmt::format("file {} of {} ranks is not listed", expected, manifest.ranks);
    const std::string& name = manifest.files[i].name;
    if (static_cast<int>(i) > manifest.ranks || name != expected)
      return fmt::format("file '{}' is listed, which {} ranks do not have", name, manifest.ranks);
  }
  std::set<std::string> names;
  for (const TensorEntry& tensor : manifest.tensors) {
    if (!names.insert(tensor.name).second) return fmt::format("tensor '{}' is listed twice", tensor.name);
    if (const std::string reason = inconsistency(tensor, manifest.ranks); !reason.empty()) return reason;
  }
  const std::vector<std::vector<ByteRange>> ranges = element_ranges(manifest);
  for (std::size_t rank = 0; rank < ranges.size(); ++rank) {
    std::int64_t at = 0;
    for (const ByteRange& range : ranges[rank]) {
      if (range.offset < at || range.offset > manifest.files[rank].bytes - range.bytes)
        return fmt::format("{}: {} bytes of elements at byte {} of {} overlap others or the end",
                           manifest.files[rank].name, range.bytes, range.offset, manifest.files[rank].bytes);
      at = range.offset + range.bytes;
    }
  }
  return "";
}

std::string seal(std::string body) {
  Digest digest;
  digest.add(body);
  return body + std::string(seal_key) + digest.text() + "\"\n}\n";
}

std::string to_text(const Manifest& manifest) {
  std::string files, tensors;
  for (const FileEntry& file : manifest.files)
    files += (files.empty() ? "\n" : ",\n") +
             Json({{"name", file.name}, {"bytes", file.bytes}, {"digest", file.digest}}).dump();
  for (const TensorEntry& tensor : manifest.tensors)
    tensors += (tensors.empty() ? "\n" : ",\n") + to_json(tensor).dump();
  return seal(
      fmt::format("{{\n\"format\": \"choir checkpoint\",\n\"version\": {},\n\"step\": {},\n\"ranks\": {},\n"
                  "\"state\": {},\n\"files\": [{}\n],\n\"tensors\": [{}\n],\n",
                  Manifest::version, manifest.step, manifest.ranks, Json(manifest.state).dump(1), files, tensors));
}

Manifest parse_manifest(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object())
    reject(fmt::format("manifest.json: {} bytes that are not whole JSON: torn or changed", text.size()));
  const Node root(json, "");
  if (const std::string format = root["format"].text(); format != "choir checkpoint")
    reject(fmt::format("manifest.json: format '{}', 'choir checkpoint' expected", format));
  const std::size_t end = text.rfind(seal_key);
  if (end == std::string::npos || seal(text.substr(0, end)) != text)
    reject("manifest.json: its text and the digest in its last line differ: torn or changed");
  if (const std::int64_t version = root["version"].integer(0, largest); version != Manifest::version)
    throw Error({.what = fmt::format("manifest.json: format version {}, but this program reads version {}", version,
                                     Manifest::version),
                 .fix = "use the program that wrote it, or a newer one"});

  Manifest manifest;
  manifest.step = root["step"].integer(0, largest);
  manifest.ranks = static_cast<int>(root["ranks"].integer(1, 1 << 24));
  manifest.state = root["state"].texts();
  for (const Node& file : root["files"].array())
    manifest.files.push_back({file["name"].text(), file["bytes"].integer(0, largest), hex(file["digest"].digest())});
  for (const Node& tensor : root["tensors"].array()) manifest.tensors.push_back(parse_tensor(tensor));
  return manifest;
}

}  // namespace choir
