// Kernels: their registration by the host's libraries, their attributes, and the recording of launches.
#include <cxxabi.h>

#include "state.h"

namespace fake {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr long kMostBlocks = (1L << 31) - 1;
constexpr unsigned kMostBlocksAcross = 65535;  // in y and z

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

std::vector<Configuration>& configurations() {
  thread_local std::vector<Configuration> pushed;
  return pushed;
}

std::string triple(dim3 size) {
  return std::to_string(size.x) + "," + std::to_string(size.y) + "," + std::to_string(size.z);
}

std::string demangled(const char* name) {
  int status = 0;
  char* const readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? readable : name;
  std::free(readable);
  return result;
}

Kernel* kernel_of(const void* function) {
  const auto entry = state().kernels.find(function);
  return entry == state().kernels.end() ? nullptr : entry->second;
}

std::string fault_of_sizes(dim3 grid, dim3 block) {
  const auto threads = static_cast<unsigned long>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    return "a block of " + triple(block) + " threads";
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || grid.x > kMostBlocks || grid.y > kMostBlocksAcross || grid.z > kMostBlocksAcross) {
    return "a grid of " + triple(grid) + " blocks";
  }
  return "";
}

}  // namespace

cudaError_t set_dynamic_shared(Kernel* kernel, int bytes, int device) {
  const long most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (bytes < 0 || bytes > most) {
    return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute",
                  kernel->name + ": " + std::to_string(bytes) + " bytes of shared memory");
  }
  kernel->dynamic[device] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const char* call, Kernel* kernel, dim3 grid, dim3 block, size_t shared, Stream* stream) {
  const int device = current_device();
  if (stream->device != device || (kernel->device >= 0 && kernel->device != device)) {
    return refuse(cudaErrorInvalidResourceHandle, call,
                  kernel->name + ": device " + std::to_string(device) +
                      " is current, the stream is of device " + std::to_string(stream->device));
  }
  const std::string fault = fault_of_sizes(grid, block);
  if (!fault.empty()) return refuse(cudaErrorInvalidConfiguration, call, kernel->name + ": " + fault);
  const auto requested = kernel->dynamic.find(device);
  const int most = std::max(kDefaultShared, requested == kernel->dynamic.end() ? 0 : requested->second);
  if (shared > static_cast<size_t>(most)) {
    return refuse(cudaErrorInvalidValue, call,
                  kernel->name + ": " + std::to_string(shared) +
                      " bytes of dynamic shared memory, of which " + std::to_string(most) +
                      " were asked for on device " + std::to_string(device));
  }
  const cudaError_t status = enqueue(call, stream, [] {});
  if (status != cudaSuccess) return status;
  record("launch", "\"name\":" + quoted(kernel->name) + ",\"grid\":[" + triple(grid) + "],\"block\":[" +
                       triple(block) + "],\"shared\":" + std::to_string(shared) +
                       ",\"stream\":" + std::to_string(stream->id) + ",\"device\":" + std::to_string(device) +
                       ",\"captured\":" + (stream->capture ? "true" : "false"));
  return cudaSuccess;
}

}  // namespace fake

using namespace fake;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  const Lock lock(mutex());
  state().kernels[host] = new Kernel{demangled(name), -1, {}};
}

// The host's variable serves as the device's.
void __cudaRegisterVar(void**, char* host, char*, const char*, int, size_t size, int, int) {
  const Lock lock(mutex());
  state().memory[host] = {size, 0, false};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configurations().push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations().empty()) return cudaErrorMissingConfiguration;
  const Configuration last = configurations().back();
  configurations().pop_back();
  *grid = last.grid, *block = last.block, *shared = last.shared;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* function) {
  const Lock lock(mutex());
  *handle = reinterpret_cast<cudaKernel_t>(kernel_of(function));
  return *handle ? cudaSuccess : result(cudaErrorInvalidDeviceFunction);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared,
                               cudaStream_t stream) {
  const Lock lock(mutex());
  return result(
      launch("cudaLaunchKernel", reinterpret_cast<Kernel*>(kernel), grid, block, shared, resolve(stream)));
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                             cudaStream_t stream) {
  const Lock lock(mutex());
  Kernel* const kernel = kernel_of(function);
  if (kernel == nullptr) {
    return result(refuse(cudaErrorInvalidDeviceFunction, "cudaLaunchKernel", "no kernel is registered"));
  }
  return result(launch("cudaLaunchKernel", kernel, grid, block, shared, resolve(stream)));
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                        size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return cudaLaunchKernel(function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                          config->stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Lock lock(mutex());
  Kernel* const kernel = kernel_of(function);
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return result(set_dynamic_shared(kernel, value, current_device()));
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, cudaFuncAttribute attribute, int value,
                                            int device) {
  const Lock lock(mutex());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return result(set_dynamic_shared(reinterpret_cast<Kernel*>(kernel), value, device));
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kMostThreads;
  attributes->maxDynamicSharedSizeBytes = kDefaultShared;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion =
      10 * device_attribute(cudaDevAttrComputeCapabilityMajor);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads,
                                                                   size_t, unsigned) {
  *blocks = 2048 / std::max(threads, 64);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, shared, 0);
}

}  // extern "C"
