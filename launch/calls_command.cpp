// choir calls RUN: the last collective calls of each rank of a run that has died or hangs.
#include <cstdio>
#include <filesystem>

#include "framework/train/run_folder.h"
#include "launch/command_line.h"

namespace choir {

void add_calls_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("calls", "the last collective calls of each rank of a run that died or hangs");
  auto run = std::make_shared<std::string>();
  verb->add_option("RUN", *run, "the run folder")->required();
  verb->callback([&line, run] {
    line.run = [run] {
      if (!std::filesystem::is_directory(RunFolder{*run}.logs()))
        throw ConfigError(Problem{.what = "RUN = " + *run + " is not a run folder: it has no folder logs",
                                  .why = "each rank keeps its last calls in logs/rank-N.calls",
                                  .fix = "name train.folder, for example runs/quickstart"});
      std::fputs(describe_call_rings(RunFolder{*run}.logs(), 12).c_str(), stdout);
      return 0;
    };
  });
}

}  // namespace choir
