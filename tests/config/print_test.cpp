// Printing gives back what was read, the table has a row for every member, and --help names every key.
#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "framework/config/table.h"
#include "tests/config/problems.h"

namespace choir {
namespace {

using tests::contains;

// The number of members of an aggregate: how many values it can be initialised with.
struct Anything {
  template <class T>
  operator T() const;
};
template <class T, std::size_t... I>
constexpr bool takes(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), Anything{})...}; };
}
template <class T, std::size_t N = 0>
constexpr std::size_t members() {
  if constexpr (takes<T>(std::make_index_sequence<N + 1>{})) return members<T, N + 1>();
  return N;
}

TEST(Table, HasARowForEveryMember) {
  // A struct inside a struct is a member, but no row.
  constexpr std::size_t expected =
      members<AttentionConfig>() - 2 + members<HeadRoutingConfig>() + members<Sources>() +
      members<FeedForwardConfig>() + members<ExpertsConfig>() + members<NormConfig>() + members<ImageConfig>() +
      members<ModelConfig>() - 5 + members<TokenizerConfig>() + members<MaskedConfig>() + members<AugmentConfig>() +
      members<DataConfig>() - 3 + members<TrainAttentionConfig>() + members<SpikeConfig>() + members<TrainConfig>() - 2 +
      members<OptimizerConfig>() + members<ParallelConfig>() + members<CheckpointConfig>() + members<GenerateConfig>();
  Config config;
  EXPECT_EQ(table(config).size(), expected) << "a member of a *Config struct has no row in framework/config/table.cpp";
}

// Another value of the same type, with no short decimal form for doubles.
struct Change {
  void operator()(std::int64_t* value) const { *value += 17; }
  void operator()(std::uint64_t* value) const { *value = ~*value; }
  void operator()(double* value) const { *value = *value / 3 + 1e-9; }
  void operator()(bool* value) const { *value = !*value; }
  void operator()(std::string* value) const { *value += " \"quoted\" \\ : # {\n\t\x01\x7f} \xc3\xa9"; }
  void operator()(std::array<double, 2>* value) const { *value = {(*value)[0] / 3, (*value)[1] / 7}; }
  void operator()(std::vector<std::int64_t>* value) const { value->insert(value->end(), {3, 1}); }
  void operator()(const Choice& choice) const { choice.set((choice.get() + 1) % choice.names.size()); }
};

TEST(Print, ReadsBackAsTheSameConfiguration) {
  EXPECT_EQ(parse_config(print(Config{}), ""), Config{});
  Config changed;
  for (const Field& field : table(changed)) std::visit(Change{}, field.slot);
  EXPECT_EQ(parse_config(print(changed), ""), changed) << print(changed);
}

TEST(Print, ReadsBackEachKeyAlone) {
  Config config;
  for (const Field& field : table(config)) {
    if (const auto* choice = std::get_if<Choice>(&field.slot); choice && choice->names.size() == 1) continue;
    const Config before = config;
    std::visit(Change{}, field.slot);
    EXPECT_FALSE(config == before) << field.key;
    EXPECT_EQ(parse_config(print(config), ""), config) << field.key;
    const std::vector<Difference> different = differences(before, config);
    ASSERT_EQ(different.size(), 1u) << field.key;
    EXPECT_EQ(different[0].key, field.key);
    EXPECT_EQ(different[0].right, value_text(field.slot));
    config = before;
  }
}

TEST(Print, EachNameOfAChoiceReadsBackAsItself) {
  Config config;
  for (const Field& field : table(config)) {
    const auto* choice = std::get_if<Choice>(&field.slot);
    if (!choice) continue;
    for (const std::string& name : choice->names) {
      Config read = read_config("", {field.key + "=" + name});
      for (const Field& row : table(read)) {
        if (row.key == field.key) {
          EXPECT_EQ(value_text(row.slot), name) << field.key;
        }
      }
    }
  }
}

TEST(Print, TextKeepsEveryByte) {
  std::string text = "  'quotes' \"double\" \\ \\n : # {[ - \r\n\n\t ";
  for (int byte = 0; byte < 128; ++byte) text += static_cast<char>(byte);
  // The ends of each length of UTF-8, and characters that YAML takes for line breaks or for a byte-order mark.
  for (const char* character : {"\xc2\x80", "\xc2\x85", "\xdf\xbf", "\xe0\xa0\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                                "\xed\x9f\xbf", "\xef\xbb\xbf", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    text += character;
  for (const std::string& value : {text, std::string("\n"), std::string(" "), std::string(70000, '"')}) {
    Config config;
    config.generate.prompt = config.data.path = config.train.folder = value;
    EXPECT_EQ(parse_config(print(config), ""), config);
  }
}

TEST(Print, DoublesKeepEveryBit) {
  for (const double value : {0.1, 1.0 / 3, 6e-4, 1e-8, 5e-324, std::numeric_limits<double>::max(), 1e22, 123456789.0}) {
    Config config;
    config.optimizer.rate = value;
    EXPECT_EQ(parse_config(print(config), "").optimizer.rate, value);
  }
}

TEST(Print, TextThatLooksLikeSomethingElseIsQuoted) {
  for (const char* text : {"",    "null", "~",  "true", "No", "12", "...", "---",  "-",        "a: b",        "a #b",
                           " a ", "*a",   "&a", "!a",   "{",  "@",  "\n",  "\r\n", "\xc2\x85", "\xe2\x80\xa8"}) {
    Config config;
    config.generate.prompt = text;
    EXPECT_EQ(parse_config(print(config), "").generate.prompt, text) << print(config);
  }
}

TEST(Print, IsReadable) {
  const std::string text = print(Config{});
  EXPECT_TRUE(text.starts_with("model:\n  family: decoder\n  layers: 12\n")) << text;
  EXPECT_TRUE(contains(text, "\n  attention:\n    kind: softmax\n")) << text;
  EXPECT_TRUE(contains(text, "\n  tokenizer:\n    kind: sentencepiece\n")) << text;
  EXPECT_TRUE(contains(text, "\n  betas: [0.9, 0.95]\n")) << text;
}

TEST(Differences, NamesKeysWithBothValues) {
  Config left, right;
  right.model.layers = 24;
  right.data.path = "a b.h5";
  const std::vector<Difference> different = differences(left, right);
  ASSERT_EQ(different.size(), 2u);
  EXPECT_EQ(different[0].key, "model.layers");
  EXPECT_EQ(different[0].left, "12");
  EXPECT_EQ(different[0].right, "24");
  EXPECT_EQ(different[1].left, "\"\"");
  EXPECT_EQ(different[1].right, "\"a b.h5\"");
}

TEST(DescribeKeys, NamesEveryKeyOnALineOfItsOwn) {
  Config config;
  const std::string text = describe_keys(), markdown = markdown_keys();
  for (const Field& field : table(config)) {
    EXPECT_FALSE(field.documentation.empty()) << field.key;
    EXPECT_TRUE(contains(text, "\n" + field.key + " ")) << field.key;
    EXPECT_TRUE(contains(text, field.documentation + "\n")) << field.key;
    EXPECT_TRUE(contains(markdown, "\n| `" + field.key + "` | ")) << field.key;
  }
  EXPECT_TRUE(contains(text, "gelu | gelu_erf | swiglu")) << text;
  EXPECT_TRUE(contains(markdown, "| gelu \\| gelu_erf \\| swiglu | `gelu` |")) << markdown;
}

TEST(DescribeKeys, TypesSayWhatTheyTake) {
  Config config;
  const auto type = [&](const std::string& key) {
    for (const Field& field : table(config))
      if (field.key == key) return type_text(field);
    return std::string("no such key");
  };
  EXPECT_EQ(type("model.layers"), "integer >= 1");
  EXPECT_EQ(type("train.threads"), "integer in [0, 65536]");
  EXPECT_EQ(type("train.seed"), "integer >= 0");
  EXPECT_EQ(type("train.timeout"), "number >= 0");
  EXPECT_EQ(type("model.dropout"), "number in [0, 1)");
  EXPECT_EQ(type("generate.top_p"), "number in (0, 1]");
  EXPECT_EQ(type("optimizer.betas"), "two numbers in [0, 1)");
  EXPECT_EQ(type("parallel.context"), "integer >= 1");
  EXPECT_EQ(type("parallel.expert"), "integer >= 1");
  EXPECT_EQ(type("parallel.zero"), "0 | 1 | 2 | 3");
  EXPECT_EQ(type("model.tied"), "true | false");
  EXPECT_EQ(type("train.precision"), "f32 | bf16 | fp8");
  EXPECT_EQ(type("data.path"), "text");
}

}  // namespace
}  // namespace choir
