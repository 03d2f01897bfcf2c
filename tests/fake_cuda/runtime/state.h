// State of the fake CUDA runtime: devices, memory, streams, events, captures and kernels.
//
// One lock guards all state; every entry point of the runtime takes it first. CUDA's opaque handles are
// pointers to the structs here.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

struct CUstream_st {
  int id;
  int device;
  bool legacy;
  int priority;
  unsigned flags;
  unsigned long long capture;  // id of the capture that the stream is in, 0 for none
  long work, joined;           // in that capture: nodes in the stream, and those waited for
};

struct CUevent_st {
  int device;
  bool recorded;
  unsigned long long capture;  // id of the capture that the event was recorded in, 0 for none
  CUstream_st* stream;
  long work;
};

struct CUuserObject_st {
  void* data;
  cudaHostFn_t destroy;
  unsigned count;
};

struct CUgraph_st {
  std::vector<std::function<void()>> nodes;
  std::vector<std::pair<CUuserObject_st*, unsigned>> objects;
};

struct CUgraphExec_st {
  std::vector<std::function<void()>> nodes;
};

// A kernel: of the runtime, on every device, or of a driver's module, on one device.
struct CUfunc_st {
  std::string name;
  int device;                  // -1 for every device
  std::map<int, int> dynamic;  // most dynamic shared memory that was requested, by device
};

namespace fake {

using Stream = CUstream_st;
using Event = CUevent_st;
using Graph = CUgraph_st;
using Kernel = CUfunc_st;

constexpr int kDefaultShared = 48 << 10;

struct Capture {
  Stream* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  Graph* graph;
  bool invalid;
};

struct Memory {
  size_t size;
  int device;   // -1 for page-locked memory of the host
  bool mapped;  // allocated here, not registered by the caller
};

struct State {
  std::map<const char*, Memory> memory;
  std::map<unsigned long long, Capture> captures;
  std::map<const void*, Kernel*> kernels;  // by the address of the host's function
  std::vector<Stream*> legacy;             // the legacy stream of every device
  std::vector<Stream*> streams;
  unsigned long long last_capture = 0;
};

State& state();
std::recursive_mutex& mutex();
using Lock = std::lock_guard<std::recursive_mutex>;

int device_count();
int& current_device();
long device_attribute(int attribute);

// CUDA's null, legacy and per-thread handles are the current device's legacy stream.
Stream* resolve(cudaStream_t stream);
// Returns the allocation of an address; null for pageable memory of the host.
const Memory* find(const void* address);

// Returns cudaSuccess if a thread may make a call that could block, allocate or touch the legacy stream, else
// the error. A refusal makes the captures that it conflicts with invalid, as on a device.
cudaError_t check_capture(const char* call);
Capture* capture_of(const Stream* stream);
cudaStreamCaptureMode& capture_mode();

// Puts work in a stream: into the graph if the stream is captured, else does the work at once.
cudaError_t enqueue(const char* call, Stream* stream, std::function<void()> work);
// Refuses or records a launch.
cudaError_t launch(const char* call, Kernel* kernel, dim3 grid, dim3 block, size_t shared, Stream* stream);
cudaError_t set_dynamic_shared(Kernel* kernel, int bytes, int device);

// Writes a line of the log. `fields` is the inside of a JSON object.
void record(const char* event, const std::string& fields);
std::string quoted(const std::string& text);
// Write a line for a wait of the host, and for a refused call; `refuse` returns the status.
void record_sync(const char* call, const std::string& why = "");
cudaError_t refuse(cudaError_t status, const char* call, const std::string& why);
// Remembers a failure for cudaGetLastError.
cudaError_t result(cudaError_t status);

}  // namespace fake
