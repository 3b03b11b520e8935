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

/// How far apart, at most, the logits are of two experts of which one choice has one and the other choice the other.
double gap(const double* logits, const std::int32_t* a, const std::int32_t* b, std::int64_t chosen) {
  const auto in = [&](const std::int32_t* choices, std::int32_t e) {
    return std::find(choices, choices + chosen, e) != choices + chosen;
  };
  double widest = 0;
  for (std::int64_t i = 0; i < chosen; ++i)
    for (std::int64_t j = 0; j < chosen; ++j)
      if (!in(b, a[i]) && !in(a, b[j])) widest = std::max(widest, std::abs(logits[a[i]] - logits[b[j]]));
  return widest;
}

}  // namespace

Tensor replay_choices(const std::string& layer, const Tensor& own, const Tensor& logits, Context& context) {
  Runtime& runtime = context.runtime;
  ChoiceRecord& record = *context.choices;
  const kernels::RowMap map = context.rows.map();
  const std::int64_t rows = own.rows(), chosen = own.width(), experts = logits.width();
  std::vector<std::int32_t> choices(static_cast<std::size_t>(own.count()));
  ops::download(runtime, own, choices.data());
  std::vector<std::int32_t>& recorded = record.choices[layer];
  const auto place = [&](std::int64_t row) {
    return static_cast<std::size_t>((record.first_row + map.global_row(row)) * chosen);
  };
  const std::vector<double> scores = record.replays ? on_host(logits, runtime) : std::vector<double>{};
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
    const double* of_row = scores.data() + row * experts;
    if (!std::is_permutation(mine, mine + chosen, theirs)) {
      double largest = 0;
      for (std::int64_t e = 0; e < experts; ++e) largest = std::max(largest, std::abs(of_row[e]));
      ++record.differing;
      record.widest = std::max(record.widest, gap(of_row, mine, theirs, chosen) / largest);
    }
    std::copy_n(theirs, chosen, mine);
  }
  if (!record.replays) return {};
  return ops::to_device(runtime, choices, DType::i32).reshape({rows, chosen});
}

}  // namespace choir
