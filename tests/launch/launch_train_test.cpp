// launch/train: called through a link, from other folders, with paths that need quotes; the commands that it prints.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "tests/launch/runs.h"
#include "tests/launch/terminal.h"

namespace choir::tests {
namespace {

const std::string script = CHOIR_SOURCE_DIR "/launch/train";

std::string quoted(const std::string& word) {
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

/// launch/train with the program that was built with the tests.
Finished launch_train(const std::string& arguments) {
  return shell("CHOIR=" CHOIR_BINARY " " + script + " " + arguments);
}

/// The command that follows `words` in a line of the output; "" if there is none.
std::string command_after(const std::string& output, const std::string& words) {
  const std::size_t at = output.find(words);
  if (at == std::string::npos) return "";
  const std::size_t begin = output.find_first_not_of(' ', at + words.size());
  return output.substr(begin, output.find_first_of("\r\n", begin) - begin);
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const std::size_t at = text.find(what);
  return at == std::string::npos ? "" : text.replace(at, what.size(), by);
}

TEST(LaunchTrain, PrintsCommandsThatCanBePastedWhateverItsOwnPathAndThatOfTheRun) {
  const Workshop shop;
  const std::string here = shop.path("it's here"), tools = shop.path("my tools");
  std::filesystem::create_directories(here);
  std::filesystem::create_directories(tools);
  std::filesystem::create_symlink(script, tools + "/train it");
  std::filesystem::create_symlink(CHOIR_BINARY, tools + "/choir");
  std::filesystem::copy_file(shop.path("tiny.yaml"), here + "/a config.yaml");
  const std::string cd = "cd " + quoted(here) + " && ";
  const Finished run = shell(cd +
                             "CHOIR='../my tools/choir' RANKS=2 '../my tools/train it' 'a config.yaml' "
                             "'train.folder=run [1] of $HOME' train.steps=4 parallel.tensor=2");
  ASSERT_EQ(run.code, 0) << run.output;
  EXPECT_TRUE(contains(run, "A sample:")) << run.output;
  EXPECT_TRUE(contains(run, "run folder   run [1] of $HOME\n")) << run.output;
  EXPECT_TRUE(contains(run, "checkpoint   run [1] of $HOME/checkpoints/step-00000004\n")) << run.output;
  EXPECT_TRUE(contains(run, "bits per byte after step 4\n")) << run.output;

  const Finished sample = shell(cd + command_after(run.output, "more text "));
  EXPECT_EQ(sample.code, 0) << sample.output;
  EXPECT_TRUE(contains(sample, "...")) << "the prompt\n" << sample.output;

  const std::string longer = replaced(command_after(run.output, "train on "), "train.steps=...", "train.steps=6");
  EXPECT_EQ(longer.find("train.steps=4"), std::string::npos) << longer;
  const Finished more = shell(cd + longer);
  EXPECT_EQ(more.code, 0) << longer << "\n" << more.output;
  EXPECT_TRUE(contains(more, "after step 4\n")) << more.output;
  EXPECT_TRUE(contains(more, "bits per byte after step 6\n")) << more.output;
}

TEST(LaunchTrain, MakesTheDataOfTheExamplesConfigurations) {
  const Workshop shop;
  for (const char* config : {"two-sequences", "three-streams"}) {
    const Finished run =
        shell("cd " + shop.folder() + " && CHOIR=" CHOIR_BINARY " " + script + " " CHOIR_SOURCE_DIR "/configs/" +
              config + ".yaml train.steps=2 optimizer.warmup=1 train.evaluate_sequences=8");
    EXPECT_EQ(run.code, 0) << run.output;
    EXPECT_TRUE(contains(run, "both.h5: 4000 ")) << run.output;
  }
}

TEST(LaunchTrain, SaysThatMoreStepsChangeTheRateIfTheyDo) {
  const Workshop shop;
  const auto last_lines = [&](const std::string& schedule) {
    const Finished run = launch_train(shop.path("tiny.yaml") + " train.folder=" + shop.path(schedule) +
                                      " train.steps=4 optimizer.schedule=" + schedule);
    EXPECT_EQ(run.code, 0) << run.output;
    return run;
  };
  EXPECT_TRUE(contains(last_lines("cosine"), "optimizer.schedule = cosine depends on train.steps"));
  EXPECT_FALSE(contains(last_lines("constant"), "depends on train.steps"));
}

TEST(LaunchTrain, SavesAndContinuesAsItSays) {
  const Workshop shop;
  std::string command = "CHOIR=" CHOIR_BINARY " " + script + " " + shop.path("tiny.yaml") +
                        " train.folder=" + quoted(shop.path("my run")) + " train.steps=1000000 checkpoint.every=0";
  for (const std::string words : {"  loss ", "resuming "}) {
    TerminalSession session("exec env TERM=xterm " + command, Terminal(200, 24, Narrowing::wrap));
    ASSERT_TRUE(session.show_until([&] { return session.written().find(words) != std::string::npos; }))
        << command << "\n"
        << session.written();
    session.show_until([&] { return session.written().find("step ") != std::string::npos; });
    session.send(SIGTERM);
    EXPECT_EQ(session.finish(), 75) << session.written();
    command = command_after(session.written(), "\ngo on ");
    ASSERT_NE(command, "") << session.written();
  }
}

TEST(LaunchTrain, SaysHowToContinueAfterALossThatIsNotFinite) {
  const Workshop shop;
  const Finished run = launch_train(shop.path("tiny.yaml") + " train.folder=" + shop.path("run") +
                                    " optimizer.kind=sgd optimizer.rate=1e30 optimizer.clip=0 checkpoint.every=1");
  EXPECT_EQ(run.code, 3) << run.output;
  const std::string list_command = command_after(run.output, "go back to an earlier step with a lower rate:\n");
  const std::string advice = command_after(run.output, list_command + "\n");
  EXPECT_TRUE(advice.ends_with("checkpoint.every=1 optimizer.rate=... --resume=STEP")) << run.output;
  EXPECT_EQ(advice.find("optimizer.rate=1e30"), std::string::npos) << advice;
  const Finished list = shell(list_command);
  EXPECT_EQ(list.code, 0) << list.output;
  EXPECT_TRUE(contains(list, "step-00000001")) << list.output;
}

TEST(LaunchTrain, PassesResumeAndAStepOnAsTheyAre) {
  const Workshop shop;
  std::ofstream(shop.path("recorder")) << "#!/bin/sh\n"
                                          "[ $1 = train ] || exec " CHOIR_BINARY
                                          " \"$@\"\n"
                                          "printf '<%s>' \"$@\"; echo\n";
  chmod(shop.path("recorder").c_str(), 0755);
  for (const std::string resume : {"--resume", "--resume=7"}) {
    const Finished run = shell("CHOIR=" + shop.path("recorder") + " " + script + " " + resume + " " +
                               shop.path("tiny.yaml") + " 'generate.prompt=He  said' train.folder=" + shop.path("run"));
    EXPECT_TRUE(contains(run, "<train><" + shop.path("tiny.yaml") +
                                  "><generate.prompt=He  said><train.folder=" + shop.path("run") + "><" + resume + ">"))
        << run.output;
  }
}

TEST(LaunchTrain, NamesMistakes) {
  const Finished option = launch_train("configs/quickstart.yaml --resum");
  EXPECT_EQ(option.code, 2);
  EXPECT_TRUE(contains(option, "unknown option --resum")) << option.output;
  const Finished program = shell("CHOIR=/nowhere/choir " + script + " configs/quickstart.yaml");
  EXPECT_EQ(program.code, 2);
  EXPECT_TRUE(contains(program, "CHOIR = /nowhere/choir is not a program")) << program.output;
  const Finished ranks = shell("RANKS=two " + script + " configs/quickstart.yaml");
  EXPECT_EQ(ranks.code, 2);
  EXPECT_TRUE(contains(ranks, "RANKS = two is not a number of ranks")) << ranks.output;
  const Finished config = launch_train("--resume");
  EXPECT_EQ(config.code, 2);
  EXPECT_TRUE(contains(config, "no CONFIG is named")) << config.output;
}

}  // namespace
}  // namespace choir::tests
