// The functions of cuDNN that Choir and cudnn-frontend call (launch/gpu_libraries/shared_library.h), declared by the
// real header.
#include <cudnn.h>

#include <cstdio>

#include "launch/gpu_libraries/shared_library.h"

namespace {

choir::SharedLibrary& cudnn() {
  static choir::SharedLibrary library("libcudnn.so." + std::to_string(CUDNN_MAJOR), CHOIR_CUDNN_FOLDER);
  return library;
}

}  // namespace

#define CUDNN_FUNCTION(name, parameters, ...)                                          \
  extern "C" cudnnStatus_t name parameters {                                           \
    static const auto function = cudnn().find<decltype(name)>(#name);                  \
    return function != nullptr ? function(__VA_ARGS__) : CUDNN_STATUS_NOT_INITIALIZED; \
  }

CUDNN_FUNCTION(cudnnCreate, (cudnnHandle_t * handle), handle)
CUDNN_FUNCTION(cudnnDestroy, (cudnnHandle_t handle), handle)
CUDNN_FUNCTION(cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), handle, stream)
CUDNN_FUNCTION(cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream), handle, stream)

CUDNN_FUNCTION(cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor),
               type, descriptor)
CUDNN_FUNCTION(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor), descriptor)
CUDNN_FUNCTION(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), descriptor)
CUDNN_FUNCTION(cudnnBackendSetAttribute,
               (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void* elements),
               descriptor, name, type, count, elements)
CUDNN_FUNCTION(cudnnBackendGetAttribute,
               (const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t asked, int64_t* count, void* elements),
               descriptor, name, type, asked, count, elements)
CUDNN_FUNCTION(cudnnBackendExecute,
               (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t tensors), handle, plan,
               tensors)

extern "C" size_t cudnnGetVersion() {
  static const auto function = cudnn().find<decltype(cudnnGetVersion)>("cudnnGetVersion");
  return function != nullptr ? function() : 0;
}

extern "C" const char* cudnnGetErrorString(cudnnStatus_t status) {
  static const auto function = cudnn().find<decltype(cudnnGetErrorString)>("cudnnGetErrorString");
  return function != nullptr ? function(status) : "CUDNN_STATUS_NOT_INITIALIZED";
}

// In the form of cuDNN's own log of errors.
extern "C" void cudnnGetLastErrorString(char* message, size_t max_size) {
  static const auto function = cudnn().find<decltype(cudnnGetLastErrorString)>("cudnnGetLastErrorString");
  if (const char* problem = cudnn().problem(); *problem != '\0')
    std::snprintf(message, max_size, "Reason: %s", problem);
  else
    function(message, max_size);
}
