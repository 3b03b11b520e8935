#include "launch/bench/collective_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "framework/core/runtime.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

using Clock = std::chrono::steady_clock;

struct Tensors {
  Tensor whole, other;  // [count]
  Tensor part;          // [count / ranks]
};

struct Verb {
  const char* name;
  double factor;  // bytes over a link / bytes of the tensor
  void (*call)(Communicator&, const Tensors&, Stream&);
};

std::vector<Verb> verbs(int ranks) {
  const double share = (ranks - 1.0) / ranks;
  using C = Communicator;
  return {
      {"all_reduce", 2 * share,
       [](C& c, const Tensors& t, Stream& s) { c.all_reduce(t.whole, Reduce::sum, s, "bench"); }},
      {"reduce_scatter", share,
       [](C& c, const Tensors& t, Stream& s) { c.reduce_scatter(t.whole, t.part, Reduce::sum, s, "bench"); }},
      {"all_gather", share, [](C& c, const Tensors& t, Stream& s) { c.all_gather(t.part, t.whole, s, "bench"); }},
      {"all_to_all", share, [](C& c, const Tensors& t, Stream& s) { c.all_to_all(t.whole, t.other, s, "bench"); }},
      {"broadcast", 1, [](C& c, const Tensors& t, Stream& s) { c.broadcast(t.whole, 0, s, "bench"); }},
      {"exchange", 1,
       [](C& c, const Tensors& t, Stream& s) {
         const int next = (c.rank() + 1) % c.size(), previous = (c.rank() + c.size() - 1) % c.size();
         c.exchange({{t.whole, next}}, {{t.other, previous}}, s, "bench");
       }},
      {"barrier", 0, [](C& c, const Tensors&, Stream& s) { c.barrier(s, "bench"); }},
  };
}

/// Of one call, on the slowest rank: the median of 5 rounds, each of as many calls as take about 20 ms.
double seconds_of(const Verb& verb, const Tensors& tensors, Device& device, Mesh& mesh) {
  Stream& stream = device.compute();
  Communicator& host = *mesh.host;
  const auto round = [&](std::int64_t calls) {
    mesh.world->barrier(stream, "bench: start");
    device.synchronize();
    const auto begin = Clock::now();
    for (std::int64_t i = 0; i < calls; ++i) verb.call(*mesh.world, tensors, stream);
    device.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    Runtime runtime{.device = host.device()};
    const Tensor slowest = ops::to_device(runtime, std::vector<double>{seconds}, DType::f64);
    host.all_reduce(slowest, Reduce::max, host.stream(), "bench: slowest");
    host.device().synchronize();
    return slowest.data<double>()[0] / static_cast<double>(calls);
  };
  round(2);
  const auto calls = static_cast<std::int64_t>(std::clamp(0.02 / round(3), 1.0, 1000.0));
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) times.push_back(round(calls));
  std::nth_element(times.begin(), times.begin() + 2, times.end());
  return times[2];
}

}  // namespace

CollectiveBench bench_collectives(Device& device, Mesh& mesh, std::int64_t largest_bytes) {
  const int ranks = mesh.world->size();
  CollectiveBench bench{.ranks = ranks};
  Runtime runtime{.device = device};
  for (const Verb& verb : verbs(ranks))
    for (std::int64_t bytes = 4096; bytes <= largest_bytes; bytes *= 8) {
      const std::int64_t part = std::max<std::int64_t>(1, bytes / 4 / ranks), count = part * ranks;
      const auto zeros = [&](std::int64_t n) {
        const Tensor tensor = runtime.empty({n}, DType::f32);
        ops::fill(runtime, tensor, 0);
        return tensor;
      };
      const double seconds =
          seconds_of(verb, {.whole = zeros(count), .other = zeros(count), .part = zeros(part)}, device, mesh);
      const bool moves_bytes = verb.factor > 0;
      bench.rows.push_back({.verb = verb.name,
                            .bytes = moves_bytes ? 4 * count : 0,
                            .seconds = seconds,
                            .bytes_per_second = verb.factor * 4.0 * static_cast<double>(count) / seconds});
      if (!moves_bytes) break;
    }
  return bench;
}

std::string describe(const CollectiveBench& bench) {
  std::string text =
      fmt::format("{} ranks\n{:<16} {:>12} {:>12} {:>12}\n", bench.ranks, "verb", "bytes", "us", "link GB/s");
  for (const auto& row : bench.rows)
    text += fmt::format("{:<16} {:>12} {:>12.1f} {:>12.3f}\n", row.verb, row.bytes, row.seconds * 1e6,
                        row.bytes_per_second / 1e9);
  return text;
}

std::string to_json(const CollectiveBench& bench) {
  nlohmann::ordered_json json = {{"ranks", bench.ranks}, {"rows", nlohmann::ordered_json::array()}};
  for (const auto& row : bench.rows)
    json["rows"].push_back({{"verb", row.verb},
                            {"bytes", row.bytes},
                            {"seconds", row.seconds},
                            {"link_bytes_per_second", row.bytes_per_second}});
  return json.dump() + "\n";
}

}  // namespace choir
