#include "framework/ops/cross_entropy.h"

#include "framework/ops/dispatch.h"
#include "kernels/cross_entropy.h"

namespace choir::ops {

static void check_operands(const Tensor& logits, const Tensor& targets, std::int64_t num_tokens) {
  check(logits.contiguous() && num_tokens <= logits.width(), "cross-entropy: the tokens are columns of the logits");
  check(targets.count() == logits.rows() && targets.dtype() == DType::i32, "cross-entropy: targets [N], i32");
}

Tensor cross_entropy_statistics(Runtime& runtime, const Tensor& logits, const Tensor& targets, std::int64_t num_tokens,
                                std::int64_t first_token) {
  check_operands(logits, targets, num_tokens);
  Tensor statistics = runtime.empty({3, logits.rows()}, accumulate_type(logits.dtype()));
  with_type(logits.dtype(), [&]<class T>() {
    const kernels::CrossEntropyStatistics<T> args{.logits = logits.data<T>(),
                                                  .targets = targets.data<std::int32_t>(),
                                                  .statistics = statistics.data<Accumulate<T>>(),
                                                  .rows = logits.rows(),
                                                  .num_tokens = num_tokens,
                                                  .stride = logits.row_stride(),
                                                  .first_token = first_token};
    launch<T>(runtime, "cross-entropy",
              {.flops = 12.0 * static_cast<double>(logits.count()), .bytes = bytes_of({logits, statistics})},
              [args](auto device) { kernels::cross_entropy_statistics(device, args); });
  });
  return statistics;
}

void cross_entropy(Runtime& runtime, const Tensor& logits, const Tensor& statistics, const Tensor& targets,
                   const Tensor& losses, const Tensor& right, std::int64_t num_tokens, std::int64_t first_token,
                   double scale, bool gradient) {
  check_operands(logits, targets, num_tokens);
  const std::int64_t rows = logits.rows();
  check(!statistics || (statistics.contiguous() && statistics.width() == rows && statistics.rows() % 3 == 0 &&
                        statistics.dtype() == accumulate_type(logits.dtype())),
        "cross-entropy: statistics [3 slices, N], f32 or f64");
  check(losses.count() == rows && losses.dtype() == DType::f64, "cross-entropy: losses [N], f64");
  check(!right || (right.count() == rows && right.dtype() == DType::f64), "cross-entropy: right [N], f64");
  with_type(logits.dtype(), [&]<class T>() {
    const kernels::CrossEntropy<T> args{.logits = logits.data<T>(),
                                        .statistics = data_or_null<Accumulate<T>>(statistics),
                                        .slices = statistics ? statistics.rows() / 3 : 0,
                                        .targets = targets.data<std::int32_t>(),
                                        .losses = losses.data<double>(),
                                        .right = data_or_null<double>(right),
                                        .rows = rows,
                                        .num_tokens = num_tokens,
                                        .stride = logits.row_stride(),
                                        .first_token = first_token,
                                        .scale = scale,
                                        .gradient = gradient};
    const double n = static_cast<double>(logits.count());
    launch<T>(runtime, "cross-entropy",
              {.flops = (statistics ? 0 : 12 * n) + (gradient ? 12 * n : 0),
               .bytes = bytes_of({logits, statistics, losses, right}) + (gradient ? bytes_of({logits}) : 0)},
              [args](auto device) { kernels::cross_entropy(device, args); });
  });
}

void sum_of_losses(Runtime& runtime, const Tensor& losses, const Tensor& sum) {
  check(losses.dtype() == DType::f64 && sum.count() == 1 && sum.dtype() == DType::f64,
        "sum of losses: losses [N] f64, sum one f64");
  const kernels::SumOfLosses args{losses.data<double>(), losses.count(), sum.data<double>()};
  launch<float>(runtime, "sum of losses", {.flops = static_cast<double>(losses.count()), .bytes = bytes_of({losses})},
                [args](auto device) { kernels::sum_of_losses(device, args); });
}

}  // namespace choir::ops
