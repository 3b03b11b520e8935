// Classifiers of texts through the program: lines with classes to a token file, training in layouts, from the weights
// of an encoder, and what is refused.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string model = "model.family=classifier model.classes=3 data.held_out=0.2 ";

class Classifier : public ::testing::Test {
 protected:
  Classifier() {
    std::ofstream lines(shop_.path("lines.tsv"));
    const char* words[] = {"lion sleeps", "bird sings", "fish swim"};
    const char* names[] = {"beast", "bird", "fish"};
    for (int i = 0; i < 60; ++i) lines << names[i % 3] << '\t' << words[i % 3] << ' ' << i * 7 % 11 << '\n';
    lines.close();
    prepared_ = shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + words_ + shop_.path("lines.tsv"));
  }
  Workshop shop_;
  std::string words_ = model + "data.path=" + shop_.path("lines.h5") + " ";
  Finished prepared_;
};

TEST_F(Classifier, LinesWithClassesBecomeATokenFile) {
  ASSERT_EQ(prepared_.code, 0) << prepared_.output;
  EXPECT_TRUE(contains(prepared_, "lines.h5: 60 documents of 3 classes (beast 20, bird 20, fish 20)"))
      << prepared_.output;
}

TEST_F(Classifier, GivesTheLossesOfOneRankInEveryLayout) {
  const std::vector<LaunchLayout> layouts = {
      {2, "parallel.zero=3 parallel.micro_batch=1"},
      {3, "parallel.tensor=3 parallel.sequence=true"},
      {2, "parallel.pipeline=2 parallel.micro_batch=1"},
      {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true parallel.micro_batch=2"},
  };
  const std::string words = words_ + "train.evaluate_sequences=0 ";
  ASSERT_EQ(shop_.train(1, "one", words).code, 0);
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const std::string run = "run" + std::to_string(i);
    const Finished finished = shop_.train(layouts[i].ranks, run, words + layouts[i].words);
    ASSERT_EQ(finished.code, 0) << layouts[i].words << "\n" << finished.output;
    for (const char* key : {"loss", "gradient_norm", "held_out_loss"})
      expect_near(shop_.metric(run, key), shop_.metric("one", key), relative);
    EXPECT_EQ(shop_.metric(run, "accuracy"), shop_.metric("one", "accuracy")) << layouts[i].words;
  }
}

TEST_F(Classifier, LearnsToTellTheClassesApart) {
  const Finished run = shop_.train(
      2, "run", words_ + "train.steps=40 train.evaluate_sequences=0 optimizer.rate=0.003 parallel.tensor=2");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "lines.h5: 60 texts of 3 classes, 48 for training, 12 held out; 0 are longer"))
      << run.output;
  EXPECT_TRUE(contains(run, "nats a text, 100.00 % right (12 of 12 texts)")) << run.output;
  const Finished evaluated = shop_.choir("evaluate " + shop_.path("run"));
  EXPECT_TRUE(contains(evaluated, "100.00 % right, over 12 held-out texts")) << evaluated.output;
}

TEST_F(Classifier, WhatFillsATextUpChangesNothing) {
  for (const std::string kind : {"softmax", "linear"}) {
    SCOPED_TRACE(kind);
    const std::string words = words_ +
                              "train.steps=3 model.dropout=0 model.attention.position=rotary "
                              "model.attention.kind=" +
                              kind + " model.context=";
    ASSERT_EQ(shop_.train(1, "short" + kind, words + "16").code, 0);
    ASSERT_EQ(shop_.train(1, "long" + kind, words + "40").code, 0);
    for (const char* key : {"loss", "gradient_norm", "held_out_loss"})
      expect_near(shop_.metric("long" + kind, key), shop_.metric("short" + kind, key), relative);
  }
}

TEST_F(Classifier, TakesTheWeightsOfAnEncoder) {
  const std::string vocabulary = "model.vocabulary=258 ";
  ASSERT_EQ(shop_.train(2, "encoder", vocabulary + "model.family=encoder parallel.tensor=2").code, 0);
  const Finished tuned = shop_.train(2, "tuned", words_ + vocabulary + "train.from=" + shop_.path("encoder"));
  ASSERT_EQ(tuned.code, 0) << tuned.output;
  EXPECT_TRUE(contains(tuned, "the checkpoint is of an encoder: head.weight has its start values")) << tuned.output;
  const Finished fresh = shop_.train(2, "fresh", words_ + vocabulary);
  ASSERT_EQ(fresh.code, 0) << fresh.output;
  EXPECT_NE(shop_.metric("tuned", "loss"), shop_.metric("fresh", "loss"));
  const Finished wider =
      shop_.train(2, "wider", words_ + vocabulary + "model.layers=3 train.from=" + shop_.path("encoder"));
  EXPECT_EQ(wider.code, 2);
  EXPECT_TRUE(contains(wider, "model.layers = 3, but")) << wider.output;
}

TEST_F(Classifier, LinesThatDoNotFitAreAllNamedAndNothingIsWritten) {
  std::ofstream(shop_.path("broken.tsv"))
      << "beast\tthe lion\nno tab here\n\tno class\nno text\t\n\nplant\ta tree\nstone\ta rock\n"
         "bird\ta crow\n";
  const std::string output = shop_.path("new.h5");
  const Finished refused = shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + model + "data.path=" + output +
                                       " " + shop_.path("broken.tsv"));
  EXPECT_EQ(refused.code, 2);
  for (const char* said : {"broken.tsv:2: this line has no tab", "broken.tsv:3: this line has no class before its tab",
                           "broken.tsv:4: this line has no text behind its tab",
                           "model.classes = 3 is less than the 4 classes of the texts",
                           "the rarest are beast (1 in all, first ", "broken.tsv:6)"})
    EXPECT_TRUE(contains(refused, said)) << said << "\n" << refused.output;
  EXPECT_EQ(read(output), "");
}

TEST_F(Classifier, ATokenFileWithoutClassesIsRefused) {
  const Finished text = shop_.train(1, "run", model);
  EXPECT_EQ(text.code, 2);
  EXPECT_TRUE(contains(text, "its texts have no classes")) << text.output;
}

}  // namespace
}  // namespace choir::tests
