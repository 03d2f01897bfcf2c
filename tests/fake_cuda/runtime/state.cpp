#include "state.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>

namespace fake {
namespace {

int environment_number(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

std::string where(const Stream* stream) {
  return "device " + std::to_string(stream->device) + ", stream " + std::to_string(stream->id);
}

}  // namespace

State& state() {
  static auto* const state = new State;  // never destroyed: libraries that unload still use it
  return *state;
}

std::recursive_mutex& mutex() {
  static auto* const mutex = new std::recursive_mutex;
  return *mutex;
}

int device_count() {
  static const int count = environment_number("FAKE_CUDA_DEVICES", 1);
  return count;
}

int& current_device() {
  thread_local int device = 0;
  return device;
}

cudaStreamCaptureMode& capture_mode() {
  thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  return mode;
}

Stream* resolve(cudaStream_t stream) {
  if (stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread) return stream;
  auto& legacy = state().legacy;
  for (int device = static_cast<int>(legacy.size()); device < device_count(); ++device) {
    legacy.push_back(new Stream{0, device, true, 0, 0, 0, 0, 0});
  }
  return legacy[current_device()];
}

const Memory* find(const void* address) {
  const auto* const at = static_cast<const char*>(address);
  auto after = state().memory.upper_bound(at);
  if (after == state().memory.begin()) return nullptr;
  --after;
  return at < after->first + after->second.size ? &after->second : nullptr;
}

Capture* capture_of(const Stream* stream) {
  const auto entry = state().captures.find(stream->capture);
  return entry == state().captures.end() ? nullptr : &entry->second;
}

cudaError_t check_capture(const char* call) {
  if (capture_mode() == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  for (auto& [id, capture] : state().captures) {
    const bool by_thread = capture.thread == std::this_thread::get_id();
    const bool global =
        capture.mode == cudaStreamCaptureModeGlobal && capture_mode() == cudaStreamCaptureModeGlobal;
    if (capture.mode == cudaStreamCaptureModeRelaxed || (!by_thread && !global)) continue;
    capture.invalid = true;
    status = cudaErrorStreamCaptureUnsupported;
  }
  return status == cudaSuccess ? status : refuse(status, call, "while a stream is captured");
}

cudaError_t enqueue(const char* call, Stream* stream, std::function<void()> work) {
  if (stream->legacy) {
    for (auto& [id, capture] : state().captures) {
      if (capture.thread != std::this_thread::get_id()) continue;
      capture.invalid = true;
      return refuse(cudaErrorStreamCaptureImplicit, call, "in the legacy stream while another is captured");
    }
  }
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    work();
    return cudaSuccess;
  }
  if (capture->invalid) return refuse(cudaErrorStreamCaptureInvalidated, call, "in " + where(stream));
  capture->graph->nodes.push_back(std::move(work));
  ++stream->work;
  return cudaSuccess;
}

void record(const char* event, const std::string& fields) {
  static const int file = [] {
    const char* const path = std::getenv("FAKE_CUDA_LOG");
    return path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  }();
  if (file < 0) return;
  const std::string line =
      "{\"pid\":" + std::to_string(getpid()) + ",\"event\":" + quoted(event) + "," + fields + "}\n";
  if (write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) abort();
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char each : text) {
    if (each == '"' || each == '\\') result += '\\';
    result += each;
  }
  return result + '"';
}

void record_sync(const char* call, const std::string& why) {
  static const bool traced = std::getenv("FAKE_CUDA_TRACE") != nullptr;
  record("sync", "\"call\":" + quoted(call) + ",\"why\":" + quoted(why));
  if (traced) raise(SIGUSR1);  // Python's faulthandler then prints the stack that waits
}

cudaError_t refuse(cudaError_t status, const char* call, const std::string& why) {
  record("refused", "\"call\":" + quoted(call) + ",\"why\":" + quoted(why) +
                        ",\"error\":" + quoted(cudaGetErrorName(status)));
  return status;
}

}  // namespace fake
