// choir hosts CONFIG --hostfile FILE [key=value ...]: the ranks that a run can use on the hosts that are left. For
// launch/supervise. Prints "KEY VALUE" lines:
//
//   ranks N         0: the configuration runs on no number of ranks that these hosts have
//   micro_batch N   parallel.micro_batch for them, if it had to be lowered
//   host NAME N     a host that is used, and its slots
//   idle NAME       a host that is left and not needed
#include <cstdio>

#include "launch/command_line.h"
#include "launch/hosts.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  std::string hostfile;
  std::int64_t ranks = 0;
  std::vector<std::string> without;
};

int hosts(const Arguments& arguments) {
  const Config config = arguments.config.read_as_written();
  const std::vector<Host> all = read_hostfile(arguments.hostfile), left = without(all, arguments.without);
  const std::int64_t wanted = arguments.ranks > 0 ? arguments.ranks : slots_of(all);
  const Fit fit = fit_ranks(config, std::min(wanted, slots_of(left)));
  const std::vector<Host> used = first_with(left, fit.ranks);
  std::printf("ranks %lld\n", static_cast<long long>(fit.ranks));
  if (fit.micro_batch != config.parallel.micro_batch)
    std::printf("micro_batch %lld\n", static_cast<long long>(fit.micro_batch));
  for (const Host& host : used) std::printf("host %s %lld\n", host.name.c_str(), static_cast<long long>(host.slots));
  for (std::size_t i = used.size(); i < left.size(); ++i) std::printf("idle %s\n", left[i].name.c_str());
  return 0;
}

}  // namespace

void add_hosts_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("hosts", "the ranks that a run can use on the hosts that are left");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*verb);
  verb->add_option("--hostfile", arguments->hostfile, "mpirun's hostfile")->required();
  verb->add_option("--ranks", arguments->ranks, "at most this number of ranks; default: all slots")
      ->check(CLI::PositiveNumber);
  verb->add_option("--without", arguments->without, "a host that is lost; may be repeated")->allow_extra_args(false);
  verb->callback([&line, arguments] { line.run = [arguments] { return hosts(*arguments); }; });
}

}  // namespace choir
