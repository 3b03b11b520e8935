#include "framework/train/state_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <sstream>

#include "framework/checkpoint/agreement.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/optimizer.h"

namespace choir {
namespace {

constexpr std::size_t digest_bytes = sizeof(std::uint64_t);
constexpr std::int64_t part_elements = 1 << 18;

/// The digests and their complements, as bytes.
std::vector<std::uint8_t> with_complements(const std::vector<std::uint64_t>& digests) {
  std::vector<std::uint8_t> bytes;
  for (const std::uint64_t digest : digests)
    for (const std::uint64_t word : {digest, ~digest})
      for (const std::uint8_t byte : std::bit_cast<std::array<std::uint8_t, digest_bytes>>(word)) bytes.push_back(byte);
  return bytes;
}

}  // namespace

StateCheck::StateCheck(Trainer& trainer) : trainer_(trainer) {
  for (const Bucket& bucket : trainer.shards().buckets()) {
    const std::vector<ParameterPart> parts = parts_in(trainer.parameters(), {bucket.updated}, false);
    if (parts.empty()) continue;
    add(bucket.master, bucket.updated.begin, parts, "");
    const std::int64_t begin = trainer.optimizer().state_offset(bucket.updated.begin);
    for (const Optimizer::StateArray& array : trainer.optimizer().state())
      add(array.values.slice_columns(begin, begin + bucket.updated.count()), bucket.updated.begin, parts,
          "optimizer." + array.name + ".");
  }
}

/// `values` are the elements from `flat_begin` on.
void StateCheck::add(const Tensor& values, std::int64_t flat_begin, const std::vector<ParameterPart>& parts,
                     const std::string& prefix) {
  std::vector<kernels::Range> ranges;
  const std::size_t first = parts_.size();
  for (const ParameterPart& part : parts) {
    const FlatRange flat = part.flat();
    const bool of_experts = trainer_.parameters().replicas(part.parameter->weight->group) == Replicas::expert;
    for (std::int64_t begin = flat.begin; begin < flat.end; begin += part_elements) {
      ranges.push_back({begin - flat_begin, std::min(flat.end, begin + part_elements) - flat_begin});
      parts_.push_back({prefix + part.parameter->name, of_experts});
    }
  }
  calls_.push_back({values, ops::to_device(trainer_.runtime(), ranges, DType::u8, MemoryKind::optimizer), first,
                    parts_.size() - first});
}

std::vector<std::uint64_t> StateCheck::digests() {
  Runtime& runtime = trainer_.runtime();
  Context context = trainer_.context();
  trainer_.shards().await_values(context);  // with ZeRO, masters of f32 are a part of them
  const Tensor all = runtime.empty({static_cast<std::int64_t>(parts_.size() * digest_bytes)}, DType::u8);
  for (const Call& call : calls_)
    ops::digest(runtime, call.values, call.ranges,
                all.slice_columns(static_cast<std::int64_t>(call.first * digest_bytes),
                                  static_cast<std::int64_t>((call.first + call.count) * digest_bytes)));
  std::vector<std::uint64_t> digests(parts_.size());
  ops::download(runtime, all, digests.data());
  return digests;
}

/// The ranks that update the same elements are those of all of these together.
std::vector<Communicator*> StateCheck::holders(bool of_experts) {
  Mesh& mesh = trainer_.mesh();
  std::vector<Communicator*> axes = {mesh.replica.get()};
  if (trainer_.config().parallel.zero == 0) axes.push_back((of_experts ? mesh.expert_shard : mesh.shard).get());
  return axes;
}

bool StateCheck::is_shared(bool of_experts) {
  const std::vector<Communicator*> axes = holders(of_experts);
  return std::any_of(axes.begin(), axes.end(), [](const Communicator* axis) { return axis->size() > 1; });
}

std::string StateCheck::compare() {
  Runtime& runtime = trainer_.runtime();
  const std::vector<std::uint64_t> mine = digests();
  std::vector<std::string> differing;
  for (const bool of_experts : {false, true}) {
    std::vector<std::size_t> places;
    std::vector<std::uint64_t> compared;
    for (std::size_t i = 0; i < parts_.size(); ++i)
      if (parts_[i].of_experts == of_experts) {
        places.push_back(i);
        compared.push_back(mine[i]);
      }
    if (places.empty() || !is_shared(of_experts)) continue;
    std::vector<std::uint8_t> bytes = with_complements(compared);
    // The ranks are named by the lowest of those that hold the same: the largest of what is left to the top.
    const std::int32_t top = std::numeric_limits<std::int32_t>::max();
    std::vector<std::int32_t> group = {top - trainer_.mesh().world->rank()};
    const Tensor largest = ops::to_device(runtime, bytes, DType::u8),
                 of_group = ops::to_device(runtime, group, DType::i32);
    for (Communicator* axis : holders(of_experts)) {
      axis->all_reduce(largest, Reduce::max, runtime.device.compute(), "state check");
      axis->all_reduce(of_group, Reduce::max, runtime.device.compute(), "state check");
    }
    ops::download(runtime, largest, bytes.data());
    ops::download(runtime, of_group, group.data());
    for (std::size_t i = 0; i < places.size(); ++i) {
      const std::uint8_t* byte = bytes.data() + 2 * digest_bytes * i;
      bool equal = true;
      for (std::size_t b = 0; b < digest_bytes; ++b) equal = equal && byte[b] + byte[digest_bytes + b] == 255;
      if (!equal)
        differing.push_back(fmt::format("{} {} {:016x} {}", parts_[places[i]].name, top - group[0], mine[places[i]],
                                        trainer_.mesh().world->rank()));
    }
  }
  return tell(differing);
}

void StateCheck::remember() { remembered_ = digests(); }

std::string StateCheck::unchanged() {
  std::vector<std::string> changed;
  if (!remembered_.empty()) {
    const std::vector<std::uint64_t> now = digests();
    for (std::size_t i = 0; i < parts_.size(); ++i)
      if (now[i] != remembered_[i] && !is_shared(parts_[i].of_experts))
        changed.push_back(fmt::format("{} {} changed {}", parts_[i].name, trainer_.mesh().world->rank(),
                                      trainer_.mesh().world->rank()));
    remembered_.clear();
  }
  return tell(changed);
}

/// Each line: name, lowest rank of those that hold the same, digest, rank.
std::string StateCheck::tell(const std::vector<std::string>& mine) {
  Agreement ranks(*trainer_.mesh().host);
  if (ranks.largest(mine.empty() ? 0 : 1, "state check") == 0) return "";
  std::string lines;
  for (const std::string& line : mine) lines += line + "\n";
  std::string text;
  const std::vector<std::string> all = ranks.gather(lines, "state check");  // on rank 0
  std::map<std::pair<std::string, int>, std::map<std::string, std::vector<int>>> tensors;
  for (const std::string& of_rank : all) {
    std::istringstream words(of_rank);
    std::string name, digest;
    for (int group = 0, rank = 0; words >> name >> group >> digest >> rank;)
      tensors[{name, group}][digest].push_back(rank);
  }
  for (const auto& [tensor, by_digest] : tensors) {
    std::size_t most = 0, holders = 0;
    for (const auto& [digest, of] : by_digest) {
      most = std::max(most, of.size());
      holders += of.size();
    }
    std::vector<int> named;
    for (const auto& [digest, of] : by_digest)
      if (2 * most <= holders || of.size() < most) named.insert(named.end(), of.begin(), of.end());
    std::sort(named.begin(), named.end());
    named.erase(std::unique(named.begin(), named.end()), named.end());
    if (by_digest.contains("changed")) named = by_digest.at("changed");
    text += fmt::format("{}{} on {} {}", text.empty() ? "" : "; ", tensor.first, named.size() == 1 ? "rank" : "ranks",
                        fmt::join(named, " or "));
  }
  return ranks.broadcast(text, 0, "state check");
}

}  // namespace choir
