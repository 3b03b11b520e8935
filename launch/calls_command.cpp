// choir calls RUN: the last collective calls of each rank of a run that has died or hangs.
#include <cstdio>

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
      std::fputs(describe_call_rings(RunFolder{*run}.logs(), 12).c_str(), stdout);
      return 0;
    };
  });
}

}  // namespace choir
