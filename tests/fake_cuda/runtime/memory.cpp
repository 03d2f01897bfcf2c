// Memory of devices and page-locked memory are memory of the host; copies are real.
#include <sys/mman.h>

#include <cstring>

#include "state.h"

namespace fake {
namespace {

cudaError_t allocate(const char* call, void** address, size_t size, int device) {
  const Lock lock(mutex());
  const cudaError_t status = check_capture(call);
  if (status != cudaSuccess) return result(status);
  const size_t whole = std::max<size_t>(size, 1);
  void* const mapping =
      mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return result(cudaErrorMemoryAllocation);
  *address = mapping;
  state().memory[static_cast<const char*>(mapping)] = {whole, device, true};
  record("allocate", "\"call\":" + quoted(call) + ",\"bytes\":" + std::to_string(size) +
                         ",\"device\":" + std::to_string(device));
  return cudaSuccess;
}

cudaError_t release(const char* call, void* address) {
  const Lock lock(mutex());
  if (address == nullptr) return cudaSuccess;
  const cudaError_t status = check_capture(call);
  if (status != cudaSuccess) return result(status);
  const auto entry = state().memory.find(static_cast<const char*>(address));
  if (entry == state().memory.end())
    return result(refuse(cudaErrorInvalidValue, call, "memory not allocated"));
  if (entry->second.mapped) munmap(address, entry->second.size);
  state().memory.erase(entry);
  record("release", "\"call\":" + quoted(call));
  return cudaSuccess;
}

std::string kind_of(const void* address) {
  const Memory* const memory = find(address);
  if (memory == nullptr) return "pageable";
  return memory->device < 0 ? "pinned" : "device " + std::to_string(memory->device);
}

bool on_device(const void* address) {
  const Memory* const memory = find(address);
  return memory != nullptr && memory->device >= 0;
}

// True if `size` bytes from an address on are all in the allocation of the address.
bool fits(const void* address, size_t size) {
  return size == 0 || find(address) == find(static_cast<const char*>(address) + size - 1);
}

// A copy of rows; a plain copy has one row.
struct Copy {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch, width, rows;

  void operator()() const {
    for (size_t row = 0; row < rows; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                   width);
    }
  }
};

cudaError_t check_copy(const char* call, const Copy& copy, cudaMemcpyKind kind) {
  const size_t rows = std::max<size_t>(copy.rows, 1) - 1;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool known = (!to_device || on_device(copy.to)) && (!from_device || on_device(copy.from));
  if (known && fits(copy.to, rows * copy.to_pitch + copy.width) &&
      fits(copy.from, rows * copy.from_pitch + copy.width)) {
    return cudaSuccess;
  }
  return refuse(cudaErrorInvalidValue, call,
                std::to_string(copy.width) + " bytes from " + kind_of(copy.from) + " to " + kind_of(copy.to) +
                    (known ? ": they do not fit" : ": no memory of a device"));
}

void record_copy(const Copy& copy, const Stream* stream) {
  record("copy", "\"from\":" + quoted(kind_of(copy.from)) + ",\"to\":" + quoted(kind_of(copy.to)) +
                     ",\"bytes\":" + std::to_string(copy.width * copy.rows) + ",\"stream\":" +
                     std::to_string(stream->id) + ",\"captured\":" + (stream->capture ? "true" : "false"));
}

cudaError_t copy_now(const char* call, const Copy& copy, cudaMemcpyKind kind) {
  const Lock lock(mutex());
  cudaError_t status = check_capture(call);
  if (status == cudaSuccess) status = check_copy(call, copy, kind);
  if (status != cudaSuccess) return result(status);
  copy();
  record_copy(copy, resolve(nullptr));
  record_sync(call);
  return cudaSuccess;
}

cudaError_t copy_later(const char* call, const Copy& copy, cudaMemcpyKind kind, Stream* stream) {
  const Lock lock(mutex());
  cudaError_t status = check_copy(call, copy, kind);
  if (status != cudaSuccess) return result(status);
  const bool pageable = find(copy.to) == nullptr || find(copy.from) == nullptr;
  if (pageable && capture_of(stream)) {
    capture_of(stream)->invalid = true;
    return result(refuse(cudaErrorStreamCaptureUnsupported, call, "of pageable memory in a capture"));
  }
  status = enqueue(call, stream, copy);
  if (status != cudaSuccess) return result(status);
  record_copy(copy, stream);
  if (find(copy.to) == nullptr && on_device(copy.from)) record_sync(call, "to pageable memory");
  return cudaSuccess;
}

}  // namespace
}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaMalloc(void** address, size_t size) {
  return allocate("cudaMalloc", address, size, current_device());
}
cudaError_t cudaHostAlloc(void** address, size_t size, unsigned) {
  return allocate("cudaHostAlloc", address, size, -1);
}
cudaError_t cudaFree(void* address) { return release("cudaFree", address); }
cudaError_t cudaFreeHost(void* address) { return release("cudaFreeHost", address); }

cudaError_t cudaHostRegister(void* address, size_t size, unsigned) {
  const Lock lock(mutex());
  state().memory[static_cast<const char*>(address)] = {size, -1, false};
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* address) { return release("cudaHostUnregister", address); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{80} << 30;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const Lock lock(mutex());
  const Memory* const memory = find(address);
  *attributes = {};
  attributes->device = memory && memory->device >= 0 ? memory->device : current_device();
  attributes->type = memory == nullptr     ? cudaMemoryTypeUnregistered
                     : memory->device >= 0 ? cudaMemoryTypeDevice
                                           : cudaMemoryTypeHost;
  if (memory) attributes->devicePointer = const_cast<void*>(address);
  if (memory == nullptr || memory->device < 0) attributes->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  return copy_now("cudaMemcpy", {to, size, from, size, size, 1}, kind);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy_later("cudaMemcpyAsync", {to, size, from, size, size, 1}, kind, resolve(stream));
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  return copy_later("cudaMemcpyPeerAsync", {to, size, from, size, size, 1}, cudaMemcpyDeviceToDevice,
                    resolve(stream));
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_later("cudaMemcpy2DAsync", {to, to_pitch, from, from_pitch, width, height}, kind,
                    resolve(stream));
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t size, size_t offset,
                               cudaMemcpyKind) {
  char* const to = static_cast<char*>(const_cast<void*>(symbol)) + offset;
  return copy_now("cudaMemcpyToSymbol", {to, size, from, size, size, 1}, cudaMemcpyDefault);
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  *address = const_cast<void*>(symbol);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t stream) {
  const Lock lock(mutex());
  if (!on_device(address) || !fits(address, size)) {
    return result(refuse(cudaErrorInvalidValue, "cudaMemsetAsync", "not in the memory of a device"));
  }
  const auto set = [=] { std::memset(address, value, size); };
  const cudaError_t status = enqueue("cudaMemsetAsync", resolve(stream), set);
  if (status == cudaSuccess) record("set", "\"bytes\":" + std::to_string(size));
  return result(status);
}

cudaError_t cudaMemset(void* address, int value, size_t size) {
  return cudaMemsetAsync(address, value, size, nullptr);
}

}  // extern "C"
