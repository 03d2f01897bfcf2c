// The devices: as many H100 as the environment sets, their properties, errors, and unsupported functions.
#include <dlfcn.h>

#include <cstring>
#include <utility>

#include "state.h"

namespace fake {
namespace {

cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

const std::map<cudaError_t, std::pair<const char*, const char*>>& errors() {
#define ERROR(name, text)                        \
  {                                              \
    cudaError##name, { "cudaError" #name, text } \
  }
  static const std::map<cudaError_t, std::pair<const char*, const char*>> texts = {
      {cudaSuccess, {"cudaSuccess", "no error"}},
      ERROR(InvalidValue, "invalid argument"),
      ERROR(MemoryAllocation, "out of memory"),
      ERROR(InvalidDevice, "invalid device ordinal"),
      ERROR(InvalidConfiguration, "invalid configuration argument"),
      ERROR(InvalidDeviceFunction, "invalid device function"),
      ERROR(InvalidResourceHandle, "invalid resource handle"),
      ERROR(NotSupported, "operation not supported by the fake runtime"),
      ERROR(StreamCaptureUnsupported, "operation not permitted when stream is capturing"),
      ERROR(StreamCaptureInvalidated, "operation failed due to a previous error during capture"),
      ERROR(StreamCaptureUnmatched, "capture was not initiated in this stream"),
      ERROR(StreamCaptureUnjoined, "capture contains streams that were not joined to the capture"),
      ERROR(StreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
      ERROR(StreamCaptureImplicit,
            "operation would make the legacy stream depend on a capturing blocking stream"),
      ERROR(CapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
  };
#undef ERROR
  return texts;
}

cudaError_t unsupported(const char* call) {
  return result(refuse(cudaErrorNotSupported, call, "the fake runtime does not have it"));
}

// Stands for functions of the driver that torch looks up but does not call in a step.
int driver_function() {
  return refuse(cudaErrorNotSupported, "a function of the driver", "the fake runtime does not have it");
}

}  // namespace

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last_error() = status;
  return status;
}

long device_attribute(int attribute) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    case cudaDevAttrMultiProcessorCount:
      return 132;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return 32;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kDefaultShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 227 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 228 << 10;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1 << 10;
    case cudaDevAttrMaxRegistersPerBlock:
      return 65536;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrL2CacheSize:
      return 50 << 20;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 5120;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCooperativeLaunch:
      return 1;
    default:
      return 0;
  }
}

}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  const auto get = [](cudaDeviceAttr attribute) { return static_cast<int>(device_attribute(attribute)); };
  *properties = {};
  std::strcpy(properties->name, "Fake H100");
  properties->uuid.bytes[0] = static_cast<char>(device);
  properties->totalGlobalMem = size_t{80} << 30;
  properties->major = get(cudaDevAttrComputeCapabilityMajor);
  properties->minor = get(cudaDevAttrComputeCapabilityMinor);
  properties->multiProcessorCount = get(cudaDevAttrMultiProcessorCount);
  properties->warpSize = get(cudaDevAttrWarpSize);
  properties->maxThreadsPerBlock = get(cudaDevAttrMaxThreadsPerBlock);
  properties->maxThreadsPerMultiProcessor = get(cudaDevAttrMaxThreadsPerMultiProcessor);
  properties->maxBlocksPerMultiProcessor = get(cudaDevAttrMaxBlocksPerMultiprocessor);
  properties->sharedMemPerBlock = get(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->regsPerBlock = get(cudaDevAttrMaxRegistersPerBlock);
  properties->regsPerMultiprocessor = get(cudaDevAttrMaxRegistersPerMultiprocessor);
  properties->l2CacheSize = get(cudaDevAttrL2CacheSize);
  properties->memoryBusWidth = get(cudaDevAttrGlobalMemoryBusWidth);
  properties->maxGridSize[0] = get(cudaDevAttrMaxGridDimX);
  properties->maxGridSize[1] = properties->maxGridSize[2] = get(cudaDevAttrMaxGridDimY);
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = get(cudaDevAttrMaxBlockDimX);
  properties->maxThreadsDim[2] = get(cudaDevAttrMaxBlockDimZ);
  properties->unifiedAddressing = properties->concurrentKernels = properties->cooperativeLaunch = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = static_cast<int>(device_attribute(attribute));
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
  std::snprintf(id, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

cudaError_t cudaGetLastError(void) { return std::exchange(last_error(), cudaSuccess); }
cudaError_t cudaPeekAtLastError(void) { return last_error(); }

const char* cudaGetErrorName(cudaError_t error) {
  const auto entry = errors().find(error);
  return entry == errors().end() ? "cudaErrorUnknown" : entry->second.first;
}

const char* cudaGetErrorString(cudaError_t error) {
  const auto entry = errors().find(error);
  return entry == errors().end() ? "an error of the fake runtime" : entry->second.second;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult* status) {
  static void* const self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  void* const address = self ? dlsym(self, symbol) : nullptr;
  if (address == nullptr) record("missing", "\"symbol\":" + quoted(symbol));
  *function = address ? address : reinterpret_cast<void*>(&driver_function);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Functions that torch links to and no step calls.
#define UNSUPPORTED(name, ...) \
  cudaError_t name(__VA_ARGS__) { return unsupported(#name); }

UNSUPPORTED(cudaDeviceGetDefaultMemPool, cudaMemPool_t*, int)
UNSUPPORTED(cudaDeviceGetGraphMemAttribute, int, cudaGraphMemAttributeType, void*)
UNSUPPORTED(cudaDeviceSetGraphMemAttribute, int, cudaGraphMemAttributeType, void*)
UNSUPPORTED(cudaFreeAsync, void*, cudaStream_t)
UNSUPPORTED(cudaMallocAsync, void**, size_t, cudaStream_t)
UNSUPPORTED(cudaGraphNodeGetDependencies, cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t*)
UNSUPPORTED(cudaIpcCloseMemHandle, void*)
UNSUPPORTED(cudaIpcGetMemHandle, cudaIpcMemHandle_t*, void*)
UNSUPPORTED(cudaIpcOpenMemHandle, void**, cudaIpcMemHandle_t, unsigned)
UNSUPPORTED(cudaIpcGetEventHandle, cudaIpcEventHandle_t*, cudaEvent_t)
UNSUPPORTED(cudaIpcOpenEventHandle, cudaEvent_t*, cudaIpcEventHandle_t)
UNSUPPORTED(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*)
UNSUPPORTED(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc*, size_t)
UNSUPPORTED(cudaMemPoolTrimTo, cudaMemPool_t, size_t)
UNSUPPORTED(cudaGraphAddNode, cudaGraphNode_t*, cudaGraph_t, const cudaGraphNode_t*, const cudaGraphEdgeData*,
            size_t, cudaGraphNodeParams*)
UNSUPPORTED(cudaGraphConditionalHandleCreate, cudaGraphConditionalHandle*, cudaGraph_t, unsigned, unsigned)
UNSUPPORTED(cudaStreamUpdateCaptureDependencies, cudaStream_t, cudaGraphNode_t*, const cudaGraphEdgeData*,
            size_t, unsigned)
UNSUPPORTED(cudaLibraryGetKernel, cudaKernel_t*, cudaLibrary_t, const char*)
UNSUPPORTED(cudaLibraryLoadData, cudaLibrary_t*, const void*, cudaJitOption*, void**, unsigned,
            cudaLibraryOption*, void**, unsigned)
UNSUPPORTED(cudaLibraryUnload, cudaLibrary_t)

}  // extern "C"
