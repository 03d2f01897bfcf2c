// cuBLAS and cuSOLVER: handles know their stream, and each computation is one recorded call in it. The
// headers are not part of the toolkit, so the functions are declared with only the arguments that are used.
#include "state.h"

namespace fake {
namespace {

struct Handle {
  cudaStream_t stream = nullptr;
  int math_mode = 0, pointer_mode = 0;
};

// In cuBLAS and cuSOLVER, 0 is success, too; "execution failed" is 13 and 6.
constexpr int kFailed = 6;

int compute(const char* call, const void* handle) {
  const Lock lock(mutex());
  Stream* const stream = resolve(static_cast<const Handle*>(handle)->stream);
  if (stream->device != current_device()) {
    refuse(cudaErrorInvalidResourceHandle, call, "in a stream of another device");
    return kFailed;
  }
  if (enqueue(call, stream, [] {}) != cudaSuccess) return kFailed;
  record("library", "\"name\":" + quoted(call) + ",\"stream\":" + std::to_string(stream->id) +
                        ",\"device\":" + std::to_string(stream->device) +
                        ",\"captured\":" + (stream->capture ? "true" : "false"));
  return 0;
}

int create(void** handle) {
  *handle = new Handle;
  return 0;
}

int destroy(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}

int set_stream(void* handle, cudaStream_t stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return 0;
}

}  // namespace
}  // namespace fake

using namespace fake;

#define COMPUTE(name) \
  int name(void* handle) { return compute(#name, handle); }
#define FOUR_TYPES(library, name) \
  COMPUTE(library##S##name) COMPUTE(library##D##name) COMPUTE(library##C##name) COMPUTE(library##Z##name)
#define TWO_TYPES(library, name) COMPUTE(library##S##name) COMPUTE(library##D##name)
#define NOTHING(name) \
  int name() { return 0; }
// The content of descriptors is never read.
#define DESCRIPTOR(name)   \
  int name(void** made) {  \
    static int descriptor; \
    *made = &descriptor;   \
    return 0;              \
  }

extern "C" {

int cublasCreate_v2(void** handle) { return create(handle); }
int cublasDestroy_v2(void* handle) { return destroy(handle); }
int cublasSetStream_v2(void* handle, cudaStream_t stream) { return set_stream(handle, stream); }
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetSmCountTarget)
int cublasSetMathMode(Handle* handle, int mode) {
  handle->math_mode = mode;
  return 0;
}
int cublasGetMathMode(const Handle* handle, int* mode) {
  *mode = handle->math_mode;
  return 0;
}
int cublasSetPointerMode_v2(Handle* handle, int mode) {
  handle->pointer_mode = mode;
  return 0;
}
int cublasGetPointerMode_v2(const Handle* handle, int* mode) {
  *mode = handle->pointer_mode;
  return 0;
}

FOUR_TYPES(cublas, gemm_v2)
FOUR_TYPES(cublas, gemmStridedBatched)
FOUR_TYPES(cublas, gemmBatched)
FOUR_TYPES(cublas, gemv_v2)
FOUR_TYPES(cublas, trsm_v2)
FOUR_TYPES(cublas, trsmBatched)
TWO_TYPES(cublas, dot_v2)
COMPUTE(cublasGemmEx)
COMPUTE(cublasSgemmEx)
COMPUTE(cublasGemmStridedBatchedEx)
COMPUTE(cublasDotEx)

// The handle of cublasLt is that of cuBLAS; the stream is the last argument.
int cublasLtMatmul(const void*, const void*, const void*, const void*, const void*, const void*, const void*,
                   const void*, const void*, const void*, void*, const void*, const void*, void*, size_t,
                   cudaStream_t stream) {
  const Handle handle{stream};
  return compute("cublasLtMatmul", &handle);
}
DESCRIPTOR(cublasLtMatmulDescCreate)
DESCRIPTOR(cublasLtMatmulPreferenceCreate)
DESCRIPTOR(cublasLtMatrixLayoutCreate)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
int cublasLtMatmulAlgoGetHeuristic(const void*, const void*, const void*, const void*, const void*,
                                   const void*, const void*, int, void*, int* count) {
  *count = 1;
  return 0;
}

int cusolverDnCreate(void** handle) { return create(handle); }
int cusolverDnDestroy(void* handle) { return destroy(handle); }
int cusolverDnSetStream(void* handle, cudaStream_t stream) { return set_stream(handle, stream); }
DESCRIPTOR(cusolverDnCreateParams)
NOTHING(cusolverDnDestroyParams)

#define POTRF_SIZE(name)                                         \
  int name(const void*, int, int, const void*, int, int* size) { \
    *size = 1024;                                                \
    return 0;                                                    \
  }
POTRF_SIZE(cusolverDnSpotrf_bufferSize)
POTRF_SIZE(cusolverDnDpotrf_bufferSize)
TWO_TYPES(cusolverDn, potrf)
TWO_TYPES(cusolverDn, potrfBatched)
TWO_TYPES(cusolverDn, potrs)

#define SYEVD_SIZE(name)                                                           \
  int name(const void*, int, int, int, const void*, int, const void*, int* size) { \
    *size = 1024;                                                                  \
    return 0;                                                                      \
  }
SYEVD_SIZE(cusolverDnSsyevd_bufferSize)
SYEVD_SIZE(cusolverDnDsyevd_bufferSize)
SYEVD_SIZE(cusolverDnSsyevjBatched_bufferSize)
SYEVD_SIZE(cusolverDnDsyevjBatched_bufferSize)
TWO_TYPES(cusolverDn, syevd)
TWO_TYPES(cusolverDn, syevjBatched)
DESCRIPTOR(cusolverDnCreateSyevjInfo)
NOTHING(cusolverDnDestroySyevjInfo)

#define SYEV_SIZE(name)                                                                                   \
  int name(const void*, const void*, int, int, int64_t, int, const void*, int64_t, int, const void*, int, \
           size_t* device, size_t* host) {                                                                \
    *device = *host = 4096;                                                                               \
    return 0;                                                                                             \
  }
SYEV_SIZE(cusolverDnXsyevd_bufferSize)
SYEV_SIZE(cusolverDnXsyevBatched_bufferSize)
COMPUTE(cusolverDnXsyevd)
COMPUTE(cusolverDnXsyevBatched)
COMPUTE(cusolverDnXpotrf)
int cusolverDnXpotrf_bufferSize(const void*, const void*, int, int64_t, int, const void*, int64_t, int,
                                size_t* device, size_t* host) {
  *device = *host = 4096;
  return 0;
}

}  // extern "C"
