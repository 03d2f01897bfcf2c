// Streams, events and the host's waits, which are recorded. All work is done when it is enqueued.
#include "state.h"

namespace fake {
namespace {

cudaError_t create(cudaStream_t* stream, unsigned flags, int priority) {
  const Lock lock(mutex());
  auto& streams = state().streams;
  const int id = static_cast<int>(streams.size()) + 1;
  *stream = streams.emplace_back(new Stream{id, current_device(), false, priority, flags, 0, 0, 0});
  return cudaSuccess;
}

// Waits for, or queries, a stream or event; `captured`: the stream is in a capture; `counted`: a wait.
cudaError_t wait(const char* call, bool captured, bool counted) {
  cudaError_t status = check_capture(call);
  if (status == cudaSuccess && captured) {
    status = refuse(cudaErrorStreamCaptureUnsupported, call, "of what is captured");
  }
  if (status == cudaSuccess && counted) record_sync(call);
  return result(status);
}

// A stream that waits for an event of a capture joins the capture.
cudaError_t join(Stream* stream, Event* event) {
  if (!state().captures.count(event->capture)) {
    return refuse(cudaErrorCapturedEvent, "cudaStreamWaitEvent", "for an event of a capture that has ended");
  }
  if (stream->capture != event->capture && (stream->capture || stream->legacy)) {
    return refuse(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent", "for an event of another capture");
  }
  if (!stream->capture) {
    stream->capture = event->capture;
    stream->work = stream->joined = 0;
  }
  event->stream->joined = std::max(event->stream->joined, event->work);
  if (stream != event->stream) ++stream->work;
  return cudaSuccess;
}

cudaError_t create_event(cudaEvent_t* event) {
  const Lock lock(mutex());
  *event = new Event{current_device(), false, 0, nullptr, 0};
  return cudaSuccess;
}

}  // namespace
}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create(stream, cudaStreamDefault, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return create(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return create(stream, flags, priority);
}
// A destroyed stream may still be named by an event, so it stays.
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  const Lock lock(mutex());
  *priority = resolve(stream)->priority;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(mutex());
  return wait("cudaStreamSynchronize", resolve(stream)->capture != 0, true);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Lock lock(mutex());
  return wait("cudaStreamQuery", resolve(stream)->capture != 0, false);
}

cudaError_t cudaDeviceSynchronize(void) {
  const Lock lock(mutex());
  return wait("cudaDeviceSynchronize", !state().captures.empty(), true);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  const Lock lock(mutex());
  Stream* const stream = resolve(handle);
  if (!event->recorded || (flags & cudaEventWaitExternal)) return cudaSuccess;
  record("order",
         "\"stream\":" + std::to_string(stream->id) + ",\"after\":" + std::to_string(event->stream->id));
  if (event->capture) return result(join(stream, event));
  if (!stream->capture) return cudaSuccess;
  return result(refuse(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent", "for what is not captured"));
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
  const Lock lock(mutex());
  const auto call = [=] { callback(stream, cudaSuccess, data); };
  return result(enqueue("cudaStreamAddCallback", resolve(stream), call));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const Lock lock(mutex());
  return result(enqueue("cudaLaunchHostFunc", resolve(stream), [=] { function(data); }));
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return create_event(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return create_event(event); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags) {
  const Lock lock(mutex());
  Stream* const stream = resolve(handle);
  if (stream->device != event->device) {
    return result(refuse(cudaErrorInvalidResourceHandle, "cudaEventRecord", "in a stream of another device"));
  }
  event->recorded = true;
  event->capture = flags & cudaEventRecordExternal ? 0 : stream->capture;
  event->stream = stream;
  event->work = stream->work;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(mutex());
  if (event->capture) return result(refuse(cudaErrorCapturedEvent, "cudaEventQuery", "of a captured event"));
  return wait("cudaEventQuery", false, false);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(mutex());
  if (event->capture)
    return result(refuse(cudaErrorCapturedEvent, "cudaEventSynchronize", "of a captured event"));
  return wait("cudaEventSynchronize", false, true);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

}  // extern "C"
