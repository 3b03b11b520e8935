#include "framework/ops/cross_entropy.h"

#include "framework/ops/dispatch.h"
#include "kernels/cross_entropy.h"

namespace choir::ops {

static void check_logits(const Tensor& logits, std::int64_t num_tokens) {
  check(logits.dtype() == accumulate_type(logits.dtype()), "cross-entropy: logits are f32 or f64");
  check(num_tokens <= logits.width(), "cross-entropy: the tokens are columns of the logits");
}

static void check_rows(const Tensor& logits, const Tensor& max, const Tensor& targets) {
  check(max.count() == logits.rows() && max.dtype() == logits.dtype(), "cross-entropy: max [N], of the logits' type");
  check(targets.count() == logits.rows() && targets.dtype() == DType::i32, "cross-entropy: targets [N], i32");
}

// Logits are f32, or f64 in tests.
template <class Body>
static void with_accumulate_type(DType type, Body&& body) {
  type == DType::f64 ? body.template operator()<double>() : body.template operator()<float>();
}

Tensor cross_entropy_max(Runtime& runtime, const Tensor& logits, std::int64_t num_tokens) {
  check_logits(logits, num_tokens);
  Tensor max = runtime.empty({logits.rows()}, logits.dtype());
  with_accumulate_type(logits.dtype(), [&]<class A>() {
    const kernels::CrossEntropyMax<A> args{.logits = logits.data<A>(),
                                           .max = max.data<A>(),
                                           .rows = logits.rows(),
                                           .num_tokens = num_tokens,
                                           .stride = logits.row_stride()};
    launch<A>(runtime, "cross-entropy", {.flops = static_cast<double>(logits.count()), .bytes = bytes_of({logits})},
              [args](auto device) { kernels::cross_entropy_max(device, args); });
  });
  return max;
}

Tensor cross_entropy_sum(Runtime& runtime, const Tensor& logits, const Tensor& max, const Tensor& targets,
                         std::int64_t num_tokens, std::int64_t first_token) {
  check_logits(logits, num_tokens);
  check_rows(logits, max, targets);
  const std::int64_t rows = logits.rows();
  Tensor result = runtime.empty({2, rows}, logits.dtype());
  with_accumulate_type(logits.dtype(), [&]<class A>() {
    const kernels::CrossEntropySum<A> args{.logits = logits.data<A>(),
                                           .max = max.data<A>(),
                                           .targets = targets.data<std::int32_t>(),
                                           .sum = result.data<A>(),
                                           .target = result.slice_rows(1, 2).data<A>(),
                                           .rows = rows,
                                           .num_tokens = num_tokens,
                                           .stride = logits.row_stride(),
                                           .first_token = first_token};
    launch<A>(runtime, "cross-entropy",
              {.flops = 12.0 * static_cast<double>(logits.count()), .bytes = 2 * bytes_of({logits})},
              [args](auto device) { kernels::cross_entropy_sum(device, args); });
  });
  return result;
}

Tensor cross_entropy_gradient(Runtime& runtime, const Tensor& exps, const Tensor& max, const Tensor& sum_and_target,
                              const Tensor& targets, const Tensor& loss_sum, const Tensor& right,
                              std::int64_t num_tokens, std::int64_t first_token, double scale, bool gradient) {
  check_logits(exps, num_tokens);
  check_rows(exps, max, targets);
  check(exps.contiguous() && exps.dtype() == accumulate_type(runtime.compute_type),
        "cross-entropy: exps are contiguous, and of the run's type");
  check(sum_and_target.count() == 2 * exps.rows() && sum_and_target.dtype() == exps.dtype(),
        "cross-entropy: sums and targets' logits [2, N], of the logits' type");
  check(loss_sum.count() == 1 && loss_sum.dtype() == DType::f64, "cross-entropy: loss_sum is one f64");
  check(!right || (right.count() == 1 && right.dtype() == DType::f64), "cross-entropy: right is one f64");
  Tensor dlogits;
  if (gradient)
    dlogits =
        exps.dtype() == runtime.compute_type ? exps : runtime.empty({exps.rows(), exps.width()}, runtime.compute_type);
  with_type(runtime.compute_type, [&]<class T>() {
    using A = Accumulate<T>;
    const kernels::CrossEntropyGradient<T> args{.exps = exps.data<A>(),
                                                .max = max.data<A>(),
                                                .sum = sum_and_target.data<A>(),
                                                .target = sum_and_target.slice_rows(1, 2).data<A>(),
                                                .targets = targets.data<std::int32_t>(),
                                                .dlogits = data_or_null<T>(dlogits),
                                                .loss_sum = loss_sum.data<double>(),
                                                .rows = exps.rows(),
                                                .num_tokens = num_tokens,
                                                .stride = exps.row_stride(),
                                                .first_token = first_token,
                                                .scale = scale,
                                                .right = data_or_null<double>(right)};
    launch<T>(runtime, "cross-entropy",
              {.flops = 2.0 * static_cast<double>(exps.count()), .bytes = bytes_of({exps, dlogits})},
              [args](auto device) { kernels::cross_entropy_gradient(device, args); });
  });
  return dlogits;
}

}  // namespace choir::ops
