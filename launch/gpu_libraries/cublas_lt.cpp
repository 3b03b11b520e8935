// The functions of cuBLASLt that Choir calls (launch/gpu_libraries/shared_library.h), declared by the real header.
#include <cublasLt.h>

#include "launch/gpu_libraries/shared_library.h"

namespace {

choir::SharedLibrary& cublas_lt() {
  static choir::SharedLibrary library("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), CHOIR_CUBLASLT_FOLDER);
  return library;
}

}  // namespace

#define CUBLASLT_FUNCTION(name, parameters, ...)                                        \
  extern "C" cublasStatus_t name parameters {                                           \
    static const auto function = cublas_lt().find<decltype(name)>(#name);               \
    return function != nullptr ? function(__VA_ARGS__) : CUBLAS_STATUS_NOT_INITIALIZED; \
  }

CUBLASLT_FUNCTION(cublasLtCreate, (cublasLtHandle_t * handle), handle)
CUBLASLT_FUNCTION(cublasLtDestroy, (cublasLtHandle_t handle), handle)

CUBLASLT_FUNCTION(cublasLtMatmulDescCreate,
                  (cublasLtMatmulDesc_t * operation, cublasComputeType_t compute, cudaDataType_t scale), operation,
                  compute, scale)
CUBLASLT_FUNCTION(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t operation), operation)
CUBLASLT_FUNCTION(cublasLtMatmulDescSetAttribute,
                  (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void* value,
                   size_t bytes),
                  operation, attribute, value, bytes)

CUBLASLT_FUNCTION(cublasLtMatrixLayoutCreate,
                  (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t stride),
                  layout, type, rows, columns, stride)
CUBLASLT_FUNCTION(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), layout)
CUBLASLT_FUNCTION(cublasLtMatrixLayoutSetAttribute,
                  (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                   size_t bytes),
                  layout, attribute, value, bytes)

CUBLASLT_FUNCTION(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), preference)
CUBLASLT_FUNCTION(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), preference)
CUBLASLT_FUNCTION(cublasLtMatmulPreferenceSetAttribute,
                  (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                   const void* value, size_t bytes),
                  preference, attribute, value, bytes)

CUBLASLT_FUNCTION(cublasLtMatmulAlgoGetHeuristic,
                  (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                   cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                   cublasLtMatmulPreference_t preference, int asked, cublasLtMatmulHeuristicResult_t results[],
                   int* found),
                  handle, operation, a, b, c, d, preference, asked, results, found)
CUBLASLT_FUNCTION(cublasLtMatmulAlgoCheck,
                  (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                   cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                   const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result),
                  handle, operation, a, b, c, d, algorithm, result)
CUBLASLT_FUNCTION(cublasLtMatmulAlgoConfigGetAttribute,
                  (const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                   size_t bytes, size_t* written),
                  algorithm, attribute, value, bytes, written)
CUBLASLT_FUNCTION(cublasLtMatmul,
                  (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                   cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                   const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                   const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream),
                  handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
                  workspace, workspace_bytes, stream)

extern "C" size_t cublasLtGetVersion() {
  static const auto function = cublas_lt().find<decltype(cublasLtGetVersion)>("cublasLtGetVersion");
  return function != nullptr ? function() : 0;
}

extern "C" const char* cublasLtGetStatusName(cublasStatus_t status) {
  static const auto function = cublas_lt().find<decltype(cublasLtGetStatusName)>("cublasLtGetStatusName");
  return function != nullptr ? function(status) : "CUBLAS_STATUS_NOT_INITIALIZED";
}

extern "C" const char* cublasLtGetStatusString(cublasStatus_t status) {
  static const auto function = cublas_lt().find<decltype(cublasLtGetStatusString)>("cublasLtGetStatusString");
  const char* problem = cublas_lt().problem();
  return *problem != '\0' ? problem : function(status);
}
