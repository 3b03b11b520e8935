// Linear attention and the delta rule on the GPU against the CPU: what their tests share.
#pragma once

#include "tests/kernels/linear_attention_case.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {

using kernels::tests::HostArrays;
using kernels::tests::LinearCase;
using kernels::tests::LinearOperands;
using kernels::tests::text_of;

template <class T>
using DeviceArrays = kernels::tests::LinearArrays<T, DeviceArray<T>, DeviceArray<float>>;

template <class T>
DeviceArrays<T> on_device(const HostArrays<T>& host, std::int64_t offset) {
  const auto tokens = [offset](const std::vector<T>& values) { return DeviceArray<T>(values, offset); };
  const auto numbers = [](const std::vector<float>& values) { return DeviceArray<float>(values); };
  return {.shape = host.shape,
          .has_state = host.has_state,
          .q = tokens(host.q),
          .k = tokens(host.k),
          .v = tokens(host.v),
          .dout = tokens(host.dout),
          .g = numbers(host.g),
          .rate = numbers(host.rate),
          .state = numbers(host.state),
          .dlast = numbers(host.dlast),
          .out = tokens(host.out),
          .dq = tokens(host.dq),
          .dk = tokens(host.dk),
          .dv = tokens(host.dv),
          .last = numbers(host.last),
          .total = numbers(host.total),
          .dg = numbers(host.dg),
          .drate = numbers(host.drate),
          .dstate = numbers(host.dstate),
          .of_zero = numbers(host.of_zero),
          .transition = numbers(host.transition),
          .dof_zero = numbers(host.dof_zero)};
}

/// Each rounds its result, and both differ from the exact one by rounded sums.
template <class T>
void expect_alike(const DeviceArray<T>& of_cuda, const std::vector<T>& of_cpu, const char* what) {
  kernels::tests::expect_alike(of_cuda.host(), of_cpu, 2e-5, what, 2 * half_ulp<T>());
}

template <class T>
void expect_alike(const DeviceArrays<T>& of_cuda, const HostArrays<T>& of_cpu) {
  expect_alike(of_cuda.out, of_cpu.out, "out");
  expect_alike(of_cuda.last, of_cpu.last, "last state");
  expect_alike(of_cuda.dq, of_cpu.dq, "dq");
  expect_alike(of_cuda.dk, of_cpu.dk, "dk");
  expect_alike(of_cuda.dv, of_cpu.dv, "dv");
  expect_alike(of_cuda.dg, of_cpu.dg, "dg");
  expect_alike(of_cuda.drate, of_cpu.drate, "drate");
  expect_alike(of_cuda.dstate, of_cpu.dstate, "dstate");
  expect_alike(of_cuda.of_zero, of_cpu.of_zero, "state after 0");
  expect_alike(of_cuda.transition, of_cpu.transition, "transition");
  expect_alike(of_cuda.dof_zero, of_cpu.dof_zero, "gradient of the state before 0");
}

}  // namespace choir::simgpu::tests
