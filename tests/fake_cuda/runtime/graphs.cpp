// Captures of streams into graphs, and launches of the graphs, which repeat their copies.
#include "state.h"

namespace fake {
namespace {

cudaError_t unjoined(unsigned long long id, const Stream* origin) {
  for (const Stream* stream : state().streams) {
    if (stream != origin && stream->capture == id && stream->joined < stream->work) {
      return refuse(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture",
                    "stream " + std::to_string(stream->id) + " was not waited for");
    }
  }
  return cudaSuccess;
}

cudaError_t begin(Stream* stream, Graph* graph, cudaStreamCaptureMode mode) {
  if (stream->legacy || stream->capture) {
    return refuse(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture",
                  stream->legacy ? "of the legacy stream" : "of a stream that is captured already");
  }
  stream->capture = ++state().last_capture;
  stream->work = stream->joined = 0;
  state().captures[stream->capture] = {stream, mode, std::this_thread::get_id(), graph, false};
  record("capture", "\"stream\":" + std::to_string(stream->id));
  return cudaSuccess;
}

}  // namespace
}  // namespace fake

using namespace fake;

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode());
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(mutex());
  return result(begin(resolve(stream), new Graph, mode));
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t*,
                                          const cudaGraphEdgeData*, size_t, cudaStreamCaptureMode mode) {
  const Lock lock(mutex());
  return result(begin(resolve(stream), graph, mode));
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const Lock lock(mutex());
  Stream* const stream = resolve(handle);
  const Capture* const current = capture_of(stream);
  *graph = nullptr;
  if (current == nullptr || current->origin != stream) {
    return result(refuse(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture", "no capture began here"));
  }
  const unsigned long long id = stream->capture;
  const Capture capture = *current;
  cudaError_t status = unjoined(id, stream);
  for (Stream* each : state().streams) {
    if (each->capture == id) each->capture = 0;
  }
  state().captures.erase(id);
  if (capture.invalid) {
    status = refuse(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture", "the capture was broken off");
  }
  if (status != cudaSuccess) return result(status);
  *graph = capture.graph;
  record("captured", "\"nodes\":" + std::to_string(capture.graph->nodes.size()));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const Lock lock(mutex());
  const Stream* const stream = resolve(handle);
  const Capture* const capture = capture_of(stream);
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  const Lock lock(mutex());
  const Capture* const capture = capture_of(resolve(stream));
  if (id) *id = resolve(stream)->capture;
  if (graph) *graph = capture ? capture->graph : nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}

// The caller only needs the number of nodes.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes};
  record("instantiate", "\"nodes\":" + std::to_string(graph->nodes.size()));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(mutex());
  const auto run = [executable] {
    for (const auto& node : executable->nodes) node();
  };
  const cudaError_t status = enqueue("cudaGraphLaunch", resolve(stream), run);
  if (status == cudaSuccess) record("graph", "\"nodes\":" + std::to_string(executable->nodes.size()));
  return result(status);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* data, cudaHostFn_t destroy, unsigned count,
                                 unsigned) {
  *object = new CUuserObject_st{data, destroy, count};
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  const Lock lock(mutex());
  object->count -= std::min(object->count, count);
  if (object->count > 0) return cudaSuccess;
  object->destroy(object->data);
  delete object;
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                      unsigned flags) {
  const Lock lock(mutex());
  if (!(flags & cudaGraphUserObjectMove)) object->count += count;
  graph->objects.emplace_back(object, count);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  for (const auto& [object, count] : graph->objects) cudaUserObjectRelease(object, count);
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
