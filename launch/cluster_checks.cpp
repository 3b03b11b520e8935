#include "launch/cluster_checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "framework/core/host.h"
#include "framework/core/quantity.h"

namespace choir {
namespace {

using State = Check::State;

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string name_of(const Link& link) {
  return fmt::format("ranks {} and {} ({})", link.a, link.b,
                     link.host_a == link.host_b ? link.host_a : link.host_a + ", " + link.host_b);
}

std::string speed(double bytes_per_second) {
  return bytes_per_second < 1e9 ? fmt::format("{:.0f} MB/s", bytes_per_second / 1e6)
                                : fmt::format("{:.1f} GB/s", bytes_per_second / 1e9);
}

/// Of links of one kind. Adds the slow ones to `slow`.
std::string describe_links(const std::string& kind, const std::vector<Link>& links, std::vector<Link>& slow) {
  if (links.empty()) return "";
  const auto [low, high] = std::minmax_element(
      links.begin(), links.end(), [](const Link& a, const Link& b) { return a.bytes_per_second < b.bytes_per_second; });
  const auto [best, worst] = std::minmax_element(links.begin(), links.end(),
                                                 [](const Link& a, const Link& b) { return a.latency < b.latency; });
  for (const Link& link : links)
    if (link.bytes_per_second < high->bytes_per_second / 2 || link.latency > 3 * best->latency + 50e-6)
      slow.push_back(link);
  return fmt::format("{} {}: {:.0f} to {:.0f} us, {} to {}", quantity(static_cast<std::int64_t>(links.size()), "link"),
                     kind, 1e6 * best->latency, 1e6 * worst->latency, speed(low->bytes_per_second),
                     speed(high->bytes_per_second));
}

/// The host of which the best link to another host is slower than the worst link of all others, by the factors above;
/// "" if there is none. A busy machine makes some links slow, but not all of one host alone.
std::string slow_host(const std::vector<Link>& links) {
  std::set<std::string> hosts;
  for (const Link& link : links) hosts.insert({link.host_a, link.host_b});
  for (const std::string& host : hosts) {
    double own_speed = 0, other_speed = 1e30, own_latency = 1e30, other_latency = 0;
    int own = 0, others = 0;
    for (const Link& link : links) {
      if (link.host_a == link.host_b) continue;
      if (link.host_a == host || link.host_b == host) {
        ++own;
        own_speed = std::max(own_speed, link.bytes_per_second);
        own_latency = std::min(own_latency, link.latency);
      } else {
        ++others;
        other_speed = std::min(other_speed, link.bytes_per_second);
        other_latency = std::max(other_latency, link.latency);
      }
    }
    if (own > 1 && others > 0 && (own_speed < other_speed / 2 || own_latency > 3 * other_latency + 50e-6)) return host;
  }
  return "";
}

std::vector<std::string> gather_texts(const std::string& text) {
  std::array<char, 256> own = {};
  std::strncpy(own.data(), text.c_str(), own.size() - 1);
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  std::vector<char> all(static_cast<std::size_t>(ranks) * own.size());
  MPI_Allgather(own.data(), static_cast<int>(own.size()), MPI_CHAR, all.data(), static_cast<int>(own.size()), MPI_CHAR,
                MPI_COMM_WORLD);
  std::vector<std::string> texts;
  for (int rank = 0; rank < ranks; ++rank) texts.emplace_back(&all[static_cast<std::size_t>(rank) * own.size()]);
  return texts;
}

std::vector<Burn> gather_burns(const Burn& own, int ranks) {
  struct Numbers {
    double flops_per_second;
    std::int64_t products, wrong;
    std::uint64_t digest;
  } const numbers{own.flops_per_second, own.products, own.wrong, own.digest};
  std::vector<Numbers> all(static_cast<std::size_t>(ranks));
  MPI_Allgather(&numbers, sizeof numbers, MPI_BYTE, all.data(), sizeof numbers, MPI_BYTE, MPI_COMM_WORLD);
  const std::vector<std::string> hosts = gather_texts(own.host), processors = gather_texts(own.processor),
                                 problems = gather_texts(own.problem);
  std::vector<Burn> burns;
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    burns.push_back({.host = hosts[rank],
                     .processor = processors[rank],
                     .flops_per_second = all[rank].flops_per_second,
                     .products = all[rank].products,
                     .wrong = all[rank].wrong,
                     .digest = all[rank].digest,
                     .problem = problems[rank]});
  return burns;
}

/// Seconds of one message of `bytes` from rank `a` to `b`, the best of `times`; on these two ranks.
double message_seconds(int own, int a, int b, std::vector<char>& bytes, int times) {
  const int peer = own == a ? b : a, count = static_cast<int>(bytes.size());
  char answer = 0;
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const double begin = MPI_Wtime();
    if (own == a) {
      MPI_Send(bytes.data(), count, MPI_CHAR, peer, 1, MPI_COMM_WORLD);
      MPI_Recv(&answer, 1, MPI_CHAR, peer, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
      MPI_Recv(bytes.data(), count, MPI_CHAR, peer, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      MPI_Send(&answer, 1, MPI_CHAR, peer, 2, MPI_COMM_WORLD);
    }
    best = std::min(best, MPI_Wtime() - begin);
  }
  return best;
}

/// Measured one after another, so that no link shares the network with another. On rank 0; on others what they know.
Link measure(int own, int a, int b, const std::vector<std::string>& hosts) {
  Link link{.a = a, .b = b, .host_a = hosts[static_cast<std::size_t>(a)], .host_b = hosts[static_cast<std::size_t>(b)]};
  std::array<double, 2> measured = {};
  MPI_Barrier(MPI_COMM_WORLD);
  if (own == a || own == b) {
    std::vector<char> small(8), large(1 << 20);
    measured[0] = message_seconds(own, a, b, small, 20) / 2;
    const double there = message_seconds(own, a, b, large, 4), back = message_seconds(own, b, a, large, 4);
    measured[1] = static_cast<double>(large.size()) / std::max(there, back);
  }
  MPI_Bcast(measured.data(), 2, MPI_DOUBLE, a, MPI_COMM_WORLD);
  link.latency = measured[0];
  link.bytes_per_second = measured[1];
  return link;
}

/// How far this rank's clock is ahead of rank 0's: of 20 questions the one with the shortest way is the most exact.
double clock_ahead(int own, int ranks, double& uncertainty) {
  double ahead = 0;
  uncertainty = 0;
  for (int rank = 1; rank < ranks; ++rank) {
    double shortest = 1e9;
    for (int i = 0; i < 20; ++i) {
      double time = now();
      if (own == 0) {
        MPI_Recv(&time, 1, MPI_DOUBLE, rank, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        time = now();
        MPI_Send(&time, 1, MPI_DOUBLE, rank, 4, MPI_COMM_WORLD);
      } else if (own == rank) {
        double of_rank_0 = 0;
        MPI_Send(&time, 1, MPI_DOUBLE, 0, 3, MPI_COMM_WORLD);
        MPI_Recv(&of_rank_0, 1, MPI_DOUBLE, 0, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        const double after = now();
        if (after - time < shortest) {
          shortest = after - time;
          ahead = (time + after) / 2 - of_rank_0;
          uncertainty = shortest / 2;
        }
      }
    }
  }
  return ahead;
}

/// Bytes a second of a file that is written and synced; 0 if it cannot be written.
double write_speed(const std::string& folder, int rank, std::int64_t bytes) {
  const std::string path = fmt::format("{}/.doctor-speed-{}", folder, rank);
  const std::vector<char> piece(1 << 20, 'x');
  const double begin = MPI_Wtime();
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  bool good = file >= 0;
  for (std::int64_t done = 0; good && done < bytes; done += static_cast<std::int64_t>(piece.size()))
    good = write(file, piece.data(), piece.size()) == static_cast<ssize_t>(piece.size());
  good = good && fsync(file) == 0;
  const double seconds = MPI_Wtime() - begin;
  if (file >= 0) close(file);
  unlink(path.c_str());
  return good ? static_cast<double>(bytes) / seconds : 0;
}

}  // namespace

Check judge_links(const std::string& axis, const std::vector<Link>& links) {
  std::vector<Link> within, between, slow;
  for (const Link& link : links) (link.host_a == link.host_b ? within : between).push_back(link);
  std::string text = describe_links("within a host", within, slow);
  const std::string other = describe_links("between hosts", between, slow);
  if (!text.empty() && !other.empty()) text += "; ";
  Check check{.name = axis, .text = text + other};
  if (slow.empty()) return check;
  check.state = State::limited;
  if (const std::string host = slow_host(links); !host.empty()) {
    check.fix = host + " is slow: all its links to other hosts are";
    return check;
  }
  constexpr std::size_t most = 4;
  for (std::size_t i = 0; i < std::min(slow.size(), most); ++i)
    check.fix += fmt::format("{}{}: {:.0f} us, {}", i == 0 ? "slow: " : "; ", name_of(slow[i]), 1e6 * slow[i].latency,
                             speed(slow[i].bytes_per_second));
  if (slow.size() > most) check.fix += fmt::format("; and {} more", slow.size() - most);
  return check;
}

Check judge_writes(const std::string& folder, const std::vector<HostSpeed>& hosts) {
  double slowest = hosts.front().bytes_per_second, fastest = 0;
  for (const HostSpeed& host : hosts) {
    slowest = std::min(slowest, host.bytes_per_second);
    fastest = std::max(fastest, host.bytes_per_second);
  }
  Check check{.name = "run folder",
              .text = fmt::format("{}: {} to {} written by each host, all at the same time", folder, speed(slowest),
                                  speed(fastest))};
  for (const HostSpeed& host : hosts) {
    if (host.bytes_per_second >= fastest / 2 && host.bytes_per_second > 0) continue;
    check.state = std::max(check.state, host.bytes_per_second > 0 ? State::limited : State::broken);
    check.fix += fmt::format("{}{} {}", check.fix.empty() ? "" : "; ", host.host,
                             host.bytes_per_second > 0 ? "is slow: " + speed(host.bytes_per_second) : "cannot write");
  }
  return check;
}

Check judge_alike(const std::string& name, const std::vector<std::string>& hosts,
                  const std::vector<std::string>& versions) {
  std::map<std::string, int> times;
  for (const std::string& version : versions) ++times[version];
  const auto most =
      std::max_element(times.begin(), times.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Check check{.name = name, .text = most->first};
  if (times.size() == 1) return check;
  check.state = State::broken;
  std::set<std::string> differing;
  for (std::size_t i = 0; i < hosts.size(); ++i)
    if (versions[i] != most->first) differing.insert(hosts[i] + " has " + versions[i]);
  check.fix = fmt::format("{}: install the same on all hosts", fmt::join(differing, "; "));
  return check;
}

Check judge_clocks(const std::vector<std::string>& hosts, const std::vector<double>& ahead, double uncertainty) {
  constexpr double limit = 0.5;  // seconds; times in metrics.jsonl and in locks are compared between hosts
  double largest = 0;
  std::set<std::string> wrong;
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    largest = std::max(largest, std::abs(ahead[i]));
    if (std::abs(ahead[i]) > limit + uncertainty)
      wrong.insert(fmt::format("{} is {:.1f} s {} {}", hosts[i], std::abs(ahead[i]),
                               ahead[i] > 0 ? "ahead of" : "behind", hosts.front()));
  }
  return {
      .state = wrong.empty() ? State::good : State::limited,
      .name = "clocks",
      .text = fmt::format("within {:.4f} s of that of {}, measured to {:.4f} s", largest, hosts.front(), uncertainty),
      .fix = wrong.empty() ? "" : fmt::format("{}: synchronize them (chrony)", fmt::join(wrong, "; "))};
}

std::vector<Check> cluster_checks(const std::string& folder, const std::string& version, const MeshShape& shape,
                                  const Burn& burn, std::int64_t bytes) {
  int own = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &own);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const std::vector<std::string> hosts = gather_texts(host_name()), versions = gather_texts(version);
  std::vector<Check> checks = {judge_alike("versions", hosts, versions)};

  std::array<double, 2> clock = {};
  clock[0] = clock_ahead(own, ranks, clock[1]);
  std::vector<double> ahead(static_cast<std::size_t>(ranks));
  double uncertainty = 0;
  MPI_Gather(&clock[0], 1, MPI_DOUBLE, ahead.data(), 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  MPI_Allreduce(&clock[1], &uncertainty, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  checks.push_back(judge_clocks(hosts, ahead, uncertainty));
  checks.push_back(judge_burns(gather_burns(burn, ranks)));

  for (const Axis axis : {Axis::tensor, Axis::context, Axis::data, Axis::pipeline}) {
    std::set<std::pair<int, int>> pairs;  // neighbours on the ring of each group
    for (int rank = 0; rank < ranks; ++rank) {
      const std::vector<int> members = shape.group(axis, rank).members();
      for (std::size_t i = 0; i < members.size(); ++i)
        if (const int next = members[(i + 1) % members.size()]; next != members[i])
          pairs.insert(std::minmax(members[i], next));
    }
    std::vector<Link> links;
    for (const auto& [a, b] : pairs) links.push_back(measure(own, a, b, hosts));
    if (!links.empty()) checks.push_back(judge_links(std::string(choir::name_of(axis)) + " axis", links));
  }

  const auto first_of_host = [&](int rank) {
    return std::find(hosts.begin(), hosts.end(), hosts[static_cast<std::size_t>(rank)]) - hosts.begin() == rank;
  };
  MPI_Barrier(MPI_COMM_WORLD);
  const double written = first_of_host(own) ? write_speed(folder, own, bytes) : 0;
  std::vector<double> all(static_cast<std::size_t>(ranks));
  MPI_Gather(&written, 1, MPI_DOUBLE, all.data(), 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  if (own != 0) return {};
  std::vector<HostSpeed> speeds;
  for (int rank = 0; rank < ranks; ++rank)
    if (first_of_host(rank))
      speeds.push_back(
          {.host = hosts[static_cast<std::size_t>(rank)], .bytes_per_second = all[static_cast<std::size_t>(rank)]});
  checks.push_back(judge_writes(folder, speeds));
  return checks;
}

}  // namespace choir
