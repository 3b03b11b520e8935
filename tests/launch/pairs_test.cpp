// Encoder-decoders through the program: pairs of texts to a token file, training in layouts, translation and chrF, and
// what is refused.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string model = "model.family=encoder_decoder model.source_context=16 model.context=12 data.held_out=0.2 ";

class Pairs : public ::testing::Test {
 protected:
  Pairs() {
    std::ofstream lines(shop_.path("pairs.tsv"));
    std::ofstream json(shop_.path("pairs.jsonl"));
    const char* sources[] = {"a lion", "the bird sings", "fish"};
    const char* targets[] = {"Löwe", "es singt", "ein Fisch"};
    for (int i = 0; i < 30; ++i) {
      lines << sources[i % 3] << '\t' << targets[i % 3] << '\n';
      json << R"({"target": ")" << targets[i % 3] << R"(", "source": ")" << sources[i % 3] << "\"}\n";
    }
    lines.close();
    json.close();
    prepared_ = prepare(shop_.path("pairs.tsv") + " " + shop_.path("pairs.jsonl"), "pairs.h5");
  }
  Finished prepare(const std::string& inputs, const std::string& output) const {
    return shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + model + "data.path=" + shop_.path(output) + " " +
                       inputs);
  }
  Workshop shop_;
  std::string words_ = model + "data.path=" + shop_.path("pairs.h5") + " ";
  Finished prepared_;
};

TEST_F(Pairs, GiveTheLossesOfOneRankInEveryLayout) {
  ASSERT_EQ(prepared_.code, 0) << prepared_.output;
  EXPECT_TRUE(contains(prepared_, "pairs.h5: 60 pairs")) << prepared_.output;
  const std::vector<LaunchLayout> layouts = {
      {2, "parallel.pipeline=2 parallel.micro_batch=1"},
      {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true parallel.micro_batch=2 parallel.zero=1"},
  };
  const std::string words = words_ + "train.evaluate_sequences=0 ";
  ASSERT_EQ(shop_.train(1, "one", words).code, 0);
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const std::string run = "run" + std::to_string(i);
    const Finished finished = shop_.train(layouts[i].ranks, run, words + layouts[i].words);
    ASSERT_EQ(finished.code, 0) << layouts[i].words << "\n" << finished.output;
    for (const char* key : {"loss", "gradient_norm", "held_out_loss"})
      expect_near(shop_.metric(run, key), shop_.metric("one", key), relative);
  }
}

TEST_F(Pairs, ATrainedModelTranslates) {
  const Finished run = shop_.train(2, "run",
                                   words_ +
                                       "train.steps=120 train.evaluate_sequences=0 checkpoint.every=0 "
                                       "optimizer.rate=0.01 model.dropout=0 parallel.tensor=2");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "pairs.h5: 60 pairs, 48 for training, 12 held out; 0 are longer")) << run.output;
  const std::string generate = "generate " + shop_.path("run") + " generate.prompt=";
  for (const char* beam : {" generate.beam=1", " generate.beam=3"})
    EXPECT_EQ(shop_.choir(generate + "'the bird sings'" + beam).output, "es singt\n") << beam;
  EXPECT_TRUE(contains(shop_.choir("evaluate " + shop_.path("run") + " --chrf"), ", chrF 100.00, over"));
  EXPECT_TRUE(contains(shop_.choir(generate + "''"), "generate.prompt is empty"));
  EXPECT_TRUE(contains(shop_.choir(generate + "'a text of more tokens than that'"), "and the model reads 16"));
  EXPECT_TRUE(contains(shop_.mpirun(2, "evaluate " + shop_.path("run") + " --chrf"), "--chrf on 2 ranks"));
}

TEST_F(Pairs, ATrainedModelOfLinearAttentionTranslates) {
  const Finished run = shop_.train(1, "run",
                                   words_ +
                                       "train.steps=240 train.evaluate_sequences=0 checkpoint.every=0 "
                                       "optimizer.rate=0.01 model.dropout=0 model.attention.kind=linear");
  ASSERT_EQ(run.code, 0) << run.output;
  for (const char* beam : {" generate.beam=1", " generate.beam=3"})
    EXPECT_EQ(shop_.choir("generate " + shop_.path("run") + " generate.prompt='the bird sings'" + beam).output,
              "es singt\n")
        << beam;
}

// Tokens of both stacks choose experts, heads of self-attention, or both.
TEST_F(Pairs, TokensThatChooseExpertsAndHeadsGiveTheLossesOfOneRankAndTranslate) {
  const std::string words = words_ +
                            "train.evaluate_sequences=0 model.experts.count=4 model.experts.capacity=1.1 "
                            "model.attention.routing.chosen=1 model.attention.routing.always=1 ";
  ASSERT_EQ(shop_.train(1, "one", words).code, 0);
  for (const char* key : {"dropped", "heads_dropped"}) EXPECT_GT(shop_.metric("one", key)[0], 0) << key;
  const std::vector<LaunchLayout> layouts = {
      {2, "parallel.expert=2 parallel.context=2"},
      {2, "parallel.pipeline=2 parallel.micro_batch=1"},
      {4, "parallel.expert=2 parallel.tensor=2 parallel.sequence=true parallel.zero=1"},
  };
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    SCOPED_TRACE(layouts[i].words);
    const std::string run = "run" + std::to_string(i);
    const Finished finished = shop_.train(layouts[i].ranks, run, words + layouts[i].words);
    ASSERT_EQ(finished.code, 0) << finished.output;
    for (const char* key : {"loss", "gradient_norm", "held_out_loss", "dropped", "heads_dropped"})
      expect_near(shop_.metric(run, key), shop_.metric("one", key), relative);
    for (const char* key : {"balance_loss", "head_balance_loss"})
      expect_near(shop_.metric(run, key), shop_.metric("one", key), 10 * relative);
  }
  const std::string layout = "parallel.expert=2 parallel.context=2 ";
  const Finished verify = shop_.mpirun(2, "verify " + shop_.path("tiny.yaml") + " " + words + layout);
  EXPECT_EQ(verify.code, 0) << verify.output;

  const Finished trained = shop_.train(
      2, "trained", words + layout + "train.steps=120 checkpoint.every=0 optimizer.rate=0.01 model.dropout=0");
  ASSERT_EQ(trained.code, 0) << trained.output;
  for (const char* beam : {" generate.beam=1", " generate.beam=3"})
    EXPECT_EQ(shop_.choir("generate " + shop_.path("trained") + " generate.prompt='the bird sings'" + beam).output,
              "es singt\n")
        << beam;
  const Finished inspected = shop_.choir("inspect " + shop_.path("trained") +
                                         " --source fish --text 'ein Fisch' --output " + shop_.path("out"));
  EXPECT_EQ(inspected.code, 0) << inspected.output;
}

TEST_F(Pairs, LinesThatAreNoPairAreAllNamedAndNothingIsWritten) {
  std::ofstream(shop_.path("broken.tsv")) << "a\tb\nno tab here\n\tno source\nno target\t \na\tb\tc\n";
  std::ofstream(shop_.path("broken.jsonl"))
      << "{\"source\": \"a\", \"target\": \"b\"}\nnot JSON\n{\"source\": \"a\"}\n{\"source\": 1, \"target\": \"\"}\n";
  const Finished refused = prepare(shop_.path("broken.tsv") + " " + shop_.path("broken.jsonl"), "new.h5");
  EXPECT_EQ(refused.code, 2);
  for (const char* said :
       {"broken.tsv:2: this line has no tab", "broken.tsv:3: this line has no source before its tab",
        "broken.tsv:4: this line has no target behind its tab", "broken.tsv:5: this line has 3 columns",
        "broken.jsonl:2: this line is not a JSON object", "broken.jsonl:3: this line has no \"target\"",
        "broken.jsonl:4: \"source\" of this line is not a string", "broken.jsonl:4: \"target\" of this line is empty"})
    EXPECT_TRUE(contains(refused, said)) << said << "\n" << refused.output;
  EXPECT_EQ(read(shop_.path("new.h5")), "");
}

TEST_F(Pairs, ATokenFileWithoutPairsIsRefused) {
  const Finished text = shop_.train(1, "run", model);
  EXPECT_EQ(text.code, 2);
  EXPECT_TRUE(contains(text, "its texts are not pairs")) << text.output;
}

// The target is a token of the second source: the first one says which.
TEST_F(Pairs, TriplesHaveTwoSources) {
  const std::string two = "model.attention.sources.values=second_source ";
  std::ofstream lines(shop_.path("triples.tsv"));
  std::ofstream json(shop_.path("triples.jsonl"));
  for (int i = 0; i < 40; ++i) {
    const char* answer = i % 2 == 0 ? "fish" : "a bird";
    lines << (i % 2 == 0 ? "first" : "the second") << "\tfish bird\t" << answer << '\n';
    json << R"({"source": ")" << (i % 2 == 0 ? "first" : "the second") << R"(", "target": ")" << answer
         << R"(", "second_source": "fish bird"})" << '\n';
  }
  lines.close();
  json.close();
  std::ofstream(shop_.path("broken.tsv")) << "a\tb\tc\na\tb\n\tb\tc\na\t \tc\na\tb\t\n";
  std::ofstream(shop_.path("broken.jsonl")) << "{\"source\": \"a\", \"target\": \"b\"}\n";
  const Finished broken = prepare(two + shop_.path("broken.tsv") + " " + shop_.path("broken.jsonl"), "new.h5");
  EXPECT_EQ(broken.code, 2);
  for (const char* said :
       {"broken.tsv:2: this line has 2 columns", "broken.tsv:3: this line has no source before its first tab",
        "broken.tsv:4: this line has no second source between its tabs",
        "broken.tsv:5: this line has no target behind its second tab",
        "broken.jsonl:1: this line has no \"second_source\""})
    EXPECT_TRUE(contains(broken, said)) << said << "\n" << broken.output;
  EXPECT_EQ(read(shop_.path("new.h5")), "");

  const Finished prepared = prepare(two + shop_.path("triples.tsv") + " " + shop_.path("triples.jsonl"), "triples.h5");
  ASSERT_EQ(prepared.code, 0) << prepared.output;
  EXPECT_TRUE(contains(prepared, "triples.h5: 80 triples")) << prepared.output;
  const Finished pairs = shop_.train(1, "pairs", words_ + two);
  EXPECT_EQ(pairs.code, 2);
  EXPECT_TRUE(contains(pairs, "its texts are not triples")) << pairs.output;
  EXPECT_TRUE(contains(pairs, "each of its lines had 2 texts, and this model reads 3")) << pairs.output;

  const std::string words = model + two + "data.path=" + shop_.path("triples.h5 ") + "train.evaluate_sequences=0 ";
  ASSERT_EQ(shop_.train(1, "one_rank", words).code, 0);
  const Finished two_ranks = shop_.train(2, "two_ranks", words + "parallel.context=2 parallel.micro_batch=2");
  ASSERT_EQ(two_ranks.code, 0) << two_ranks.output;
  EXPECT_TRUE(contains(two_ranks, "triples.h5: 80 triples, 64 for training, 16 held out; 0 are longer"))
      << two_ranks.output;
  for (const char* key : {"loss", "gradient_norm", "held_out_loss"})
    expect_near(shop_.metric("two_ranks", key), shop_.metric("one_rank", key), relative);

  const Finished trained =
      shop_.train(1, "one", words + "train.steps=80 checkpoint.every=0 optimizer.rate=0.01 model.dropout=0");
  ASSERT_EQ(trained.code, 0) << trained.output;
  const std::string generate = "generate " + shop_.path("one") + " generate.prompt=";
  for (const char* beam : {" generate.beam=1", " generate.beam=3"}) {
    EXPECT_EQ(shop_.choir(generate + "'first\tfish bird'" + beam).output, "fish\n") << beam;
    EXPECT_EQ(shop_.choir(generate + "'the second\tfish bird'" + beam).output, "a bird\n") << beam;
  }
  EXPECT_TRUE(contains(shop_.choir("evaluate " + shop_.path("one") + " --chrf"), ", chrF 100.00, over"));
  EXPECT_TRUE(contains(shop_.choir(generate + "first"), "generate.prompt has 0 tabs"));
  EXPECT_TRUE(contains(shop_.choir(generate + "'first\t'"), "the second text of generate.prompt is empty"));
  const Finished inspected = shop_.choir("inspect " + shop_.path("one") +
                                         " --source 'first\tfish bird' --text fish --output " + shop_.path("out"));
  EXPECT_EQ(inspected.code, 0) << inspected.output;
  const std::string page = read(shop_.path("out/inspect.html"));
  for (const char* said : {"\"second_source 0\"", "\"keys\":\"source\",\"columns\":\"second_source\""})
    EXPECT_NE(page.find(said), std::string::npos) << said;
}

}  // namespace
}  // namespace choir::tests
