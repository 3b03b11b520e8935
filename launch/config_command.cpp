// choir config CONFIG [key=value ...]: the complete configuration, with defaults and overrides. Values that choir train
// rejects for any number of ranks are an error here too, with the same message.
#include <algorithm>
#include <cstdio>

#include "framework/config/table.h"
#include "launch/command_line.h"

namespace choir {
namespace {

struct Arguments {
  ConfigArguments config;
  std::vector<std::string> keys;
};

/// One value per line, text without quotes, for scripts.
void print_values(Config config, const std::vector<std::string>& keys) {
  const std::vector<Field> rows = table(config);
  for (const std::string& key : keys) {
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const Field& field) { return field.key == key; });
    if (row == rows.end())
      throw ConfigError(
          Problem{.what = "--get " + key + ": not a key of the configuration", .fix = "choir --help lists all keys"});
    std::string* const* text = std::get_if<std::string*>(&row->slot);
    std::puts(text ? (*text)->c_str() : value_text(row->slot).c_str());
  }
}

/// The machine that trains may have bf16 instructions, or tiles, even if this one does not. So what is missing only on
/// this machine is a note, not an error.
void check(const Config& config) {
  Config elsewhere = config;
  elsewhere.train.emulate_bf16 = true;
  elsewhere.train.cpu_kernels = CpuKernels::automatic;
  throw_if_any(validate(elsewhere, 0));
  for (const Problem& problem : validate(config, 0))
    std::fprintf(stderr, "choir: on this machine, train would refuse: %s\n", describe(problem).c_str());
}

int print_config(const Arguments& arguments) {
  const Config config = arguments.config.read();
  check(config);
  if (arguments.keys.empty())
    std::fputs(print(config).c_str(), stdout);
  else
    print_values(config, arguments.keys);
  return 0;
}

}  // namespace

void add_config_command(CommandLine& line) {
  CLI::App* verb = line.app.add_subcommand("config", "print the complete configuration: defaults, file and overrides");
  auto arguments = std::make_shared<Arguments>();
  arguments->config.add_to(*verb);
  verb->add_option("--get", arguments->keys, "print the value of this key only; may be repeated")
      ->allow_extra_args(false);
  verb->callback([&line, arguments] { line.run = [arguments] { return print_config(*arguments); }; });
}

}  // namespace choir
