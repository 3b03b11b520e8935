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

void accumulate(Runtime& runtime, const Tensor& x, const Tensor& sum) {
  check(x.dtype() == sum.dtype() && x.count() == sum.count() && x.contiguous() && sum.contiguous(),
        "accumulate: equal shapes, contiguous");
  check(x.dtype() == DType::f32 || x.dtype() == DType::f64, "accumulate: f32 or f64");
  const auto add = [&]<class T>(T*) {
    launch<T>(runtime, "accumulate", {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x, sum, sum})},
              [x, sum](auto device) { kernels::add(device, x.data<T>(), sum.data<T>(), sum.data<T>(), sum.count()); });
  };
  x.dtype() == DType::f64 ? add(x.data<double>()) : add(x.data<float>());
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
