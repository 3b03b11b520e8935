#include "framework/ops/optimizer.h"

#include <algorithm>
#include <utility>

#include "framework/ops/dispatch.h"
#include "framework/ops/elementwise.h"
#include "kernels/clip.h"

namespace choir::ops {

/// body<float>() or body<bf16>()
template <class Body>
static void with_f32_or_bf16(DType type, const Body& body) {
  check(type == DType::f32 || type == DType::bf16, "f32 or bf16");
  if (type == DType::f32)
    body.template operator()<float>();
  else
    body.template operator()<bf16>();
}

static std::int64_t count_of(const Tensor& table, std::size_t entry) {
  return table.bytes() / static_cast<std::int64_t>(entry);
}

UpdateTable make_update_table(Runtime& runtime, std::vector<Update> updates) {
  std::sort(updates.begin(), updates.end(),
            [](const Update& a, const Update& b) { return a.state_begin < b.state_begin; });
  UpdateTable table;
  std::vector<kernels::OptimizerSegment> segments;
  for (const Update& update : updates) {
    const std::int64_t n = update.weight.count();
    check(update.gradient.count() == n && (!update.value || update.value.count() == n),
          "update: weight, gradient and value [n]");
    check(update.state_begin >= table.state_size, "update: elements of the state that no other update has");
    segments.push_back({.begin = update.state_begin,
                        .end = update.state_begin + n,
                        .weight_decay = update.weight_decay,
                        .weight = update.weight.data<float>(),
                        .gradient = update.gradient.data<float>(),
                        .value = data_or_null<bf16>(update.value),
                        .key = update.key,
                        .place = update.place});
    table.elements += n;
    if (update.value) table.rounded += n;
    table.state_size = segments.back().end;
  }
  table.segments = to_device(runtime, segments, DType::u8, MemoryKind::optimizer);
  return table;
}

void adamw(Runtime& runtime, const UpdateTable& table, const Tensor& first_moment, const Tensor& second_moment,
           double beta1, double beta2, float epsilon) {
  check(first_moment.count() >= table.state_size && second_moment.count() == first_moment.count() &&
            second_moment.dtype() == first_moment.dtype(),
        "adamw: moments [state]");
  with_f32_or_bf16(first_moment.dtype(), [&]<class M>() {
    const kernels::AdamW<M> args{.segments = static_cast<const kernels::OptimizerSegment*>(table.segments.raw()),
                                 .num_segments = count_of(table.segments, sizeof(kernels::OptimizerSegment)),
                                 .count = first_moment.count(),
                                 .first_moment = first_moment.data<M>(),
                                 .second_moment = second_moment.data<M>(),
                                 .scalars = runtime.step_scalars(),
                                 .first = kernels::MovingAverage(beta1),
                                 .second = kernels::MovingAverage(beta2),
                                 .epsilon = epsilon};
    const auto n = static_cast<double>(table.elements), rounded = static_cast<double>(table.rounded);
    const double of_moments = 4.0 * sizeof(M);  // both, read and written
    launch<float>(runtime, "optimizer", {.flops = 19 * n, .bytes = (12 + of_moments) * n + 2 * rounded},
                  [args](auto device) { kernels::adamw(device, args); });
  });
}

void sgd(Runtime& runtime, const UpdateTable& table, const Tensor& momentum_buffer, float momentum) {
  check(!momentum_buffer || momentum_buffer.count() >= table.state_size, "sgd: momentum [state]");
  const kernels::Sgd args{.segments = static_cast<const kernels::OptimizerSegment*>(table.segments.raw()),
                          .num_segments = count_of(table.segments, sizeof(kernels::OptimizerSegment)),
                          .count = table.state_size,
                          .momentum_buffer = data_or_null<float>(momentum_buffer),
                          .scalars = runtime.step_scalars(),
                          .momentum = momentum};
  const auto n = static_cast<double>(table.elements), rounded = static_cast<double>(table.rounded);
  launch<float>(runtime, "optimizer", {.flops = 6 * n, .bytes = n * (momentum_buffer ? 20 : 12) + 2 * rounded},
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
                std::int64_t length, double sigma, const Tensor& rejected) {
  check(!window ||
            (window.bytes() == sizeof(kernels::SpikeWindow) && length >= 2 && length <= kernels::SpikeWindow::most),
        "judge step: a window of 2 to 1024 steps");
  check(!rejected || rejected.bytes() == sizeof(std::uint64_t), "judge step: the rejected step is one u64");
  const kernels::Verdict args{.loss_sum = data_or_null<double>(loss_sum),
                              .squared_norm = squared_norm.data<double>(),
                              .window = window ? static_cast<kernels::SpikeWindow*>(window.raw()) : nullptr,
                              .length = static_cast<int>(length),
                              .sigma = sigma,
                              .scalars = static_cast<kernels::StepScalars*>(runtime.scalars.raw()),
                              .rejected = rejected ? static_cast<std::uint64_t*>(rejected.raw()) : nullptr};
  launch<float>(runtime, "verdict", {}, [args](auto device) { kernels::judge_step(device, args); });
}

void digest(Runtime& runtime, const Tensor& x, const Tensor& ranges, const Tensor& digests) {
  const std::int64_t num_ranges = count_of(ranges, sizeof(kernels::Range));
  check(digests.bytes() == num_ranges * static_cast<std::int64_t>(sizeof(std::uint64_t)),
        "digest: one u64 for each range");
  with_f32_or_bf16(x.dtype(), [&]<class T>() {
    const kernels::Digest<T> args{.x = x.data<T>(),
                                  .ranges = static_cast<const kernels::Range*>(ranges.raw()),
                                  .num_ranges = num_ranges,
                                  .digests = static_cast<std::uint64_t*>(digests.raw())};
    launch<float>(runtime, "digest", {.bytes = bytes_of({x})}, [args](auto device) { kernels::digest(device, args); });
  });
}

}  // namespace choir::ops
