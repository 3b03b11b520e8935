// Vision models through the program: pictures to an image file, training in layouts, checkpoints, verify, plan,
// evaluation, and what is refused.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/launch/layouts.h"

namespace choir::tests {
namespace {

const std::string model =
    "model.family=vision model.image.height=6 model.image.width=8 model.image.patch=2 model.classes=3 model.context=12 "
    "data.held_out=0.25 ";

/// 40 pictures of 6 x 8 pixels of three classes: bright on the left, on the right, or at the top; with noise.
void write_pictures(const std::string& folder) {
  for (int i = 0; i < 40; ++i) {
    const char* names[] = {"left", "right", "top"};
    shell("mkdir -p " + folder + "/" + names[i % 3]);
    std::ofstream file(folder + "/" + names[i % 3] + "/" + std::to_string(i) + ".pgm");
    file << "P2 8 6 100\n";
    for (int y = 0; y < 6; ++y)
      for (int x = 0; x < 8; ++x) {
        const bool bright = i % 3 == 0 ? x < 4 : i % 3 == 1 ? x >= 4 : y < 3;
        file << (bright ? 60 : 10) + (i * 7 + y * 13 + x * 29) % 30 << '\n';
      }
  }
}

class Vision : public ::testing::Test {
 protected:
  Vision() {
    write_pictures(shop_.path("pictures"));
    prepared_ = shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + words_ + shop_.path("pictures"));
  }
  Workshop shop_;
  std::string words_ = model + "data.path=" + shop_.path("images.h5") + " ";
  Finished prepared_;
};

TEST_F(Vision, PicturesInFoldersBecomeAnImageFile) {
  ASSERT_EQ(prepared_.code, 0) << prepared_.output;
  EXPECT_TRUE(contains(prepared_, "images.h5: 40 images of 3 classes (left 14, right 13, top 13)")) << prepared_.output;
  const std::string first = read(shop_.path("images.h5"));
  shell("rm " + shop_.path("images.h5"));
  shop_.choir("prepare " + shop_.path("tiny.yaml") + " " + words_ + shop_.path("pictures"));
  EXPECT_EQ(read(shop_.path("images.h5")), first) << "the same pictures give the same bytes";
}

TEST_F(Vision, GivesTheLossesOfOneRankInEveryLayout) {
  const std::vector<LaunchLayout> layouts = {
      {2, "parallel.micro_batch=1"},
      {2, "parallel.zero=3 parallel.micro_batch=1"},
      {3, "parallel.tensor=3 parallel.sequence=true"},
      {2, "parallel.pipeline=2 parallel.micro_batch=1"},
      {2, "parallel.context=2 parallel.context_kind=ring train.recompute=block"},
      {4, "parallel.context=2 parallel.tensor=2 parallel.sequence=true parallel.micro_batch=2"},
  };
  const std::string words = words_ + "train.evaluate_sequences=0 data.augment.shift=0.7 data.augment.rotate=20 ";
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

TEST_F(Vision, LearnsToTellTheClassesApart) {
  const Finished run = shop_.train(
      2, "run", words_ + "train.steps=60 train.evaluate_sequences=0 model.initial_deviation=0.1 parallel.tensor=2");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "nats an image, 100.00 % right (10 of 10 images)")) << run.output;
  const Finished evaluated = shop_.choir("evaluate " + shop_.path("run"));
  EXPECT_TRUE(contains(evaluated, "100.00 % right, over 10 held-out images")) << evaluated.output;
  const Finished json = shop_.mpirun(2, "evaluate --json " + shop_.path("run") + " parallel.context=2");
  EXPECT_TRUE(contains(json, "\"accuracy\":1.0,\"samples\":10")) << json.output;
}

TEST_F(Vision, GoesOnInAnotherLayoutAndExactlyInTheSame) {
  const std::string words = words_ +
                            "model.pool=class_token model.context=13 model.image.stem=convolution "
                            "model.attention.position=learned_2d model.attention.dropout=0.1 ";
  ASSERT_EQ(shop_.train(2, "run", words + "parallel.tensor=2").code, 0);
  const std::vector<double> losses = shop_.metric("run", "loss");
  for (const std::string layout : {"parallel.tensor=2", "parallel.context=2"}) {
    shell("rm -r " + shop_.path("run") + "/checkpoints/step-00000010");
    const Finished resumed = shop_.train(2, "run", words + layout + " --resume=5");
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    expect_near(shop_.metric("run", "loss"), losses, layout == "parallel.tensor=2" ? 0 : relative);
  }
  const Finished changed = shop_.train(1, "run", words + "train.steps=11 data.augment.mirror=true --resume");
  EXPECT_EQ(changed.code, 0) << changed.output;
  EXPECT_TRUE(contains(changed, "data.augment.mirror = true, was false")) << changed.output;
}

TEST_F(Vision, VerifyProvesTensorRanksAndAProduct) {
  for (const LaunchLayout& layout :
       {LaunchLayout{2, "parallel.tensor=2"},
        LaunchLayout{4,
                     "parallel.tensor=2 parallel.context=2 parallel.sequence=true model.pool=class_token "
                     "model.context=13 model.image.stem=convolution model.attention.position=rotary_2d"}}) {
    const Finished verify =
        shop_.mpirun(layout.ranks, "verify " + shop_.path("tiny.yaml") + " " + model + layout.words);
    EXPECT_EQ(verify.code, 0) << verify.output;
    EXPECT_TRUE(contains(verify, "the layout computes what one rank computes")) << verify.output;
  }
}

TEST_F(Vision, IsPlannedWithItsExactPeak) {
  const Finished plan = shop_.choir("plan " + shop_.path("tiny.yaml") + " --ranks 2 " + model + "parallel.tensor=2");
  EXPECT_EQ(plan.code, 0) << plan.output;
}

TEST_F(Vision, PicturesThatDoNotFitAreAllNamedAndNothingIsWritten) {
  std::ofstream(shop_.path("pictures/left/broken.png")) << "\x89PNG\r\n";
  std::ofstream(shop_.path("pictures/left/empty.jpg")) << "";
  std::ofstream(shop_.path("pictures/right/small.pgm")) << "P2 2 1 9\n3 4\n";
  std::ofstream(shop_.path("pictures/right/short.ppm")) << "P6 8 6 255\nxyz";
  std::ofstream(shop_.path("pictures/right/notes.txt")) << "notes";
  const std::string output = shop_.path("new.h5");
  const std::string words = "prepare " + shop_.path("tiny.yaml") + " " + model + "data.path=" + output + " ";
  const Finished refused = shop_.choir(words + "model.classes=2 " + shop_.path("pictures"));
  EXPECT_EQ(refused.code, 2);
  for (const char* said :
       {"model.classes = 2 is less than the 3 classes of the images", "the rarest are top (13 in all, first ",
        "set model.classes to 3, or correct names that are mistakes", "broken.png: this image cannot be read",
        "empty.jpg: this image cannot be read", "small.pgm: this image has 1 x 2 pixels of 1 value, not 6 x 8 of 1",
        "short.ppm: this image cannot be read"})
    EXPECT_TRUE(contains(refused, said)) << said << "\n" << refused.output;
  EXPECT_EQ(read(output), "");
  EXPECT_EQ(shell("ls " + shop_.folder() + " | grep new.h5").output, "");
}

TEST_F(Vision, IsRefusedWithWhatOnlyTextHas) {
  const Finished generated = shop_.train(1, "run", words_);
  ASSERT_EQ(generated.code, 0) << generated.output;
  const Finished text = shop_.choir("generate " + shop_.path("run"));
  EXPECT_EQ(text.code, 2);
  EXPECT_TRUE(contains(text, "model.family = vision")) << text.output;
  const Finished tokens = shop_.train(1, "other", model);
  EXPECT_EQ(tokens.code, 2);
  EXPECT_TRUE(contains(tokens, "this is not an image file")) << tokens.output;
  const Finished decoder = shop_.train(1, "another", "data.path=" + shop_.path("images.h5"));
  EXPECT_EQ(decoder.code, 2);
  EXPECT_TRUE(contains(decoder, "this is not a token file")) << decoder.output;
  const Finished squares = shop_.choir("config " + shop_.path("tiny.yaml") + " " + model + "model.image.patch=4");
  EXPECT_TRUE(contains(squares, "set model.image.patch to one of 1, 2")) << squares.output;
  const Finished length = shop_.choir("config " + shop_.path("tiny.yaml") + " " + model + "model.pool=class_token");
  EXPECT_TRUE(contains(length, "set model.context to 13")) << length.output;
}

}  // namespace
}  // namespace choir::tests
