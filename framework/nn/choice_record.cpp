#include "framework/nn/choice_record.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

std::vector<double> on_host(const Tensor& x, Runtime& runtime) {
  const auto count = static_cast<std::size_t>(x.count());
  std::vector<double> values(count);
  if (x.dtype() == DType::f64) {
    ops::download(runtime, x, values.data());
    return values;
  }
  std::vector<float> narrow(count);
  ops::download(runtime, x, narrow.data());
  std::copy(narrow.begin(), narrow.end(), values.begin());
  return values;
}

/// How far apart, at most, the keys are of two experts of which one choice has one and the other choice the other.
double gap(const std::vector<double>& keys, const std::int32_t* a, const std::int32_t* b, std::int64_t chosen) {
  const auto in = [&](const std::int32_t* choices, std::int32_t e) {
    return std::find(choices, choices + chosen, e) != choices + chosen;
  };
  double widest = 0;
  for (std::int64_t i = 0; i < chosen; ++i)
    for (std::int64_t j = 0; j < chosen; ++j)
      if (!in(b, a[i]) && !in(a, b[j]))
        widest =
            std::max(widest, std::abs(keys[static_cast<std::size_t>(a[i])] - keys[static_cast<std::size_t>(b[j])]));
  return widest;
}

}  // namespace

Tensor replay_choices(const std::string& layer, const OwnChoices& own, Context& context) {
  Runtime& runtime = context.runtime;
  ChoiceRecord& record = *context.choices;
  const kernels::RowMap map = context.rows.map();
  const std::int64_t rows = own.choices.rows(), chosen = own.choices.width(), experts = own.logits.width();
  std::vector<std::int32_t> choices(static_cast<std::size_t>(own.choices.count()));
  ops::download(runtime, own.choices, choices.data());
  std::vector<std::int32_t>& recorded = record.choices[layer];
  const auto place = [&](std::int64_t row) {
    return static_cast<std::size_t>((record.first_row + map.global_row(row)) * chosen);
  };
  const std::vector<double> logits = record.replays ? on_host(own.logits, runtime) : std::vector<double>{};
  const bool counts = context.expert_sums || context.head_sums;  // not in a forward that is run again: recompute.h
  const std::vector<double> bias = record.replays && own.bias ? on_host(own.bias, runtime) : std::vector<double>{};
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::size_t begin = place(row), end = begin + static_cast<std::size_t>(chosen);
    std::int32_t* mine = choices.data() + row * chosen;
    if (!record.replays) {
      if (recorded.size() < end) recorded.resize(end, -1);
      std::copy_n(mine, chosen, recorded.begin() + static_cast<std::ptrdiff_t>(begin));
      continue;
    }
    if (recorded.size() < end || recorded[begin] < 0) continue;
    const std::int32_t* theirs = recorded.data() + begin;
    if (!std::is_permutation(mine, mine + chosen, theirs)) {
      std::vector<double> keys(static_cast<std::size_t>(experts));
      kernels::route_keys(logits.data() + row * experts, bias.empty() ? nullptr : bias.data(), experts, own.score,
                          keys.data());
      double largest = 0;
      for (const double key : keys) largest = std::max(largest, std::abs(key));
      if (counts) ++record.differing;
      record.widest = std::max(record.widest, gap(keys, mine, theirs, chosen) / largest);
    }
    std::copy_n(theirs, chosen, mine);
  }
  if (!record.replays) return {};
  return ops::to_device(runtime, choices, DType::i32).reshape({rows, chosen});
}

}  // namespace choir
