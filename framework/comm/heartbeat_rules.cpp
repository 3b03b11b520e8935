#include "framework/comm/heartbeat_rules.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

namespace choir {
namespace {

constexpr std::size_t most_lines = 16;

std::string call_of(const Beat& beat, float age) {
  if (beat.call[0] == 0) return "no call yet";
  return beat.in_call ? fmt::format("in {} for {:.1f} s", beat.call, beat.call_seconds + age)
                      : fmt::format("past {}, {:.1f} s ago", beat.call, beat.call_seconds + age);
}

}  // namespace

/// A rank as this one knows it.
struct HeartbeatRules::Line {
  int rank;
  double age;   // seconds since it was heard
  Beat beat;    // .rank < 0: not known
  bool silent;  // or its host is
};

HeartbeatRules::HeartbeatRules(std::vector<Host> hosts, int rank, const Limits& limits, std::uint64_t job)
    : hosts_(std::move(hosts)), rank_(rank), host_(0), limits_(limits), job_(job), hosts_heard_(hosts_.size()) {
  std::size_t ranks = 0;
  for (const Host& host : hosts_) ranks += host.ranks.size();
  host_of_.resize(ranks);
  for (std::size_t h = 0; h < hosts_.size(); ++h)
    for (const int member : hosts_[h].ranks) host_of_[static_cast<std::size_t>(member)] = static_cast<int>(h);
  host_ = host_of(rank);
  const std::vector<int>& here = hosts_[static_cast<std::size_t>(host_)].ranks;
  index_ = static_cast<int>(std::find(here.begin(), here.end(), rank) - here.begin());
  locals_.resize(here.size());
}

int HeartbeatRules::lead(double now) const {
  for (int i = 0; i < index_; ++i)
    if (const Local& local = locals_[static_cast<std::size_t>(i)]; !local.left && is_fresh(local, now)) return i;
  return index_;
}

/// When `host` was heard last, as far as this rank has had to hear it.
double HeartbeatRules::heard(const Heard& host) const { return std::max(host.time, hub_since_); }

Datagram HeartbeatRules::letter(Datagram::Kind kind, int to) const {
  Datagram letter{.job = job_, .from = rank_, .to = to, .complainer = complainer_, .kind = kind};
  letter.ending = speaks_ || follows_;
  if (complainer_ >= 0) std::memcpy(letter.why, why_, sizeof why_);
  return letter;
}

/// The ranks of this host that were heard the longest ago, as many as fit.
void HeartbeatRules::add_local_beats(Datagram& letter, double now) const {
  for (std::size_t i = 0; i < locals_.size(); ++i) {
    const Local& local = locals_[i];
    if (local.left) continue;
    Beat beat = local.beat;
    beat.rank = hosts_[static_cast<std::size_t>(host_)].ranks[i];
    beat.age = static_cast<float>(now - local.time);
    if (letter.num_beats < Datagram::most_beats) {
      letter.beats[letter.num_beats++] = beat;
      continue;
    }
    Beat* youngest = std::min_element(letter.beats, letter.beats + Datagram::most_beats,
                                      [](const Beat& a, const Beat& b) { return a.age < b.age; });
    if (youngest->age < beat.age) *youngest = beat;
  }
}

/// To the hosts at distances 1, 2, 4, ... before this one and to the first: most often one of them is there if any is.
void HeartbeatRules::probe(const Send& send) const {
  const auto ask = [&](int host) {
    const std::vector<int>& ranks = hosts_[static_cast<std::size_t>(host)].ranks;
    for (std::size_t i = 0; i < std::min<std::size_t>(2, ranks.size()); ++i)
      send(letter(Datagram::Kind::probe, ranks[i]));
  };
  for (int distance = 1; distance < host_; distance *= 2) ask(host_ - distance);
  ask(0);
}

bool HeartbeatRules::has_lost_first_host(double now) const {
  const Heard& first = hosts_heard_[0];
  return host_ != 0 && first.ever && !first.left && leads(now) && is_silent(first.time, now);
}

void HeartbeatRules::tick(const Beat& own, double now, const Send& send) {
  Local& here = locals_[static_cast<std::size_t>(index_)];
  here.time = now;
  here.beat = own;
  here.beat.rank = rank_;
  if (!is_hub(now))
    hub_since_ = -1;
  else if (hub_since_ < 0)
    hub_since_ = now;

  const std::vector<int>& ranks = hosts_[static_cast<std::size_t>(host_)].ranks;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] == rank_ || locals_[i].left) continue;
    Datagram beat = letter(Datagram::Kind::beat, ranks[i]);
    beat.num_beats = 1;
    beat.beats[0] = here.beat;
    send(beat);
  }
  if (host_ == 0) {
    if (!speaks_ && !follows_) return;
    for (const Heard& host : hosts_heard_)  // so that they end, too
      if (host.reporter >= 0) send(letter(Datagram::Kind::answer, host.reporter));
    return;
  }
  if (!leads(now)) return;
  const Heard& first = hosts_heard_[0];
  if (first.ever && now - first.time > 3 * limits_.period) ++hub_index_;  // this rank of it may be stopped
  const std::vector<int>& hubs = hosts_[0].ranks;
  Datagram report = letter(Datagram::Kind::report, hubs[hub_index_ % hubs.size()]);
  add_local_beats(report, now);
  send(report);
  if (!has_lost_first_host(now)) {
    probe_since_ = -1;
    return;
  }
  if (probe_since_ < 0) {
    probe_since_ = now;
    lower_host_answers_ = false;
  }
  probe(send);
}

void HeartbeatRules::receive(const Datagram& letter_in, double now, const Send& send) {
  const std::size_t h = static_cast<std::size_t>(host_of(letter_in.from));
  if (letter_in.ending && !speaks_) follows_ = true;
  if (letter_in.complainer >= 0 && complainer_ < 0) {
    complainer_ = letter_in.complainer;
    std::memcpy(why_, letter_in.why, sizeof why_);
    why_[sizeof why_ - 1] = 0;
  }
  if (static_cast<int>(h) == host_) {
    const std::vector<int>& ranks = hosts_[h].ranks;
    const auto i = static_cast<std::size_t>(std::find(ranks.begin(), ranks.end(), letter_in.from) - ranks.begin());
    locals_[i].time = now;
    locals_[i].left = letter_in.leaving;
    if (letter_in.num_beats == 1) locals_[i].beat = letter_in.beats[0];
    return;
  }
  Heard& host = hosts_heard_[h];
  if (letter_in.kind != Datagram::Kind::probe) {
    host.time = now;
    host.ever = true;
    host.left = letter_in.leaving;
    host.num_beats = letter_in.num_beats;
    std::copy_n(letter_in.beats, letter_in.num_beats, host.beats);
  }
  if (letter_in.kind == Datagram::Kind::answer) {
    if (static_cast<int>(h) < host_) lower_host_answers_ = true;
    return;
  }
  if (letter_in.kind == Datagram::Kind::report) host.reporter = letter_in.from;
  Datagram answer = letter(Datagram::Kind::answer, letter_in.from);
  add_local_beats(answer, now);
  send(answer);
}

void HeartbeatRules::complain(std::string_view why) {
  if (complainer_ >= 0) return;
  complainer_ = rank_;
  why.copy(why_, sizeof why_ - 1);
}

void HeartbeatRules::leave(double now, const Send& send) {
  const std::vector<int>& ranks = hosts_[static_cast<std::size_t>(host_)].ranks;
  bool last = true;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] == rank_ || locals_[i].left) continue;
    last = false;
    Datagram letter_out = letter(Datagram::Kind::beat, ranks[i]);
    letter_out.leaving = true;
    send(letter_out);
  }
  if (!last || !leads(now)) return;
  if (host_ != 0) {
    Datagram report = letter(Datagram::Kind::report, hosts_[0].ranks[hub_index_ % hosts_[0].ranks.size()]);
    report.leaving = true;
    send(report);
    return;
  }
  for (const Heard& host : hosts_heard_) {
    if (host.reporter < 0) continue;
    Datagram answer = letter(Datagram::Kind::answer, host.reporter);
    answer.leaving = true;
    send(answer);
  }
}

/// A reason to end the job, without the loss of the first host.
bool HeartbeatRules::has_fault(double now) const {
  if (complainer_ >= 0) return true;
  for (const Local& local : locals_)
    if (!local.left && is_silent(local.time, now)) return true;
  if (!is_hub(now)) return false;
  for (const Heard& host : hosts_heard_) {
    if (!host.ever || host.left) continue;
    if (is_silent(heard(host), now)) return true;
    for (int i = 0; i < host.num_beats; ++i)
      if (is_silent(-host.beats[i].age, 0)) return true;
  }
  return false;
}

HeartbeatRules::Verdict HeartbeatRules::verdict(double now) {
  if (speaks_) return Verdict::speak;
  if (follows_) return Verdict::follow;
  if (has_fault(now)) {
    if (fault_since_ < 0) fault_since_ = now;
    speaks_ = is_hub(now) || now - fault_since_ > limits_.patience;
  } else {
    fault_since_ = -1;
  }
  if (probe_since_ >= 0 && has_lost_first_host(now)) {
    const double since = now - probe_since_, window = std::max(1.0, 3 * limits_.period);
    speaks_ = speaks_ || since > (lower_host_answers_ ? window + limits_.patience : window);
  }
  return speaks_ ? Verdict::speak : Verdict::go_on;
}

bool HeartbeatRules::hears_hosts(double now) const {
  if (is_hub(now))
    return std::all_of(hosts_heard_.begin() + 1, hosts_heard_.end(), [](const Heard& host) { return host.ever; });
  return host_ == 0 || !leads(now) || hosts_heard_[0].ever;
}

std::vector<HeartbeatRules::Line> HeartbeatRules::known_ranks(double now) const {
  std::vector<Line> lines;
  for (std::size_t i = 0; i < locals_.size(); ++i)
    if (const Local& local = locals_[i]; !local.left)
      lines.push_back(
          {hosts_[static_cast<std::size_t>(host_)].ranks[i], now - local.time, local.beat, is_silent(local.time, now)});
  for (std::size_t h = 0; h < hosts_.size(); ++h) {
    const Heard& host = hosts_heard_[h];
    if (static_cast<int>(h) == host_ || !host.ever || host.left) continue;
    const double age = now - (host_ == 0 ? heard(host) : host.time);
    const bool silent = limits_.silence > 0 && age > limits_.silence;
    for (const int rank : hosts_[h].ranks) {
      const Beat* known =
          std::find_if(host.beats, host.beats + host.num_beats, [&](const Beat& beat) { return beat.rank == rank; });
      if (known != host.beats + host.num_beats)
        lines.push_back({rank, age + known->age, *known, silent || is_silent(-known->age, 0)});
      else if (silent)
        lines.push_back({rank, age, {}, true});
    }
  }
  return lines;
}

std::string HeartbeatRules::describe(double now) const {
  std::vector<Line> lines = known_ranks(now);
  // A rank that has missed a few beats probably has something to do with it, though it is not silent yet.
  const auto is_late = [&](const Line& line) { return line.silent || line.age > 3 * limits_.period; };
  std::stable_sort(lines.begin(), lines.end(), [&](const Line& a, const Line& b) {
    return std::tuple(!is_late(a), a.beat.in_call, a.rank) < std::tuple(!is_late(b), b.beat.in_call, b.rank);
  });
  const auto silent = std::count_if(lines.begin(), lines.end(), [](const Line& line) { return line.silent; });
  std::string text = why_;
  if (!text.empty()) text += fmt::format("\n  noticed by rank {}\n", complainer_);
  if (silent > 0)
    text += fmt::format(
        "{} {} not been heard for {:g} s (train.heartbeat)\n"
        "  why: the process is stopped or dead, or its host or the network is down\n",
        silent, silent == 1 ? "rank has" : "ranks have", limits_.silence);
  std::size_t shown = 0;
  for (const Line& line : lines) {
    if (silent > 0 && why_[0] == 0 && !is_late(line)) break;
    if (shown++ == most_lines) {
      text += fmt::format("and {} more\n", lines.size() - most_lines);
      break;
    }
    text += fmt::format("rank {} on {}: ", line.rank, hosts_[static_cast<std::size_t>(host_of(line.rank))].name);
    if (is_late(line)) text += fmt::format("not heard for {:.1f} s, last ", line.age);
    text += line.beat.rank < 0 ? "not known\n"
                               : fmt::format("{}, {}\n", choir::describe(line.beat.phase, line.beat.step),
                                             call_of(line.beat, static_cast<float>(line.age)));
  }
  return text;
}

}  // namespace choir
