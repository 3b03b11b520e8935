#include "framework/train/inspect_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/durable.h"
#include "framework/checkpoint/global_file.h"
#include "framework/data/image.h"
#include "framework/train/inspect_page.h"

namespace choir {
namespace {

using Json = nlohmann::ordered_json;

/// RFC 4648.
std::string base64(const std::vector<std::uint8_t>& bytes) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t word = 0;
    for (std::size_t b = 0; b < 3; ++b) word = word << 8 | (i + b < bytes.size() ? bytes[i + b] : 0u);
    for (std::size_t d = 0; d < 4; ++d) text += i + d > bytes.size() ? '=' : digits[word >> (18 - 6 * d) & 63];
  }
  return text;
}

std::uint8_t byte_of(double share) { return static_cast<std::uint8_t>(std::lround(255 * std::clamp(share, 0.0, 1.0))); }

/// The length of the UTF-8 character at `at`; 0 if there is none. Of control characters only the line break is one.
std::size_t character(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at);
  if (first < 0x80) return (first >= 0x20 && first != 0x7f) || first == '\n' ? 1 : 0;
  const std::size_t length = first >= 0xc2 && first < 0xe0   ? 2
                             : first >= 0xe0 && first < 0xf0 ? 3
                             : first >= 0xf0 && first < 0xf5 ? 4
                                                             : 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  return length;
}

/// A token as a page shows it: bytes that are no text as <E2>.
std::string readable(const std::string& bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size();) {
    const std::size_t length = character(bytes, i);
    text += length > 0 ? bytes.substr(i, length) : fmt::format("<{:02X}>", static_cast<unsigned char>(bytes[i]));
    i += std::max<std::size_t>(1, length);
  }
  return text;
}

/// The pixels [channels, height, width] of a sample.
std::vector<std::uint8_t> pixels_of(const ModelConfig& model, const std::vector<float>& patches) {
  std::vector<std::uint8_t> pixels;
  for (const float pixel : from_patches(model, patches)) pixels.push_back(byte_of(static_cast<double>(pixel) / 255));
  return pixels;
}

struct Words {
  const char *label, *unit, *text;
};
Words words_of(HeadMeasure measure, const ModelConfig& model) {
  const bool image = model.family == ModelFamily::vision;
  const bool class_token = model.is_classifier() && model.pool == Pool::class_token;
  switch (measure) {
    case HeadMeasure::importance:
      return {"importance", "",
              "How fast the loss changes with a gate that multiplies the head's output: large if the loss needs the "
              "head here."};
    case HeadMeasure::entropy:
      return {"entropy", "bits",
              "How widely a query spreads what it reads: 0 bits is one key, 3 bits are as 8 equal ones."};
    case HeadMeasure::distance:
      return {"mean distance", image ? "squares" : "tokens",
              image ? "How far, in squares of the image, what a query reads is from it, in the mean."
                    : "How many tokens away what a query reads is, in the mean."};
    case HeadMeasure::first_token:
      return {class_token ? "share on the class token"
              : image     ? "share on the first square"
                          : "share on the first token",
              "",
              "What goes to the first position, of all that a query gives: much of it often means that the head has "
              "nothing to read."};
    case HeadMeasure::previous_token:
      return {"share on the previous token", "", "What goes to the token just before, of all that a query gives."};
    case HeadMeasure::induction:
      return {
          "induction", "",
          "What goes to tokens that followed an earlier occurrence of the query's own token: a head that copies what "
          "came next the last time."};
    case HeadMeasure::sink:
      return {"share of the sink", "", "What the head's learned logit takes, which brings no value."};
    case HeadMeasure::half_life:
      return {"half-life", "tokens",
              "Of linear attention: after how many tokens half of what the head has taken up is left, in the mean, by "
              "its decays alone."};
  }
  std::abort();  // all values are above
}

/// Numbers as JSON: null where they are not defined.
Json numbers(const std::vector<double>& values) {
  Json json = Json::array();
  for (const double value : values)
    json.push_back(std::isfinite(value) ? Json(std::stod(fmt::format("{:.4g}", value))) : Json(nullptr));
  return json;
}

Json texts(const std::vector<std::string>& tokens) {
  Json json = Json::array();
  for (const std::string& token : tokens) json.push_back(readable(token));
  return json;
}

Json sample_json(const InspectionReport& r, std::size_t s) {
  Json json = {{"label", readable(r.labels[s])}, {"length", r.samples[s].length}, {"maps", Json::array()}};
  for (const Inspection::Maps& maps : r.inspection.samples[s].maps) {
    std::vector<std::uint8_t> shares;
    for (const float share : maps.values) shares.push_back(byte_of(std::sqrt(static_cast<double>(share))));
    json["maps"].push_back({{"rows", maps.rows}, {"columns", maps.columns}, {"shares", base64(shares)}});
  }
  if (r.model.family == ModelFamily::vision) {
    const ImageConfig& i = r.model.image;
    json["picture"] = {{"height", i.height},
                       {"width", i.width},
                       {"channels", i.channels},
                       {"patch", i.patch},
                       {"columns", i.columns()},
                       {"classToken", r.model.pool == Pool::class_token},
                       {"pixels", base64(pixels_of(r.model, r.samples[s].buffer.patches))}};
  } else {
    json["tokens"] = texts(r.tokens[s]);
  }
  if (r.model.has_source()) {
    json["sourceLength"] = r.samples[s].source_length;
    json["sourceTokens"] = texts(r.source_tokens[s]);
  }
  if (source_texts(r.model) == 2) {
    json["secondSourceLength"] = r.samples[s].second_source_length;
    json["secondSourceTokens"] = texts(r.second_source_tokens[s]);
  }
  return json;
}

/// A dataset of all of `values`, or of as many as the shape has.
template <class T>
void write_dataset(hid_t parent, const char* name, const Shape& shape, hid_t type, hid_t memory_type,
                   const std::vector<T>& values) {
  const Hdf5Handle space = make_space(shape);
  const Hdf5Handle dataset(H5Dcreate2(parent, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose,
                           "H5Dcreate2");
  hdf5_check(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dwrite");
}

Hdf5Handle create_group(hid_t parent, const std::string& name) {
  return {H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, "H5Gcreate2"};
}

/// The first ids, and the tokens that they are.
void write_tokens(hid_t group, const std::string& prefix, std::span<const std::int32_t> ids,
                  const std::vector<std::string>& tokens) {
  write_dataset(group, (prefix + "ids").c_str(), {std::ssize(tokens)}, H5T_STD_I32LE, H5T_NATIVE_INT32,
                std::vector<std::int32_t>(ids.begin(), ids.end()));
  std::size_t longest = 1;
  for (const std::string& token : tokens) longest = std::max(longest, token.size());
  std::vector<char> padded(tokens.size() * longest);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    std::copy(tokens[i].begin(), tokens[i].end(), padded.begin() + static_cast<std::ptrdiff_t>(i * longest));
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy");
  hdf5_check(H5Tset_size(type, longest), "H5Tset_size");
  hdf5_check(H5Tset_strpad(type, H5T_STR_NULLPAD), "H5Tset_strpad");
  write_dataset(group, (prefix + "tokens").c_str(), {std::ssize(tokens)}, type, type, padded);
}

}  // namespace

/// "encoder 0", of all layers in their order.
static std::vector<std::string> layer_names(const Inspection& inspection) {
  std::vector<std::string> layers;
  for (const AttentionStack& stack : inspection.stacks)
    for (std::int64_t layer = 0; layer < stack.layers; ++layer)
      layers.push_back(fmt::format("{} {}", stack.name, layer));
  return layers;
}

std::string inspection_hdf5(const InspectionReport& r) {
  const Inspection& i = r.inspection;
  const std::int64_t all_heads = i.layers * i.heads;
  const MemoryFile image;
  const Hdf5Silence silence;
  try {
    Hdf5Handle file = image.create_hdf5();
    write_attribute(file, "format_version", std::int64_t{1});
    write_attribute(file, "title", r.title);
    write_attribute(file, "layers", i.layers);
    write_attribute(file, "heads", i.heads);
    write_attribute(file, "tile", i.tile);
    write_attribute(file, "layer_names", fmt::format("{}", fmt::join(layer_names(i), "\n")));
    {
      const Hdf5Handle measures = create_group(file, "measures");
      for (std::size_t m = 0; m < head_measures; ++m) {
        std::vector<float> values;
        for (const Inspection::Sample& sample : i.samples)
          values.insert(values.end(), sample.values[m].begin(), sample.values[m].end());
        write_dataset(
            measures, names<HeadMeasure>[m], { std::ssize(i.samples), i.layers, i.heads }, H5T_IEEE_F32LE,
            H5T_NATIVE_FLOAT, values);
      }
      write_dataset(file, "similarity", {all_heads, all_heads}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, i.similarity);
      const Hdf5Handle samples = create_group(file, "samples");
      for (std::size_t s = 0; s < i.samples.size(); ++s) {
        const Inspection::Sample& sample = i.samples[s];
        const Hdf5Handle group = create_group(samples, std::to_string(s));
        write_attribute(group, "label", r.labels[s]);
        for (std::size_t stack = 0; stack < i.stacks.size(); ++stack) {
          const Inspection::Maps& maps = sample.maps[stack];
          const std::string name = i.stacks.size() > 1 ? i.stacks[stack].name + "_maps" : "maps";
          write_dataset(group, name.c_str(), {i.stacks[stack].layers, i.heads, maps.rows, maps.columns}, H5T_IEEE_F32LE,
                        H5T_NATIVE_FLOAT, maps.values);
        }
        if (r.model.family == ModelFamily::vision) {
          const ImageConfig& picture = r.model.image;
          write_dataset(group, "pixels", {picture.channels, picture.height, picture.width}, H5T_STD_U8LE,
                        H5T_NATIVE_UINT8, pixels_of(r.model, r.samples[s].buffer.patches));
        } else {
          write_tokens(group, "", r.samples[s].buffer.inputs, r.tokens[s]);
        }
        const auto source = std::span(r.samples[s].buffer.source);
        if (r.model.has_source()) write_tokens(group, "source_", source_text(r.model, source, 0), r.source_tokens[s]);
        if (source_texts(r.model) == 2)
          write_tokens(group, "second_source_", source_text(r.model, source, 1), r.second_source_tokens[s]);
      }
    }
    file.close();
  } catch (const Hdf5Failure& failure) {
    throw Error({.what = "the HDF5 file of the inspection cannot be made", .why = failure.what()});
  }
  return read_text(image.path());
}

std::string inspection_page(const InspectionReport& r) {
  const Inspection& i = r.inspection;
  Json json = {{"title", readable(r.title)}, {"layers", layer_names(i)}, {"heads", i.heads},       {"tile", i.tile},
               {"measures", Json::array()},  {"stacks", Json::array()},  {"linear", Json::array()}};
  for (const AttentionStack& stack : i.stacks)
    for (std::int64_t layer = 0; layer < stack.layers; ++layer)
      json["linear"].push_back(stack.is_linear(r.model, layer));
  for (const AttentionStack& stack : i.stacks)
    json["stacks"].push_back({{"name", stack.name},
                              {"layers", stack.layers},
                              {"rows", name_of(stack.rows)},
                              {"keys", name_of(stack.keys)},
                              {"columns", name_of(stack.columns)}});
  for (std::size_t m = 0; m < head_measures; ++m) {
    const auto measure = static_cast<HeadMeasure>(m);
    const std::vector<double> values = i.mean(measure);
    if (std::none_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) continue;
    const Words words = words_of(measure, r.model);
    json["measures"].push_back({{"name", name_of(measure)},
                                {"label", words.label},
                                {"unit", words.unit},
                                {"text", words.text},
                                {"values", numbers(values)}});
  }
  std::vector<std::uint8_t> similarity;
  for (const float share : i.similarity)
    similarity.push_back(std::isnan(share) ? std::uint8_t{0} : byte_of(static_cast<double>(share)));
  json["similarity"] = base64(similarity);
  json["samples"] = Json::array();
  for (std::size_t s = 0; s < i.samples.size(); ++s) json["samples"].push_back(sample_json(r, s));

  std::string data = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  for (std::size_t at = 0; (at = data.find('<', at)) != std::string::npos;) data.replace(at, 1, "\\u003c");
  std::string page = inspect_page;
  const std::string mark = "CHOIR_DATA";
  page.replace(page.find(mark), mark.size(), data);
  return page;
}

}  // namespace choir
