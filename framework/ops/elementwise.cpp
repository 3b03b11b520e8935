#include "framework/ops/elementwise.h"

#include <cstring>

#include "framework/ops/dispatch.h"
#include "kernels/elementwise.h"

namespace choir::ops {

void fill(Runtime& runtime, const Tensor& x, float value) {
  check(x.contiguous(), "fill: x is contiguous");
  with_type(x.dtype(), [&]<class T>() {
    launch(runtime, "fill", {.bytes = bytes_of({x})},
           [x, value](kernels::Cpu cpu) { kernels::fill(cpu, x.data<T>(), x.count(), value); });
  });
}

void copy(Runtime& runtime, const Tensor& from, const Tensor& to) {
  check(from.dtype() == to.dtype() && from.rows() == to.rows() && from.width() == to.width(), "copy: equal shapes");
  const std::int64_t size = size_of(from.dtype());
  launch(runtime, "copy", {.bytes = bytes_of({from, to})}, [from, to, size](kernels::Cpu cpu) {
    kernels::copy_rows(cpu, from.raw(), from.row_stride() * size, to.raw(), to.row_stride() * size, from.rows(),
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
  if (runtime.device.counts_only()) return;
  runtime.device.compute().synchronize();
  std::memcpy(to.raw(), host, static_cast<std::size_t>(to.bytes()));
}

void download(Runtime& runtime, const Tensor& x, void* host) {
  check(x.contiguous(), "download: the source is contiguous");
  if (runtime.device.counts_only()) {
    std::memset(host, 0, static_cast<std::size_t>(x.bytes()));
    return;
  }
  runtime.device.compute().synchronize();
  std::memcpy(host, x.raw(), static_cast<std::size_t>(x.bytes()));
}

}  // namespace choir::ops
