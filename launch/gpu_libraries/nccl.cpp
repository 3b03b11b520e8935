// The functions of NCCL that Choir calls (launch/gpu_libraries/shared_library.h), declared by the real header.
#include <nccl.h>

#include "launch/gpu_libraries/shared_library.h"

namespace {

choir::SharedLibrary& nccl() {
  static choir::SharedLibrary library("libnccl.so." + std::to_string(NCCL_MAJOR), CHOIR_NCCL_FOLDER);
  return library;
}

}  // namespace

#define NCCL_FUNCTION(name, parameters, ...)                              \
  extern "C" ncclResult_t name parameters {                               \
    static const auto function = nccl().find<decltype(name)>(#name);      \
    return function != nullptr ? function(__VA_ARGS__) : ncclSystemError; \
  }

NCCL_FUNCTION(ncclGetVersion, (int* version), version)
NCCL_FUNCTION(ncclGetUniqueId, (ncclUniqueId * id), id)
NCCL_FUNCTION(ncclCommInitRankConfig, (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config),
              comm, ranks, id, rank, config)
NCCL_FUNCTION(ncclCommSplit, (ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t* config), comm, color,
              key, part, config)
NCCL_FUNCTION(ncclCommFinalize, (ncclComm_t comm), comm)
NCCL_FUNCTION(ncclCommDestroy, (ncclComm_t comm), comm)
NCCL_FUNCTION(ncclCommAbort, (ncclComm_t comm), comm)
NCCL_FUNCTION(ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t* error), comm, error)

NCCL_FUNCTION(ncclAllReduce,
              (const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
               cudaStream_t stream),
              in, out, count, type, op, comm, stream)
NCCL_FUNCTION(ncclAllGather,
              (const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream), in,
              out, count, type, comm, stream)
NCCL_FUNCTION(ncclReduceScatter,
              (const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
               cudaStream_t stream),
              in, out, count, type, op, comm, stream)
NCCL_FUNCTION(ncclBroadcast,
              (const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
               cudaStream_t stream),
              in, out, count, type, root, comm, stream)
NCCL_FUNCTION(ncclSend,
              (const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream),
              data, count, type, peer, comm, stream)
NCCL_FUNCTION(ncclRecv, (void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream),
              data, count, type, peer, comm, stream)
NCCL_FUNCTION(ncclGroupStart, ())
NCCL_FUNCTION(ncclGroupEnd, ())

extern "C" const char* ncclGetErrorString(ncclResult_t result) {
  static const auto function = nccl().find<decltype(ncclGetErrorString)>("ncclGetErrorString");
  return function != nullptr ? function(result) : "NCCL cannot be used";
}

extern "C" const char* ncclGetLastError(ncclComm_t comm) {
  static const auto function = nccl().find<decltype(ncclGetLastError)>("ncclGetLastError");
  const char* problem = nccl().problem();
  return *problem != '\0' ? problem : function(comm);
}
