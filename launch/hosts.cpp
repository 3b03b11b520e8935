#include "launch/hosts.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <numeric>
#include <sstream>

#include "framework/core/error.h"

namespace choir {

std::vector<Host> read_hostfile(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    throw ConfigError(Problem{.what = "HOSTFILE = " + path + " cannot be read", .fix = "name a file that exists"});
  std::vector<Host> hosts;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    Host host;
    if (!(words >> host.name)) continue;
    for (std::string word; words >> word;)
      if (word.starts_with("slots="))
        std::from_chars(word.data() + word.find('=') + 1, word.data() + word.size(), host.slots);
    if (host.slots < 1)
      throw ConfigError(Problem{.what = "HOSTFILE = " + path + ": the line '" + line + "' has no slots=N",
                                .why = "the ranks that a run can use without a lost host are counted by slots",
                                .fix = "write for example: " + host.name + " slots=8"});
    const auto known = std::find_if(hosts.begin(), hosts.end(), [&](const Host& h) { return h.name == host.name; });
    if (known == hosts.end())
      hosts.push_back(host);
    else
      known->slots += host.slots;
  }
  if (hosts.empty()) throw ConfigError(Problem{.what = "HOSTFILE = " + path + " names no host"});
  return hosts;
}

bool same_host(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const bool is_address = a.find_first_not_of("0123456789.") == std::string::npos ||
                          b.find_first_not_of("0123456789.") == std::string::npos;
  const std::size_t dot_a = a.find('.'), dot_b = b.find('.');
  if (is_address || (dot_a != std::string::npos && dot_b != std::string::npos)) return false;
  return a.substr(0, dot_a) == b.substr(0, dot_b);
}

std::vector<Host> without(const std::vector<Host>& hosts, const std::vector<std::string>& names) {
  std::vector<Host> left;
  for (const Host& host : hosts)
    if (std::none_of(names.begin(), names.end(), [&](const std::string& name) { return same_host(name, host.name); }))
      left.push_back(host);
  return left;
}

std::vector<Host> first_with(const std::vector<Host>& hosts, std::int64_t ranks) {
  std::vector<Host> first;
  for (const Host& host : hosts) {
    if (ranks <= 0) break;
    first.push_back(host);
    ranks -= host.slots;
  }
  return first;
}

std::int64_t slots_of(const std::vector<Host>& hosts) {
  return std::accumulate(hosts.begin(), hosts.end(), std::int64_t{0},
                         [](std::int64_t sum, const Host& host) { return sum + host.slots; });
}

Fit fit_ranks(const Config& config, std::int64_t most) {
  Config tried = config;
  // The hosts that run may have what this one has not.
  tried.train.emulate_bf16 = true;
  tried.train.cpu_kernels = CpuKernels::automatic;
  const std::int64_t micro_batch = config.parallel.micro_batch;
  for (std::int64_t ranks = most; ranks > 0; --ranks) {
    for (std::int64_t lower = micro_batch; lower >= std::min<std::int64_t>(1, micro_batch); --lower) {
      tried.parallel.micro_batch = lower;
      if (validate(tried, ranks).empty()) return {.ranks = ranks, .micro_batch = lower};
    }
  }
  return {.micro_batch = micro_batch};
}

}  // namespace choir
