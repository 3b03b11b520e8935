// The optimizers against their formulas in double over several steps. The bound grows with the steps: each adds the
// roundings of one update, relative to the size of what it adds.
#include "kernels/optimizer.h"

#include <algorithm>
#include <cstring>

#include "tests/kernels/compare.h"
#include "tests/kernels/optimizer_case.h"

namespace choir::kernels::tests {
namespace {

constexpr int steps = 4;
constexpr float momentum = 0.9f;

const OptimizerCase cases[] = {
    {1, {{0, 1, 0.1f}}},
    {64, {{0, 64, 0.0f}}},
    {100, {{3, 17, 0.1f}, {17, 18, 0.0f}, {40, 99, 0.5f}}},  // gaps stay as they are
    {70000, {{0, 333, 0.0f}, {333, 69000, 0.1f}, {69000, 70000, 0.0f}}},
    {5, {}},
};

/// The results as the kernel leaves them, and the bf16 copy, which is `weight` rounded.
void expect_state(const std::vector<float>& weight, const std::vector<bf16>& value, const std::vector<Result>& expected,
                  const OptimizerCase& c, double roundings) {
  expect_close(weight.data(), expected, roundings, "weight");
  for (std::int64_t i = 0; i < c.count; ++i) {
    ASSERT_EQ(value[i].bits, c.segment_of(i) ? bf16(weight[i]).bits : bf16(7.0f).bits) << i;
  }
}

TEST(Optimizer, AdamWIsItsFormula) {
  for (const OptimizerCase& c : cases) {
    const std::vector<float> start = random_values<float>(c.count, 1);
    std::vector<Result> w(c.count), m(c.count), v(c.count);
    for (std::int64_t i = 0; i < c.count; ++i) w[i].add(start[i]);
    for (int step = 1; step <= steps; ++step) {
      const StepScalars s = scalars_of(step);
      const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
      for (std::int64_t i = 0; i < c.count; ++i) {
        const OptimizerSegment* segment = c.segment_of(i);
        if (!segment) continue;
        const double g = double{s.clip_factor} * gradient[i];
        m[i].value = beta1 * m[i].value + (1 - beta1) * g;
        m[i].magnitude = beta1 * m[i].magnitude + (1 - beta1) * std::abs(g);
        v[i].value = beta2 * v[i].value + (1 - beta2) * g * g;
        v[i].magnitude = v[i].value;  // all terms are positive
        const double deviation = std::sqrt(v[i].value * s.bias_correction2) + epsilon;
        const double decay = double{segment->weight_decay} * w[i].value;
        w[i].value -= s.rate * (decay + m[i].value * s.bias_correction1 / deviation);
        w[i].magnitude += s.rate * (std::abs(decay) + m[i].magnitude * s.bias_correction1 / deviation);
      }
    }
    on_every_target([&](Cpu cpu) {
      std::vector<float> weight = start, first(c.count), second(c.count), no_copy = start, first2(c.count),
                         second2(c.count);
      std::vector<bf16> value(c.count, bf16(7.0f));
      for (int step = 1; step <= steps; ++step) {
        const StepScalars s = scalars_of(step);
        const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
        const std::vector<OptimizerSegment> segments = c.segments_of(weight.data(), gradient.data(), value.data());
        const std::vector<OptimizerSegment> of_no_copy = c.segments_of(no_copy.data(), gradient.data(), nullptr);
        AdamW<float> args{.segments = segments.data(),
                          .num_segments = std::ssize(segments),
                          .count = c.count,
                          .first_moment = first.data(),
                          .second_moment = second.data(),
                          .scalars = &s,
                          .first = MovingAverage(beta1),
                          .second = MovingAverage(beta2),
                          .epsilon = epsilon};
        adamw(cpu, args);
        args.segments = of_no_copy.data();
        args.first_moment = first2.data();
        args.second_moment = second2.data();
        adamw(cpu, args);
      }
      expect_state(weight, value, w, c, 8 * steps);
      expect_close(first.data(), m, 8 * steps, "first moment");
      expect_close(second.data(), v, 8 * steps, "second moment");
      ASSERT_EQ(weight, no_copy);
    });
  }
}

// Each step rounds an average to within u, an error that decays with beta2: after many steps the error of the average
// is u / sqrt(3) sqrt(1 / (2 (1 - beta2))) or 13 u, in either direction. The error of the mean over `count` averages is
// 1/16 of it, and the bound is more than twelve times that. With beta2 or 1 - beta2 wrong by half a unit in the last
// place of 1 the error of the mean would be up to 0.5 u / (1 - beta2) = 500 u.
TEST(Optimizer, ALongAverageIsItsFormula) {
  constexpr int count = 256, many_steps = 5000;
  const OptimizerCase whole = {count, {{0, count, 0.0f}}};
  on_every_target([&](Cpu cpu) {
    std::vector<float> weight(count), first(count), second(count);
    std::vector<double> expected(count);
    for (int step = 1; step <= many_steps; ++step) {
      const StepScalars s{.step = static_cast<std::uint64_t>(step)};
      const std::vector<float> gradient = random_values<float>(count, static_cast<unsigned>(step));
      for (std::size_t i = 0; i < count; ++i)
        expected[i] = beta2 * expected[i] + (1 - beta2) * double{gradient[i]} * gradient[i];
      const std::vector<OptimizerSegment> segments = whole.segments_of(weight.data(), gradient.data(), nullptr);
      adamw(cpu, AdamW<float>{.segments = segments.data(),
                              .num_segments = 1,
                              .count = static_cast<std::int64_t>(count),
                              .first_moment = first.data(),
                              .second_moment = second.data(),
                              .scalars = &s,
                              .first = MovingAverage(beta1),
                              .second = MovingAverage(beta2),
                              .epsilon = epsilon});
    }
    double mean = 0;
    for (std::size_t i = 0; i < count; ++i) mean += (second[i] / expected[i] - 1) / count;
    EXPECT_LT(std::abs(mean), 10 * half_ulp<float>());
  });
}

// A constant gradient: the second moment comes nearer to its square by less than half a unit in the last place a step,
// so that rounding to nearest would leave it at a third of the way. A random rounding is off by at most a unit, 2^-7 of
// the moment, and by half of it in the mean of the squares; a mean of `count` moments after many steps by
//   2^-8 sqrt(1 / (2 (1 - beta2))) / sqrt(count) = 0.0014,
// of which the bound is four times as much.
TEST(Optimizer, MomentsInBf16AreRightOnAverage) {
  constexpr int count = 4096, many_steps = 1000;
  const OptimizerCase whole = {count, {{0, count, 0.0f}}};
  const std::vector<float> gradient(count, 0.75f);
  std::vector<float> weight(count);
  std::vector<bf16> first(count), second(count);
  std::vector<OptimizerSegment> segments = whole.segments_of(weight.data(), gradient.data(), nullptr);
  segments[0].key = 0x123456789abcdef;
  segments[0].place = {.columns = count, .width = count};
  for (int step = 1; step <= many_steps; ++step) {
    const StepScalars s{.step = static_cast<std::uint64_t>(step)};
    adamw(Cpu{}, AdamW<bf16>{.segments = segments.data(),
                             .num_segments = 1,
                             .count = static_cast<std::int64_t>(count),
                             .first_moment = first.data(),
                             .second_moment = second.data(),
                             .scalars = &s,
                             .first = MovingAverage(beta1),
                             .second = MovingAverage(beta2),
                             .epsilon = epsilon});
  }
  double of_first = 0, of_second = 0;
  for (std::size_t i = 0; i < count; ++i) of_first += first[i], of_second += second[i];
  EXPECT_NEAR(of_first / count / 0.75, 1, 0.0056);
  EXPECT_NEAR(of_second / count / (0.75 * 0.75 * (1 - std::pow(beta2, many_steps))), 1, 0.0056);
}

// How a tensor is divided does not change what its moments become: by rows, by columns, and in one piece; nor does the
// instruction set, or the number of threads.
TEST(Optimizer, MomentsInBf16DoNotDependOnTheParts) {
  constexpr std::int64_t rows = 150, width = 203, count = rows * width;
  struct State {
    std::vector<float> weight = random_values<float>(count, 1);
    std::vector<bf16> first = std::vector<bf16>(count), second = first;
    bool operator==(const State& other) const {
      return weight == other.weight && std::memcmp(first.data(), other.first.data(), count * sizeof(bf16)) == 0 &&
             std::memcmp(second.data(), other.second.data(), count * sizeof(bf16)) == 0;
    }
  };
  const auto update = [&](Cpu cpu, std::int64_t row_step, std::int64_t column_step) {
    State state;
    for (int step = 1; step <= 3; ++step) {
      const StepScalars s = scalars_of(step);
      const std::vector<float> gradient = random_values<float>(count, 10 + step);
      for (std::int64_t row = 0; row < rows; row += row_step)
        for (std::int64_t column = 0; column < width; column += column_step) {
          const std::int64_t part_rows = std::min(row_step, rows - row);
          const std::int64_t columns = std::min(column_step, width - column), part_count = part_rows * columns;
          const auto for_each = [&](const auto& body) {  // body(element of the part, of the whole)
            for (std::int64_t i = 0; i < part_count; ++i)
              body(static_cast<std::size_t>(i),
                   static_cast<std::size_t>((row + i / columns) * width + column + i % columns));
          };
          std::vector<float> weight(part_count), slope(part_count);
          std::vector<bf16> first(part_count), second(part_count);
          for_each([&](std::size_t i, std::size_t at) {
            weight[i] = state.weight[at], slope[i] = gradient[at];
            first[i] = state.first[at], second[i] = state.second[at];
          });
          // Two segments, as of two buckets.
          const std::int64_t middle = part_count / 3;
          std::vector<OptimizerSegment> segments = {{0, middle, 0.1f}, {middle, part_count, 0.1f}};
          for (OptimizerSegment& segment : segments) {
            segment.weight = weight.data() + segment.begin;
            segment.gradient = slope.data() + segment.begin;
            segment.key = 77;
            segment.place = {
                .first = segment.begin, .columns = columns, .width = width, .origin = row * width + column};
          }
          adamw(cpu, AdamW<bf16>{.segments = segments.data(),
                                 .num_segments = 2,
                                 .count = part_count,
                                 .first_moment = first.data(),
                                 .second_moment = second.data(),
                                 .scalars = &s,
                                 .first = MovingAverage(beta1),
                                 .second = MovingAverage(beta2),
                                 .epsilon = epsilon});
          for_each([&](std::size_t i, std::size_t at) {
            state.weight[at] = weight[i];
            state.first[at] = first[i], state.second[at] = second[i];
          });
        }
    }
    return state;
  };
  const State whole = update(Cpu{}, rows, width);
  EXPECT_TRUE(update(Cpu{.threads = 3}, rows, width) == whole) << "threads";
  EXPECT_TRUE(update(Cpu{}, 61, width) == whole) << "rows";
  EXPECT_TRUE(update(Cpu{}, rows, 67) == whole) << "columns";
}

TEST(Optimizer, SgdIsItsFormula) {
  for (const OptimizerCase& c : cases) {
    for (const bool with_momentum : {false, true}) {
      const std::vector<float> start = random_values<float>(c.count, 1);
      std::vector<Result> w(c.count), m(c.count);
      for (std::int64_t i = 0; i < c.count; ++i) w[i].add(start[i]);
      for (int step = 1; step <= steps; ++step) {
        const StepScalars s = scalars_of(step);
        const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
        for (std::int64_t i = 0; i < c.count; ++i) {
          const OptimizerSegment* segment = c.segment_of(i);
          if (!segment) continue;
          const double g = double{s.clip_factor} * gradient[i];
          m[i].value = (with_momentum ? double{momentum} * m[i].value : 0) + g;
          m[i].magnitude += std::abs(g);
          const double decay = double{segment->weight_decay} * w[i].value;
          w[i].value -= s.rate * (decay + m[i].value);
          w[i].magnitude += s.rate * (std::abs(decay) + m[i].magnitude);
        }
      }
      on_every_target([&](Cpu cpu) {
        std::vector<float> weight = start, buffer(c.count);
        std::vector<bf16> value(c.count, bf16(7.0f));
        for (int step = 1; step <= steps; ++step) {
          const StepScalars s = scalars_of(step);
          const std::vector<float> gradient = random_values<float>(c.count, 10 + step);
          const std::vector<OptimizerSegment> segments = c.segments_of(weight.data(), gradient.data(), value.data());
          sgd(cpu, Sgd{.segments = segments.data(),
                       .num_segments = std::ssize(segments),
                       .count = c.count,
                       .momentum_buffer = with_momentum ? buffer.data() : nullptr,
                       .scalars = &s,
                       .momentum = with_momentum ? momentum : 0});
        }
        expect_state(weight, value, w, c, 4 * steps);
        if (with_momentum) expect_close(buffer.data(), m, 4 * steps, "momentum");
      });
    }
  }
}

}  // namespace
}  // namespace choir::kernels::tests
