// Fill, copy and the moves between host and device.
#pragma once

#include "framework/core/runtime.h"

namespace choir::ops {

/// Every element of a contiguous x becomes `value` (f32, bf16, f64).
void fill(Runtime&, const Tensor& x, float value);

/// x [n] f32 (f64 in tests) = 0 in ranges of it. `ranges` holds kernels::Range in device memory, of `count` elements.
void zero_ranges(Runtime&, const Tensor& x, const Tensor& ranges, std::int64_t count);

/// sum += x: equal shapes, any row strides. The sum is of the type in which sums of x are computed: f32, or f64.
void accumulate(Runtime&, const Tensor& x, const Tensor& sum);

/// x = sum, rounded: the way back.
void narrow(Runtime&, const Tensor& sum, const Tensor& x);

/// to = from: same shape and type, any row strides, not overlapping.
void copy(Runtime&, const Tensor& from, const Tensor& to);

/// The contiguous copy of `x`: the same handle if it is already contiguous.
Tensor contiguous(Runtime&, const Tensor& x);

/// to (contiguous) = bytes of host memory, which are read before this returns.
void upload(Runtime&, const void* host, const Tensor& to);

/// host = x (contiguous), after all enqueued work: this blocks the caller. On device `count` the host gets zeros.
void download(Runtime&, const Tensor& x, void* host);

/// A fresh device tensor with the values of `host`.
template <class T>
Tensor to_device(Runtime& runtime, const std::vector<T>& host, DType type, MemoryKind kind = MemoryKind::temporary) {
  const auto bytes = static_cast<std::int64_t>(host.size() * sizeof(T));
  Tensor tensor = runtime.empty({bytes / size_of(type)}, type, kind);
  upload(runtime, host.data(), tensor);
  return tensor;
}

}  // namespace choir::ops
