// What CUDA's run-time and cuBLASLt refuse, the doubles refuse too: a double that accepts more than the library hides
// mistakes until the first run on a real GPU.
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "tests/simgpu/planted/streams.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu::tests {
namespace {

constexpr int n = 200;
constexpr std::size_t bytes = n * sizeof(float);

class Refusals : public ::testing::Test {
 protected:
  void SetUp() override {
    configure({.devices = 2, .memory_bytes = 1 << 20});
    cudaSetDevice(0);
    cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaMalloc(reinterpret_cast<void**>(&x), bytes);
    cudaMalloc(reinterpret_cast<void**>(&y), bytes);
    cudaMallocHost(reinterpret_cast<void**>(&pinned), bytes);
    cudaMemsetAsync(x, 0, bytes, one);
    cudaStreamSynchronize(one);
  }
  void TearDown() override {
    configure({});  // a broken device frees nothing
    cudaGetLastError();
  }

  static bool found(const std::string& kind) {
    const std::vector<Finding> findings = take_findings();
    return std::any_of(findings.begin(), findings.end(), [&](const Finding& finding) { return finding.kind == kind; });
  }

  cudaStream_t one = nullptr, two = nullptr;
  cudaEvent_t event = nullptr;
  float *x = nullptr, *y = nullptr, *pinned = nullptr;
};

TEST_F(Refusals, TheDirectionOfACopyIsThatOfItsAddresses) {
  std::vector<float> host(n);
  EXPECT_EQ(cudaMemcpyAsync(x, host.data(), bytes, cudaMemcpyDeviceToHost, one), cudaErrorInvalidValue);
  EXPECT_TRUE(found("copy direction"));
  EXPECT_EQ(cudaMemcpyAsync(pinned, x, bytes, cudaMemcpyDeviceToDevice, one), cudaErrorInvalidValue);
  EXPECT_TRUE(found("copy direction"));
  EXPECT_EQ(cudaMemcpyAsync(x, host.data(), bytes, cudaMemcpyHostToDevice, one), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice, one), cudaSuccess);
  EXPECT_TRUE(take_findings().empty());
}

TEST_F(Refusals, MemoryIsFreedAsItWasAllocated) {
  EXPECT_EQ(cudaFree(pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(x), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeAsync(pinned, one), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(x), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(Refusals, AStreamAcceptsWorkOfItsOwnDeviceOnly) {
  cudaSetDevice(1);
  cudaEvent_t elsewhere = nullptr;
  cudaEventCreateWithFlags(&elsewhere, cudaEventDisableTiming);
  planted::launch_with(32, 0, one);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(elsewhere, one), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, one), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
}

TEST_F(Refusals, AFailedOperationIsLeftOnTheDevice) {
  fail_device(cudaErrorIllegalAddress, 0);
  planted::add(x, n, 1, one);
  EXPECT_EQ(cudaStreamSynchronize(one), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  void* memory = nullptr;
  cudaEvent_t another = nullptr;
  EXPECT_EQ(cudaSetDevice(0), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaMallocAsync(&memory, 100, one), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaFreeAsync(x, one), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaEventCreateWithFlags(&another, cudaEventDisableTiming), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaEventRecord(event, one), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamWaitEvent(two, event, 0), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaMemsetAsync(y, 0, bytes, two), cudaErrorIllegalAddress);
  planted::add(x, n, 1, two);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
}

// The thread of a watchdog queries events; that orders nothing for the thread that trains.
TEST_F(Refusals, WhatAnotherThreadHasWaitedForOrdersNothing) {
  planted::add(x, n, 1, one);
  cudaEventRecord(event, one);
  std::thread([&] { cudaEventSynchronize(event); }).join();
  planted::double_into(x, y, n, two);
  EXPECT_TRUE(found("stream race"));
}

TEST_F(Refusals, BlocksAreAtMost64Deep) {
  planted::launch_deep(64, one);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  planted::launch_deep(65, one);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

TEST_F(Refusals, ArgumentsThatTheRunTimeKnowsToBeWrong) {
  char bus[13] = {};
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus, 12, 0), cudaErrorInvalidValue);
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus, 13, 2), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus, 13, 0), cudaSuccess);
  std::uint64_t threshold = 0;
  EXPECT_EQ(cudaMemPoolSetAttribute(nullptr, cudaMemPoolAttrReleaseThreshold, &threshold), cudaErrorInvalidValue);
  EXPECT_EQ(cudaStreamWaitEvent(one, event, 7), cudaErrorInvalidValue);
}

TEST_F(Refusals, AttributesOfCublasLtHaveTheSizeOfTheirType) {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const std::int64_t wide = CUBLAS_OP_T;
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &wide, sizeof wide),
            CUBLAS_STATUS_INVALID_VALUE);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, nullptr, sizeof transposed),
            CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulDescDestroy(operation);
}

/// One product of e4m3 that cuBLASLt takes; the test breaks one rule at a time.
struct CodesProduct {
  cublasOperation_t a = CUBLAS_OP_T, b = CUBLAS_OP_N;
  std::int32_t a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  const void* scales = reinterpret_cast<const void*>(std::uintptr_t{256});
  std::int8_t fast = 0;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  std::uint64_t m = 32, n = 5, k = 48;
  cudaDataType_t result = CUDA_R_16BF;
  int capability = 90;

  cublasStatus_t answer() const {
    configure({.compute_capability = capability});
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), CUBLAS_STATUS_SUCCESS);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, b);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, a_mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, std::int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F});
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales);
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    cublasLtMatrixLayout_t left = nullptr, right = nullptr, out = nullptr;
    const bool ta = a == CUBLAS_OP_T, tb = b == CUBLAS_OP_T;
    cublasLtMatrixLayoutCreate(&left, CUDA_R_8F_E4M3, ta ? k : m, ta ? m : k, static_cast<std::int64_t>(ta ? k : m));
    cublasLtMatrixLayoutCreate(&right, CUDA_R_8F_E4M3, tb ? n : k, tb ? k : n, static_cast<std::int64_t>(tb ? n : k));
    cublasLtMatrixLayoutCreate(&out, result, m, n, static_cast<std::int64_t>(m));
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(nullptr, operation, left, right, out, out, preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    for (const cublasLtMatrixLayout_t layout : {left, right, out}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(operation);
    return status;
  }
};

TEST_F(Refusals, ProductsOf8BitsObeyTheDocumentation) {
  EXPECT_EQ(CodesProduct().answer(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ((CodesProduct{.epilogue = CUBLASLT_EPILOGUE_BIAS}).answer(), CUBLAS_STATUS_SUCCESS);
  const CodesProduct refused[] = {
      {.a = CUBLAS_OP_N},  {.b = CUBLAS_OP_T}, {.a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
      {.scales = nullptr}, {.fast = 1},        {.epilogue = CUBLASLT_EPILOGUE_GELU_AUX},
      {.m = 24},           {.k = 40},          {.result = CUDA_R_32F},
      {.capability = 80},  {.capability = 100}};
  for (std::size_t i = 0; i < std::size(refused); ++i)
    EXPECT_EQ(refused[i].answer(), CUBLAS_STATUS_NOT_SUPPORTED) << "the change with number " << i;
}

}  // namespace
}  // namespace choir::simgpu::tests
