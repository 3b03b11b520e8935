// The manifest: round trip, and a reason for everything that is not a manifest.
#include "framework/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <array>

#include "framework/core/error.h"

namespace choir {
namespace {

Manifest small() {
  Manifest m;
  m.step = 7;
  m.ranks = 2;
  m.state = {{"config", "a: \"b\"\n"}};
  m.files = {{"rank-0.h5", 1000, "00000000000000aa"},
             {"rank-1.h5", 900, "00000000000000bb"},
             {"checkpoint.h5", 500, "ffffffffffffffff"}};
  m.tensors = {{"w", {4, 3}, 30, {{0, {{0, 4, 0, 2}, 0, 8}, 800, 10}, {1, {{0, 4, 2, 3}, 0, 4}, 800, 20}}},
               {"n", {5}, 5, {{1, {{0, 5, 0, 1}, 0, 5}, 820, 5}}}};
  return m;
}

std::string problem_of(const std::string& text) {
  try {
    return inconsistency(parse_manifest(text));
  } catch (const ConfigError& error) {
    return error.what();
  }
}

// A manifest with one piece of text replaced, sealed again.
std::string changed(const std::string& from, const std::string& to) {
  std::string text = to_text(small());
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  return seal(text.substr(0, text.rfind("\"end\"")));
}

TEST(Manifest, RoundTrip) {
  const std::string text = to_text(small());
  EXPECT_EQ(to_text(parse_manifest(text)), text);
  EXPECT_EQ(problem_of(text), "");
}

TEST(Manifest, EveryFlippedBitIsDetected) {
  const std::string text = to_text(small());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      EXPECT_NE(problem_of(flipped), "") << "byte " << i << ", bit " << bit;
    }
  }
}

TEST(Manifest, SaysWhatIsWrong) {
  const std::string torn = "manifest.json: its text and the digest in its last line differ: torn or changed";
  EXPECT_EQ(problem_of(""), "manifest.json: 0 bytes that are not whole JSON: torn or changed");
  EXPECT_EQ(problem_of("[]"), "manifest.json: 2 bytes that are not whole JSON: torn or changed");
  EXPECT_EQ(problem_of("{}"), "manifest.json: 'format' is missing");
  EXPECT_EQ(problem_of(std::string(100000, '[')),
            "manifest.json: 100000 bytes that are not whole JSON: torn or changed");
  EXPECT_EQ(problem_of(to_text(small()) + " "), torn);
  const std::vector<std::array<std::string, 3>> cases = {
      {"\"choir checkpoint\"", "\"tar\"", "manifest.json: format 'tar', 'choir checkpoint' expected"},
      {"\"step\": 7", "\"step\": -7",
       "manifest.json: step: a whole number from 0 to 9223372036854775807 expected, found -7"},
      {"\"step\": 7", "\"step\": 7.5",
       "manifest.json: step: a whole number from 0 to 9223372036854775807 expected, found 7.5"},
      {"\"step\": 7", "\"step\": 18446744073709551615",
       "manifest.json: step: a whole number from 0 to 9223372036854775807 expected, found 18446744073709551615"},
      {"\"step\": 7", "\"step\": 1e400", "manifest.json: 808 bytes that are not whole JSON: torn or changed"},
      {"\"ranks\": 2", "\"ranks\": \"2\"",
       "manifest.json: ranks: a whole number from 1 to 16777216 expected, found \"2\""},
      {"\"ranks\": 2", "\"ranks\": 3", "file 'checkpoint.h5' is listed, which 3 ranks do not have"},
      {"\"ranks\": 2", "\"ranks\": 1", "file 'rank-1.h5' is listed, which 1 ranks do not have"},
      {"rank-1.h5", "../../x", "file '../../x' is listed, which 2 ranks do not have"},
      {"\"bytes\":1000", "\"bytes\":null",
       "manifest.json: files[0].bytes: a whole number from 0 to 9223372036854775807 expected, found null"},
      {"\"bytes\":1000", "\"bytes\":831",
       "rank-0.h5: 32 bytes of elements at byte 800 of 831 overlap others or the end"},
      {"\"bytes\":1000", "\"bytes\":3", "rank-0.h5: 32 bytes of elements at byte 800 of 3 overlap others or the end"},
      {"00000000000000aa", "aa", "manifest.json: files[0].digest: 16 hexadecimal digits expected, found \"aa\""},
      {"\"name\":\"n\"", "\"name\":\"w\"", "tensor 'w' is listed twice"},
      {"\"name\":\"n\"", "\"name\":\"a/b\"", "tensor 'a/b': not a name that a dataset can have"},
      {"\"type\":\"f32\"", "\"type\":\"f64\"", "manifest.json: tensor 'w' is of type 'f64', 'f32' expected"},
      {"\"shape\":[4,3]", "\"shape\":[4,3,1]", "tensor 'w': shape [4, 3, 1] is not 1-D or 2-D"},
      {"\"shape\":[4,3]", "\"shape\":[4,4611686018427387904]",
       "tensor 'w': shape [4, 4611686018427387904] is not 1-D or 2-D"},
      {"\"shape\":[4,3]", "\"shape\":4", "manifest.json: tensors[0].shape: a list expected, found 4"},
      {"\"shape\":[4,3]", "\"shape\":[4,4]", "tensor 'w': 12 of its 16 elements are owned by a rank"},
      {"\"shape\":[4,3]", "\"shape\":[4,2]", "tensor 'w': the part from rank 1 lies outside of shape [4, 2]"},
      {"\"columns\":[2,3]", "\"columns\":[1,2]", "tensor 'w': ranks 0 and 1 both own some of its elements"},
      {"\"columns\":[2,3]", "\"columns\":[2,3,4]",
       "manifest.json: tensors[0].parts[1].columns: a list of 2 expected, found [2,3,4]"},
      {"\"rank\":1", "\"rank\":2", "tensor 'w': a part from rank 2, but ranks = 2"},
      {"\"offset\":800", "\"offset\":9223372036854775807",
       "rank-0.h5: 32 bytes of elements at byte 9223372036854775807 of 1000 overlap others or the end"},
      {"\"offset\":820", "\"offset\":804",
       "rank-1.h5: 20 bytes of elements at byte 804 of 900 overlap others or the end"},
      {"000000000000000a", "000000000000000b",
       "tensor 'w': digest 000000000000001e, but those of its parts add up to 000000000000001f"},
  };
  for (const auto& [from, to, expected] : cases) EXPECT_EQ(problem_of(changed(from, to)), expected);
}

TEST(Manifest, FurtherPartsOfARankHaveNumberedDatasets) {
  TensorEntry tensor{"w", {9}, 0, {}};
  for (const int rank : {0, 1, 0, 0, 1}) tensor.parts.push_back({rank, {}, 0, 0});
  EXPECT_EQ(dataset_names(tensor), (std::vector<std::string>{"w", "w", "w#1", "w#2", "w#1"}));
}

}  // namespace
}  // namespace choir
