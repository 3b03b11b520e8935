#include "framework/ops/elementwise.h"

#include "framework/ops/dispatch.h"
#include "kernels/elementwise.h"

namespace choir::ops {

void fill(Runtime& runtime, const Tensor& x, float value) {
  check(x.contiguous(), "fill: x is contiguous");
  with_type(x.dtype(), [&]<class T>() {
    // Every device fills f64 as well: sums of losses are f64.
    launch<float>(runtime, "fill", {.bytes = bytes_of({x})},
                  [x, value](auto device) { kernels::fill(device, x.data<T>(), x.count(), value); });
  });
}

void zero_ranges(Runtime& runtime, const Tensor& x, const Tensor& ranges, std::int64_t count) {
  constexpr auto entry = static_cast<std::int64_t>(sizeof(kernels::Range));
  check(ranges.bytes() % entry == 0, "zero ranges: a table of kernels::Range");
  const auto zero = [&]<class T>(T* values) {
    const kernels::ZeroRanges<T> args{values, static_cast<const kernels::Range*>(ranges.raw()), ranges.bytes() / entry,
                                      count};
    launch<T>(runtime, "fill", {.bytes = static_cast<double>(count * size_of(x.dtype()))},
              [args](auto device) { kernels::zero_ranges(device, args); });
  };
  return x.dtype() == DType::f64 ? zero(x.data<double>()) : zero(x.data<float>());
}

void accumulate(Runtime& runtime, const Tensor& x, const Tensor& sum) {
  check(x.rows() == sum.rows() && x.width() == sum.width(), "accumulate: equal shapes");
  check(sum.dtype() == accumulate_type(x.dtype()), "accumulate: the sum is f32, or f64 of f64");
  with_type(x.dtype(), [&]<class T>() {
    const kernels::RowPass<T, Accumulate<T>> args{x.data<T>(),    sum.data<Accumulate<T>>(), x.rows(), x.width(),
                                                  x.row_stride(), sum.row_stride()};
    launch<T>(runtime, "accumulate", {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x, sum, sum})},
              [args](auto device) { kernels::accumulate<T>(device, args); });
  });
}

void narrow(Runtime& runtime, const Tensor& sum, const Tensor& x) {
  check(x.rows() == sum.rows() && x.width() == sum.width(), "narrow: equal shapes");
  check(sum.dtype() == accumulate_type(x.dtype()), "narrow: the sum is f32, or f64 of f64");
  with_type(x.dtype(), [&]<class T>() {
    const kernels::RowPass<Accumulate<T>, T> args{sum.data<Accumulate<T>>(), x.data<T>(),   x.rows(), x.width(),
                                                  sum.row_stride(),          x.row_stride()};
    launch<T>(runtime, "narrow", {.bytes = bytes_of({x, sum})},
              [args](auto device) { kernels::narrow<T>(device, args); });
  });
}

void copy(Runtime& runtime, const Tensor& from, const Tensor& to) {
  check(from.dtype() == to.dtype() && from.rows() == to.rows() && from.width() == to.width(), "copy: equal shapes");
  const std::int64_t size = size_of(from.dtype());
  launch<float>(runtime, "copy", {.bytes = bytes_of({from, to})}, [from, to, size](auto device) {
    kernels::copy_rows(device, from.raw(), from.row_stride() * size, to.raw(), to.row_stride() * size, from.rows(),
                       from.width() * size);
  });
}

Tensor contiguous(Runtime& runtime, const Tensor& x) {
  if (x.contiguous()) return x;
  Tensor y = runtime.empty({x.rows(), x.width()}, x.dtype());
  copy(runtime, x, y);
  return y;
}

void upload(Runtime& runtime, const void* host, const Tensor& to) {
  check(to.contiguous(), "upload: the target is contiguous");
  runtime.device.upload(host, to.raw(), to.bytes());
}

void download(Runtime& runtime, const Tensor& x, void* host) {
  check(x.contiguous(), "download: the source is contiguous");
  runtime.device.download(x.raw(), host, x.bytes());
}

}  // namespace choir::ops
