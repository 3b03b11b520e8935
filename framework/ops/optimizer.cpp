#include "framework/ops/optimizer.h"

#include "framework/ops/dispatch.h"
#include "kernels/clip.h"

namespace choir::ops {

static std::int64_t count_of(const Tensor& table, std::size_t entry) {
  return table.bytes() / static_cast<std::int64_t>(entry);
}

void adamw(Runtime& runtime, const Tensor& weight, const Tensor& gradient, const Tensor& first_moment,
           const Tensor& second_moment, const Tensor& value, const Tensor& segments, double beta1, double beta2,
           float epsilon) {
  check(weight.count() == gradient.count() && weight.count() == first_moment.count() &&
            weight.count() == second_moment.count() && (!value || value.count() == weight.count()),
        "adamw: weight, gradient and moments [n]");
  const kernels::AdamW args{.weight = weight.data<float>(),
                            .gradient = gradient.data<float>(),
                            .first_moment = first_moment.data<float>(),
                            .second_moment = second_moment.data<float>(),
                            .value = data_or_null<bf16>(value),
                            .count = weight.count(),
                            .segments = static_cast<const kernels::OptimizerSegment*>(segments.raw()),
                            .num_segments = count_of(segments, sizeof(kernels::OptimizerSegment)),
                            .scalars = runtime.step_scalars(),
                            .first = kernels::MovingAverage(beta1),
                            .second = kernels::MovingAverage(beta2),
                            .epsilon = epsilon};
  const auto n = static_cast<double>(weight.count());
  launch<float>(runtime, "optimizer", {.flops = 19 * n, .bytes = n * (value ? 30 : 28)},
                [args](auto device) { kernels::adamw(device, args); });
}

void sgd(Runtime& runtime, const Tensor& weight, const Tensor& gradient, const Tensor& momentum_buffer,
         const Tensor& value, const Tensor& segments, float momentum) {
  check(weight.count() == gradient.count() && (!momentum_buffer || momentum_buffer.count() == weight.count()) &&
            (!value || value.count() == weight.count()),
        "sgd: weight, gradient and momentum [n]");
  const kernels::Sgd args{.weight = weight.data<float>(),
                          .gradient = gradient.data<float>(),
                          .momentum_buffer = data_or_null<float>(momentum_buffer),
                          .value = data_or_null<bf16>(value),
                          .count = weight.count(),
                          .segments = static_cast<const kernels::OptimizerSegment*>(segments.raw()),
                          .num_segments = count_of(segments, sizeof(kernels::OptimizerSegment)),
                          .scalars = runtime.step_scalars(),
                          .momentum = momentum};
  const auto n = static_cast<double>(weight.count());
  launch<float>(runtime, "optimizer", {.flops = 6 * n, .bytes = n * (momentum_buffer ? 20 : 12)},
                [args](auto device) { kernels::sgd(device, args); });
}

void sign_step(Runtime& runtime, const Tensor& weight, const Tensor& gradient, float step) {
  check(weight.count() == gradient.count(), "sign step: weight and gradient [n]");
  const kernels::SignStep args{weight.data<float>(), gradient.data<float>(), weight.count(), step,
                               runtime.step_scalars()};
  const auto n = static_cast<double>(weight.count());
  launch<float>(runtime, "sign step", {.flops = 2 * n, .bytes = 12 * n},
                [args](auto device) { kernels::sign_step(device, args); });
}

void squared_norm(Runtime& runtime, const Tensor& x, const Tensor& ranges, std::int64_t count, const Tensor& sum) {
  const std::int64_t num_ranges = count_of(ranges, sizeof(kernels::Range));
  const Tensor scratch = workspace(runtime, runtime.device.with_kernels<float>([&](auto device) {
    return kernels::squared_norm_workspace_bytes(device, num_ranges);
  }));
  const kernels::SquaredNorm args{.x = x.data<float>(),
                                  .ranges = static_cast<const kernels::Range*>(ranges.raw()),
                                  .num_ranges = num_ranges,
                                  .sum = sum.data<double>(),
                                  .workspace = scratch.raw()};
  const auto n = static_cast<double>(count);
  launch<float>(runtime, "gradient norm", {.flops = 2 * n, .bytes = n * static_cast<double>(size_of(x.dtype()))},
                [args](auto device) { kernels::squared_norm(device, args); });
}

void clip_factor(Runtime& runtime, const Tensor& squared_norm, double limit) {
  const double* norm = squared_norm.data<double>();
  auto* scalars = static_cast<kernels::StepScalars*>(runtime.scalars.raw());
  launch<float>(runtime, "clip factor", {},
                [norm, limit, scalars](auto device) { kernels::clip_factor(device, norm, limit, scalars); });
}

void judge_step(Runtime& runtime, const Tensor& loss_sum, const Tensor& squared_norm, const Tensor& window,
                std::int64_t length, double sigma) {
  check(!window ||
            (window.bytes() == sizeof(kernels::SpikeWindow) && length >= 2 && length <= kernels::SpikeWindow::most),
        "judge step: a window of 2 to 1024 steps");
  const kernels::Verdict args{.loss_sum = data_or_null<double>(loss_sum),
                              .squared_norm = squared_norm.data<double>(),
                              .window = window ? static_cast<kernels::SpikeWindow*>(window.raw()) : nullptr,
                              .length = static_cast<int>(length),
                              .sigma = sigma,
                              .scalars = static_cast<kernels::StepScalars*>(runtime.scalars.raw())};
  launch<float>(runtime, "verdict", {}, [args](auto device) { kernels::judge_step(device, args); });
}

void digest(Runtime& runtime, const Tensor& x, const Tensor& ranges, const Tensor& digests) {
  const std::int64_t num_ranges = count_of(ranges, sizeof(kernels::Range));
  check(digests.bytes() == num_ranges * static_cast<std::int64_t>(sizeof(std::uint64_t)),
        "digest: one u64 for each range");
  const kernels::Digest args{.x = x.data<float>(),
                             .ranges = static_cast<const kernels::Range*>(ranges.raw()),
                             .num_ranges = num_ranges,
                             .digests = static_cast<std::uint64_t*>(digests.raw())};
  launch<float>(runtime, "digest", {.bytes = bytes_of({x})}, [args](auto device) { kernels::digest(device, args); });
}

}  // namespace choir::ops
