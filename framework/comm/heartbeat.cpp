#include "framework/comm/heartbeat.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <random>

#include "framework/comm/awake_clock.h"
#include "framework/core/host.h"

namespace choir {

namespace {

/// Tells apart hosts, and containers of one host that have their own network.
std::uint64_t network_id() {
  std::string id = host_name();
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  struct stat network = {};
  if (stat("/proc/self/ns/net", &network) == 0) boot += fmt::format("/{}", network.st_ino);
  return std::hash<std::string>()(id + "/" + boot);
}

/// The IPv4 addresses of this host's networks.
std::array<std::uint32_t, 4> own_addresses() {
  std::array<std::uint32_t, 4> found = {};
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return found;
  std::size_t count = 0;
  for (const ifaddrs* each = all; each != nullptr && count < found.size(); each = each->ifa_next) {
    const bool usable = (each->ifa_flags & IFF_UP) != 0 && (each->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable || each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
    found[count++] = reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr;
  }
  freeifaddrs(all);
  return found;
}

/// A socket at `port`, in network byte order, which is chosen by the system; -1 if there is none, with errno.
int open_socket(std::uint16_t& port) {
  const int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return -1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t length = sizeof address;
  const int bytes = 1 << 20;  // the first host hears all others; the system may give less
  setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
      getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    port = address.sin_port;
    return descriptor;
  }
  const int error = errno;
  close(descriptor);
  errno = error;
  return -1;
}

template <class End>
std::vector<HeartbeatRules::Host> hosts_of(const std::vector<End>& ends) {
  std::vector<HeartbeatRules::Host> hosts;
  std::map<std::uint64_t, std::size_t> places;
  for (std::size_t rank = 0; rank < ends.size(); ++rank) {
    const auto [place, is_new] = places.emplace(ends[rank].network, hosts.size());
    if (is_new) hosts.push_back({.name = ends[rank].host, .ranks = {}});
    hosts[place->second].ranks.push_back(static_cast<int>(rank));
  }
  return hosts;
}

}  // namespace

Heartbeat::Heartbeat(MPI_Comm world, const HeartbeatRules::Limits& limits, Calls calls)
    : calls_(std::move(calls)), host_(host_name()), period_(limits.period) {
  int size = 1;
  MPI_Comm_rank(world, &rank_);
  MPI_Comm_size(world, &size);
  if (rank_ == 0) job_ = (static_cast<std::uint64_t>(std::random_device()()) << 32 | std::random_device()()) | 1;
  MPI_Bcast(&job_, 1, MPI_UINT64_T, 0, world);

  End own{.network = network_id(), .addresses = own_addresses()};
  host_.copy(own.host, sizeof own.host - 1);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_ >= 0) socket_ = open_socket(own.port);
  const int error = errno;
  ends_.resize(static_cast<std::size_t>(size));
  MPI_Allgather(&own, sizeof own, MPI_BYTE, ends_.data(), sizeof own, MPI_BYTE, world);
  const auto without = std::find_if(ends_.begin(), ends_.end(), [](const End& end) { return end.port == 0; });
  if (without != ends_.end()) {
    problem_ = fmt::format("there are no heartbeats: rank {} on {} cannot open a UDP socket", without - ends_.begin(),
                           without->host);
    if (socket_ < 0) problem_ += fmt::format(": {}", std::strerror(error));
    return;
  }
  rules_ = std::make_unique<HeartbeatRules>(hosts_of(ends_), rank_, limits, job_);
  addresses_.resize(rules_->hosts().size());
  thread_ = std::thread([this] { beat(); });
}

Heartbeat::~Heartbeat() {
  stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
  if (socket_ >= 0) close(socket_);
  if (wake_ >= 0) close(wake_);
}

void Heartbeat::wake() {
  const std::uint64_t one = 1;
  if (wake_ >= 0) [[maybe_unused]]
    const ssize_t written = write(wake_, &one, sizeof one);
}

void Heartbeat::complain(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    rules_->complain(why);
  }
  wake();
}

void Heartbeat::send(const Datagram& letter) {
  const auto host = static_cast<std::size_t>(rules_->host_of(letter.to));
  const End& end = ends_[static_cast<std::size_t>(letter.to)];
  const auto send_to = [&](std::uint32_t address) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = address;
    to.sin_port = end.port;
    sendto(socket_, &letter, letter.bytes(), MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to),
           sizeof to);
  };
  if (static_cast<int>(host) == rules_->host_of(rank_)) return send_to(htonl(INADDR_LOOPBACK));
  if (addresses_[host] != 0) return send_to(addresses_[host]);
  for (const std::uint32_t address : end.addresses)
    if (address != 0) send_to(address);
}

void Heartbeat::read_datagrams(double now) {
  Datagram letter;
  sockaddr_in from{};
  for (;;) {
    socklen_t length = sizeof from;
    const ssize_t bytes =
        recvfrom(socket_, &letter, sizeof letter, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
    if (bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (bytes < static_cast<ssize_t>(offsetof(Datagram, beats))) continue;  // or the error of an earlier send
    if (letter.job != job_ || letter.to != rank_ || letter.from < 0 || letter.from >= ranks() || letter.from == rank_ ||
        letter.num_beats > Datagram::most_beats || static_cast<std::size_t>(bytes) != letter.bytes())
      continue;
    addresses_[static_cast<std::size_t>(rules_->host_of(letter.from))] = from.sin_addr.s_addr;
    const std::lock_guard lock(mutex_);
    rules_->receive(letter, now, [this](const Datagram& answer) { send(answer); });
  }
}

void Heartbeat::beat() {
  using Clock = std::chrono::steady_clock;
  const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(period_));
  const auto send_letter = [this](const Datagram& letter) { send(letter); };
  AwakeClock clock(2.5 * period_);
  auto next = Clock::now();
  bool ended = false, looked_for_hosts = false;
  while (!stop_) {
    std::array<pollfd, 2> waited = {{{.fd = socket_, .events = POLLIN}, {.fd = wake_, .events = POLLIN}}};
    const double left = std::chrono::duration<double, std::milli>(next - Clock::now()).count();
    poll(waited.data(), waited.size(), std::max(0, static_cast<int>(std::ceil(left))));
    const double now = clock.advance();
    read_datagrams(now);
    if (std::uint64_t count = 0; read(wake_, &count, sizeof count) > 0) next = Clock::now();

    Verdict verdict = Verdict::go_on;
    std::string words;
    {
      const std::lock_guard lock(mutex_);
      verdict = rules_->verdict(now);
      if (Clock::now() >= next || (verdict != Verdict::go_on && !ended)) {
        Beat own;
        calls_.fill(own);
        rules_->tick(own, now, send_letter);
        next = Clock::now() + period;
      }
      if (verdict == Verdict::speak && !ended) words = rules_->describe(now);
      if (!looked_for_hosts && now > 10 * period_ + 10) {
        looked_for_hosts = true;
        if (!rules_->hears_hosts(now) && calls_.note)
          calls_.note(
              "heartbeats from some other hosts do not arrive (UDP): a rank that is stopped there is noticed by "
              "train.timeout only");
      }
    }
    if (verdict != Verdict::go_on && !ended) {
      ended = true;
      calls_.end(verdict, words);
    }
  }
  for (int i = 0; i < 2; ++i) rules_->leave(clock.advance(), send_letter);
}

}  // namespace choir
