// The one place that picks the device and turns an element type into a template argument.
#pragma once

#include <chrono>
#include <utility>

#include "framework/core/error.h"
#include "framework/core/runtime.h"

namespace choir::ops {

/// Enqueues kernel(kernels::Cpu) on the compute stream; on device `count` only writes `cost` to the ledger.
/// `name` is the line of the profile table: "attention forward".
template <class Kernel>
void launch(Runtime& runtime, const char* name, Cost cost, Kernel kernel) {
  Device& device = runtime.device;
  Ledger& ledger = device.ledger();
  if (device.counts_only()) {
    ledger.add(name, cost, 0);
    return;
  }
  device.compute().enqueue([name, cost, kernel = std::move(kernel), cpu = device.cpu(), &ledger] {
    if (!ledger.enabled) return kernel(cpu);
    const auto start = std::chrono::steady_clock::now();
    kernel(cpu);
    ledger.add(name, cost, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  });
}

/// Calls body.operator()<T>() with the C++ type of activations of `type`.
template <class Body>
decltype(auto) with_type(DType type, Body&& body) {
  switch (type) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::f64:
      return body.template operator()<double>();
    case DType::i32:
    case DType::u8:
      break;
  }
  throw Error({.what = std::string("no kernels for elements of type ") + name_of(type)});
}

/// Throws Error where `holds` is false: two tensors do not fit together, which is a mistake in Choir or in its caller.
inline void check(bool holds, const char* rule, std::source_location at = std::source_location::current()) {
  if (!holds) throw Error({.what = std::string("operands do not fit together: ") + rule}, at);
}

/// The data pointer, or null for an empty handle.
template <class T>
T* data_or_null(const Tensor& tensor) {
  return tensor ? tensor.data<T>() : nullptr;
}

inline double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors)
    if (tensor) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

}  // namespace choir::ops
