// Which ranks are silent, and which rank says so: rules without a clock and without a network (heartbeat.h has both).
//
//   beat     each rank to all ranks of its host: what it does
//   report   of each other host, its lead to the first host: the ranks of the host, those heard the longest ago first
//   answer   from the first host to that lead: its own ranks
//   probe    from a lead that the first host does not answer to hosts before it: is anyone there?
//
// The lead of a host is its lowest rank that is not silent; the lead of the first host ends the job if a rank or a host
// is silent, and speaks for all. A lead that the first host does not answer speaks if no host before it is there. So
// each side of a cut network has one rank that speaks. A rank sends to the ranks of its host and, if it leads, to a few
// others: no more for more hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "framework/comm/phase.h"

namespace choir {

/// What a rank does, and its oldest running call or its last one.
struct Beat {
  std::int64_t step = -1;
  std::int32_t rank = -1;
  float age = 0;           ///< seconds since the sender has heard it
  float call_seconds = 0;  ///< since the call began or, if it does not run, ended
  Phase phase = Phase::start;
  bool in_call = false, leaving = false;
  char call[101] = {};  ///< its name; empty: none
};
static_assert(sizeof(Beat) == 128 && std::is_trivially_copyable_v<Beat>);

struct Datagram {
  enum class Kind : std::uint8_t { beat, report, answer, probe };
  static constexpr int most_beats = 8;

  std::uint64_t job = 0;  ///< of the sender; others are ignored
  std::int32_t from = 0, to = 0;
  std::int32_t complainer = -1;  ///< the rank that found `why`; -1: none
  Kind kind = Kind::beat;
  bool ending = false;  ///< some rank has spoken: the job ends
  bool leaving = false;
  std::uint8_t num_beats = 0;
  char why[424] = {};
  Beat beats[most_beats];

  /// The bytes that are sent.
  std::size_t bytes() const { return offsetof(Datagram, beats) + num_beats * sizeof(Beat); }
};
static_assert(std::is_trivially_copyable_v<Datagram>);

class HeartbeatRules {
 public:
  struct Host {
    std::string name;
    std::vector<int> ranks;  ///< ascending
  };
  struct Limits {
    double silence = 10;  ///< seconds after which a rank is silent; 0: never
    double period = 1;    ///< seconds between two calls of tick()
    double patience = 3;  ///< seconds until another rank must have spoken
  };
  enum class Verdict {
    go_on,
    speak,   ///< end the job, and print describe()
    follow,  ///< another rank has spoken: end soon if nothing else does
  };
  using Send = std::function<void(const Datagram&)>;

  /// `hosts` in the order of their first ranks. The clock begins at 0.
  HeartbeatRules(std::vector<Host> hosts, int rank, const Limits& limits, std::uint64_t job);

  // Without memory allocation; `now` in seconds.
  void tick(const Beat& own, double now, const Send& send);
  void receive(const Datagram&, double now, const Send& send);
  /// This rank has found why the job must end.
  void complain(std::string_view why);
  /// This rank ends in good order.
  void leave(double now, const Send& send);
  Verdict verdict(double now);

  /// Why the job ends, whom this rank does not hear, and what ranks do: lines.
  std::string describe(double now) const;
  /// True if all other hosts that this rank has to hear have been heard.
  bool hears_hosts(double now) const;
  const std::vector<Host>& hosts() const { return hosts_; }
  int host_of(int rank) const { return host_of_[static_cast<std::size_t>(rank)]; }

 private:
  struct Heard {  // of a rank of this host, or of another host
    double time = 0;
    bool ever = false, left = false;
    int reporter = -1;  // of another host
    int num_beats = 0;
    Beat beats[Datagram::most_beats];
  };
  struct Local {
    double time = 0;
    bool left = false;
    Beat beat;
  };
  struct Line;

  bool is_silent(double time, double now) const { return limits_.silence > 0 && now - time > limits_.silence; }
  bool is_fresh(const Local& local, double now) const { return now - local.time <= 5 * limits_.period; }
  int lead(double now) const;  // its index on this host
  bool leads(double now) const { return lead(now) == index_; }
  bool is_hub(double now) const { return host_ == 0 && leads(now); }
  bool has_lost_first_host(double now) const;
  bool has_fault(double now) const;
  double heard(const Heard& host) const;
  Datagram letter(Datagram::Kind kind, int to) const;
  void add_local_beats(Datagram&, double now) const;
  void probe(const Send& send) const;
  std::vector<Line> known_ranks(double now) const;

  std::vector<Host> hosts_;
  std::vector<int> host_of_;  // by rank
  int rank_, host_, index_ = 0;
  Limits limits_;
  std::uint64_t job_;
  std::vector<Local> locals_;       // the ranks of this host
  std::vector<Heard> hosts_heard_;  // by host
  std::size_t hub_index_ = 0;       // the rank of the first host to which this one reports
  double hub_since_ = -1, fault_since_ = -1, probe_since_ = -1;
  bool lower_host_answers_ = false;
  int complainer_ = -1;
  char why_[sizeof(Datagram::why)] = {};
  bool speaks_ = false, follows_ = false;
};

}  // namespace choir
