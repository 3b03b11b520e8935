// `choir inspect` through the program: what it writes for each family, in layouts, in a real browser, and what is
// refused.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "framework/data/hdf5_file.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

std::string last_line(const Finished& finished) {
  const std::string text = finished.output.substr(0, finished.output.find_last_not_of('\n') + 1);
  return text.substr(text.find_last_of('\n') + 1);
}

/// A dataset of numbers, and its shape.
struct Dataset {
  std::vector<hsize_t> shape;
  std::vector<float> values;
};
Dataset dataset(const std::string& file, const std::string& name) {
  const Hdf5Handle hdf5 = open_hdf5(file);
  const Hdf5Handle set(H5Dopen2(hdf5, name.c_str(), H5P_DEFAULT), H5Dclose, "H5Dopen2");
  const Hdf5Handle space(H5Dget_space(set), H5Sclose, "H5Dget_space");
  Dataset result{.shape = std::vector<hsize_t>(static_cast<std::size_t>(H5Sget_simple_extent_ndims(space)))};
  H5Sget_simple_extent_dims(space, result.shape.data(), nullptr);
  result.values.resize(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
  hdf5_check(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, result.values.data()), "H5Dread");
  return result;
}

class Inspect : public ::testing::Test {
 protected:
  /// Trains for a few steps with `words`, which are then in the checkpoint.
  void train(const std::string& words = "") {
    const Finished run = shop_.train(1, "run", words);
    ASSERT_EQ(run.code, 0) << run.output;
  }
  Finished inspect(const std::string& arguments, int ranks = 1) {
    const std::string all = "inspect " + shop_.path("run") + " --output " + shop_.path("out") + " " + arguments;
    return ranks == 1 ? shop_.choir(all) : shop_.mpirun(ranks, all);
  }
  /// The page's elements as a browser has them when its scripts have run; `fragment` is the end of the address.
  std::string in_browser(const std::string& page, const std::string& fragment = "") {
    return shell("chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=" +
                 shop_.path("browser") + " --virtual-time-budget=3000 --dump-dom 'file://" + page + "#" + fragment +
                 "' 2>/dev/null")
        .output;
  }
  static bool has_browser() { return shell("command -v chromium").code == 0; }
  void expect_alike(const std::string& other, float tolerance,
                    const std::vector<std::string>& maps = {"samples/0/maps"}) {
    std::vector<std::string> names = {"measures/importance",  "measures/entropy",   "measures/distance",
                                      "measures/first_token", "measures/induction", "similarity"};
    names.insert(names.end(), maps.begin(), maps.end());
    for (const std::string& name : names) {
      const Dataset a = dataset(shop_.path("out/inspect.h5"), name), b = dataset(other, name);
      ASSERT_EQ(a.shape, b.shape) << name;
      for (std::size_t i = 0; i < a.values.size(); ++i)
        if (!std::isnan(a.values[i]) || !std::isnan(b.values[i])) {
          ASSERT_NEAR(a.values[i], b.values[i], tolerance) << name << " " << i;
        }
    }
  }

  Workshop shop_;
  const std::string text_ = "--text 'the birds sing' ";
};

TEST_F(Inspect, ATextOnOneRankAndInLayoutsGivesThePageAndTheSameNumbers) {
  train();
  const Finished alone = inspect(text_);
  ASSERT_EQ(alone.code, 0) << alone.output;
  EXPECT_EQ(last_line(alone), shop_.path("out/inspect.html"));
  EXPECT_TRUE(contains(alone, "2 layers of 3 heads, 1 sequence")) << alone.output;
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "measures/entropy").shape, (std::vector<hsize_t>{1, 2, 3}));
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "samples/0/maps").shape, (std::vector<hsize_t>{2, 3, 14, 14}));
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "samples/0/ids").values[0], 't');
  const Dataset maps = dataset(shop_.path("out/inspect.h5"), "samples/0/maps");
  for (std::size_t row = 0; row < maps.values.size(); row += 14) {
    float sum = 0;
    for (std::size_t i = 0; i < 14; ++i) sum += maps.values[row + i];
    EXPECT_NEAR(sum, 1, 1e-5);
  }
  shell("cp -r " + shop_.path("out") + " " + shop_.path("alone"));
  for (const auto& [ranks, words] : {std::pair{2, "parallel.tensor=2 parallel.sequence=true"},
                                     {2, "parallel.context=2"},
                                     {2, "parallel.pipeline=2"},
                                     {2, "parallel.zero=3"}}) {
    const Finished split = inspect(text_ + words, ranks);
    ASSERT_EQ(split.code, 0) << words << "\n" << split.output;
    expect_alike(shop_.path("alone/inspect.h5"), 1e-5f);
  }
  // Without --output it is in the run folder; of bf16 the maps are nearly those of f32.
  const Finished bf16 =
      shop_.choir("inspect " + shop_.path("run") + " " + text_ + "train.precision=bf16 train.emulate_bf16=true");
  ASSERT_EQ(bf16.code, 0) << bf16.output;
  EXPECT_EQ(last_line(bf16), shop_.path("run/inspect/inspect.html"));
  expect_alike(shop_.path("run/inspect/inspect.h5"), 0.02f);
}

TEST_F(Inspect, ARunWritesNumbersOfItsHeadsAndHasTheSameLosses) {
  ASSERT_EQ(shop_.train(1, "plain").code, 0);
  ASSERT_EQ(shop_.train(1, "run", "train.inspect_every=5").code, 0);
  ASSERT_EQ(shop_.train(2, "split", "train.inspect_every=5 parallel.context=2").code, 0);
  EXPECT_EQ(shop_.metric("run", "loss"), shop_.metric("plain", "loss"));
  const auto lines = [&](const std::string& run) {
    std::vector<nlohmann::json> found;
    std::ifstream file(shop_.path(run + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);)
      if (line.find("head_entropy") != std::string::npos) found.push_back(nlohmann::json::parse(line));
    return found;
  };
  const std::vector<nlohmann::json> alone = lines("run"), split = lines("split");
  ASSERT_EQ(alone.size(), 2u);
  ASSERT_EQ(split.size(), 2u);
  EXPECT_EQ(lines("plain").size(), 0u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(alone[i]["step"], 5 * (i + 1));
    for (const char* name : {"head_entropy", "head_largest_logit", "head_sink"})
      for (std::size_t layer = 0; layer < 2; ++layer)
        for (std::size_t head = 0; head < 3; ++head) {
          const double value = alone[i][name].at(layer).at(head);
          EXPECT_NEAR(value, split[i][name].at(layer).at(head).get<double>(), 1e-4) << name;
        }
    EXPECT_GT(alone[i]["head_entropy"][0][0], 2.0) << "the heads of a young model read widely";
  }
}

TEST_F(Inspect, LongTextsAreCutAndManySamplesAreLookedAt) {
  train("model.attention.sinks=true model.attention.documents=separate");
  const Finished cut = inspect("--text 'the birds sing in choir 1 and 2' --text 'the fish'");
  ASSERT_EQ(cut.code, 0) << cut.output;
  EXPECT_TRUE(contains(cut, "--text has 31 tokens: the first 16 are looked at, since model.context = 16"))
      << cut.output;
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "samples/0/maps").shape[2], 16u);
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "samples/1/maps").shape[2], 8u);
  const Finished held_out = inspect("--held-out 3 parallel.context=2", 2);
  ASSERT_EQ(held_out.code, 0) << held_out.output;
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "measures/sink").shape, (std::vector<hsize_t>{3, 2, 3}));
}

TEST_F(Inspect, ThePageShowsAHeadInABrowserAndIsUsedByKeys) {
  if (!has_browser()) GTEST_SKIP() << "chromium is not installed";
  train();
  ASSERT_EQ(inspect("--text 'a</script>&\"b\"'").code, 0);
  const std::string page = shop_.path("out/inspect.html");
  const std::string shown = in_browser(page, "layer=1&head=2&measure=distance&query=5&key=0");
  for (const char* said : {"<h2 id=\"name\">Layer 1, head 2</h2>", "mean distance", "gives", "to “a” (0).", "</html>",
                           "layer 0, head 0: mean distance", "aria-selected=\"true\"", "heads</title>"})
    EXPECT_NE(shown.find(said), std::string::npos) << said << "\n" << shown.substr(0, 400);
  // Keys, as a reader presses them; the element "pressed" says what came of it.
  std::string html = read(page);
  const std::string keys = R"(<script type="module">
    const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    const seen = [], say = text => seen.push(text);
    document.querySelector("td[tabindex='0']").focus();
    for (const key of ["ArrowDown", "ArrowRight", "Enter"]) press(key);
    say(document.getElementById("name").textContent + " " + document.activeElement.id);
    press("ArrowUp"); press("ArrowRight");
    say(document.getElementById("value").textContent);
    press("Escape");
    say(document.getElementById("head").hidden + " " + document.activeElement.getAttribute("aria-label"));
    document.body.append(Object.assign(document.createElement("pre"), {textContent: seen.join("|")}));
  </script></body>)";
  html.replace(html.rfind("</body>"), 7, keys);
  std::ofstream(shop_.path("keys.html")) << html;
  const std::string pressed = in_browser(shop_.path("keys.html"));
  EXPECT_NE(pressed.find("<pre>Layer 1, head 1 map|“b” (12) gives "), std::string::npos)
      << pressed.substr(pressed.size() > 600 ? pressed.size() - 600 : 0);
  EXPECT_NE(pressed.find("|true layer 1, head 1: importance"), std::string::npos);
}

TEST_F(Inspect, EncodersAndClassifiersOfTexts) {
  train("model.family=encoder model.vocabulary=258 ");
  const Finished encoder = inspect(text_);
  ASSERT_EQ(encoder.code, 0) << encoder.output;
  EXPECT_NE(read(shop_.path("out/inspect.html")).find("[mask]"), std::string::npos);
  EXPECT_EQ(dataset(shop_.path("out/inspect.h5"), "samples/0/maps").shape[2], 16u) << "what fills the context is seen";

  std::ofstream lines(shop_.path("lines.tsv"));
  for (int i = 0; i < 40; ++i) lines << (i % 2 == 0 ? "bird\tsings " : "fish\tswims ") << i * 7 % 11 << '\n';
  lines.close();
  const std::string model =
      "model.family=classifier model.classes=2 model.pool=class_token data.path=" + shop_.path("lines.h5 ");
  ASSERT_EQ(shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + model + shop_.path("lines.tsv")).code, 0);
  shell("rm -r " + shop_.path("run"));
  train(model);
  for (const auto& [text, known] : {std::pair{"'bird\tsings'", true}, {"sings", false}}) {
    const Finished classifier = inspect(std::string("--text ") + text);
    ASSERT_EQ(classifier.code, 0) << classifier.output;
    EXPECT_NE(read(shop_.path("out/inspect.html")).find("[class]"), std::string::npos);
    EXPECT_EQ(std::isnan(dataset(shop_.path("out/inspect.h5"), "measures/importance").values[0]), !known);
  }
}

TEST_F(Inspect, PairsHaveMapsOfTheEncoderTheDecoderAndWhatOneReadsOfTheOther) {
  std::ofstream lines(shop_.path("pairs.tsv"));
  for (int i = 0; i < 40; ++i) lines << (i % 2 == 0 ? "a bird\tein Vogel\n" : "one fish\tFisch\n");
  lines.close();
  const std::string model = "model.family=encoder_decoder model.encoder_layers=1 model.source_context=12 data.path=" +
                            shop_.path("pairs.h5 ");
  ASSERT_EQ(shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + model + shop_.path("pairs.tsv")).code, 0);
  train(model + "train.inspect_every=5");
  std::ifstream metrics(shop_.path("run/metrics.jsonl"));
  for (std::string line; std::getline(metrics, line);)
    if (line.find("head_entropy") != std::string::npos) {
      EXPECT_EQ(nlohmann::json::parse(line)["head_entropy"].size(), 5u) << line;
    }
  const std::string pair = "--source 'a fish' --text 'ein Fisch' ", file = shop_.path("out/inspect.h5");
  const Finished alone = inspect(pair);
  ASSERT_EQ(alone.code, 0) << alone.output;
  EXPECT_TRUE(contains(alone, "5 layers of 3 heads, 1 pair")) << alone.output;
  const std::vector<std::string> maps = {"samples/0/encoder_maps", "samples/0/decoder_maps", "samples/0/cross_maps"};
  EXPECT_EQ(dataset(file, maps[0]).shape, (std::vector<hsize_t>{1, 3, 7, 7}));
  EXPECT_EQ(dataset(file, maps[1]).shape, (std::vector<hsize_t>{2, 3, 10, 10}));
  EXPECT_EQ(dataset(file, maps[2]).shape, (std::vector<hsize_t>{2, 3, 10, 7}));
  EXPECT_EQ(dataset(file, "samples/0/source_ids").values[2], 'f');
  EXPECT_EQ(dataset(file, "samples/0/ids").values[1], 'e') << "behind the token that begins the target";
  const Dataset across = dataset(file, maps[2]), distance = dataset(file, "measures/distance");
  for (std::size_t row = 0; row < across.values.size(); row += 7)
    EXPECT_NEAR(std::accumulate(across.values.begin() + static_cast<std::ptrdiff_t>(row),
                                across.values.begin() + static_cast<std::ptrdiff_t>(row + 7), 0.0f),
                1, 1e-5);
  for (std::size_t head = 0; head < 15; ++head)
    EXPECT_EQ(std::isnan(distance.values[head]), head >= 9) << "positions of two texts cannot be compared";
  shell("cp -r " + shop_.path("out") + " " + shop_.path("alone"));
  for (const char* words : {"parallel.tensor=2 parallel.sequence=true", "parallel.context=2", "parallel.pipeline=2"}) {
    const Finished split = inspect(pair + words, 2);
    ASSERT_EQ(split.code, 0) << words << "\n" << split.output;
    expect_alike(shop_.path("alone/inspect.h5"), 1e-5f, maps);
  }
  if (has_browser()) {
    const std::string shown = in_browser(shop_.path("out/inspect.html"), "layer=4&head=1&query=2&key=2");
    for (const char* said : {"<h2 id=\"name\">Cross 1, head 1</h2>", "“i” (2) gives", "to “f” (2).",
                             "encoder 0, head 0: importance", "Queries (target) down, keys (source) across"})
      EXPECT_NE(shown.find(said), std::string::npos) << said << "\n" << shown.substr(0, 400);
  }
  ASSERT_EQ(inspect("--held-out 2").code, 0);
  EXPECT_EQ(dataset(file, "measures/entropy").shape, (std::vector<hsize_t>{2, 5, 3}));
  const Finished half = inspect("--text abc");
  EXPECT_EQ(half.code, 2);
  EXPECT_TRUE(contains(half, "--text is given 1 time and --source 0 times")) << half.output;
  EXPECT_TRUE(contains(inspect("--text a --source ''"), "--source is empty"));
}

TEST_F(Inspect, PicturesAreDrawnWithWhatTheClassTokenReads) {
  for (int i = 0; i < 12; ++i) {
    shell("mkdir -p " + shop_.path(i % 2 == 0 ? "pictures/left" : "pictures/right"));
    std::ofstream file(
        shop_.path(std::string("pictures/") + (i % 2 == 0 ? "left/" : "right/") + std::to_string(i) + ".pgm"));
    file << "P2 8 6 100\n";
    for (int at = 0; at < 48; ++at) file << ((at % 8 < 4) == (i % 2 == 0) ? 70 : 10) + (i * 7 + at * 13) % 30 << '\n';
  }
  const std::string model =
      "model.family=vision model.image.height=6 model.image.width=8 model.image.patch=2 model.classes=2 "
      "model.context=13 model.pool=class_token data.path=" +
      shop_.path("images.h5 ");
  ASSERT_EQ(shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + model + shop_.path("pictures")).code, 0);
  train(model);
  const Finished finished =
      inspect("--images " + shop_.path("pictures/left") + " --images " + shop_.path("pictures/right/1.pgm"));
  ASSERT_EQ(finished.code, 0) << finished.output;
  EXPECT_TRUE(contains(finished, "7 images")) << finished.output;
  const std::string pixels = shop_.path("out/inspect.h5");
  EXPECT_EQ(dataset(pixels, "samples/0/pixels").shape, (std::vector<hsize_t>{1, 6, 8}));
  EXPECT_EQ(dataset(pixels, "samples/0/pixels").values[0], std::round(70 * 255 / 100.0f)) << "the pixels of 0.pgm";
  EXPECT_FALSE(std::isnan(dataset(pixels, "measures/importance").values[0])) << "the folder's name is the class";
  EXPECT_TRUE(std::isnan(dataset(pixels, "measures/induction").values[0]));
  if (has_browser()) {
    const std::string shown = in_browser(shop_.path("out/inspect.html"), "layer=0&head=1");
    EXPECT_NE(shown.find("The class token gives"), std::string::npos) << shown.substr(0, 400);
  }
  const Finished text = inspect("--text abc");
  EXPECT_EQ(text.code, 2);
  EXPECT_TRUE(contains(text, "--text, but model.family = vision")) << text.output;
  EXPECT_TRUE(contains(text, "fix: --images FILE")) << text.output;
  std::ofstream(shop_.path("small.pgm")) << "P2 2 1 9\n3 4\n";
  EXPECT_TRUE(contains(inspect("--images " + shop_.path("small.pgm")), "this image has 1 x 2 pixels, not 6 x 8"));
}

TEST_F(Inspect, SaysWhatIsMissingAndHowToGiveIt) {
  const Finished nothing = inspect(text_);
  EXPECT_EQ(nothing.code, 2);
  EXPECT_TRUE(contains(nothing, "there is no such folder")) << nothing.output;
  shell("mkdir " + shop_.path("run"));
  EXPECT_TRUE(contains(inspect(text_), "holds no checkpoint"));
  train();
  const struct {
    std::string arguments, said, fix;
  } cases[] = {
      {"data.path=" + shop_.path("missing.h5"), "there is nothing to look at", "--text TEXT"},
      {"data.held_out=0 data.path=" + shop_.path("other.h5"), "no held-out data", "--text TEXT"},
      {"--text a", "--text has 1 token", "give a longer text"},
      {"--text abc --held-out 2", "more than one of --text, --images and --held-out is given", "give one"},
      {"--images x.png", "--images, but model.family = decoder", "--text TEXT"},
      {"--text abc --source abc", "--source, but model.family = decoder", "leave it out"},
      {"--held-out 17", "17 samples are more than 16", "look at fewer"},
      {text_ + "parallel.tensor=4", "parallel.tensor", "fix"},
  };
  shell("cat " + shop_.path("text-*") + " > " + shop_.path("more"));
  ASSERT_EQ(
      shop_.choir("prepare " + shop_.path("tiny.yaml") + " data.path=" + shop_.path("other.h5 ") + shop_.path("more"))
          .code,
      0);
  for (const auto& c : cases) {
    const Finished refused = inspect(c.arguments);
    EXPECT_EQ(refused.code, 2) << c.arguments << "\n" << refused.output;
    EXPECT_TRUE(contains(refused, c.said)) << c.arguments << "\n" << refused.output;
    EXPECT_TRUE(contains(refused, c.fix)) << c.arguments << "\n" << refused.output;
  }
  EXPECT_FALSE(std::filesystem::exists(shop_.path("out"))) << "nothing is written";
}

}  // namespace
}  // namespace choir::tests
