#include "run.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <list>
#include <mutex>

#include "kernels.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kDefaultShared = 48 << 10;  // shared memory that needs no attribute
constexpr size_t kTables = 64;                // number of tables kept on the devices

void check(const char* op, const std::string& what, cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " + what + ": " + cudaGetErrorString(status));
}

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// Finds torch's function in the library that a CUDA build of torch loads before any tensor is on a GPU. If
// this extension were linked to that library, it would not load with a torch without CUDA.
CurrentStream find_current_stream() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  if (symbol == nullptr) throw std::runtime_error("kradagrad_ext: this torch has no libtorch_cuda.so");
  return reinterpret_cast<CurrentStream>(symbol);
}

cudaStream_t current_stream(int32_t device) {
  static const CurrentStream get = find_current_stream();
  void* stream = nullptr;
  if (get(device, &stream) != 0) throw std::runtime_error("kradagrad_ext: torch gave no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

bool is_capturing(const char* op, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(op, "cudaStreamIsCapturing", cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

Tensor bytes_on(const Tensor& like, int64_t size) {
  const int64_t sizes[] = {std::max<int64_t>(size, 1)};
  return torch::stable::new_empty(like, {sizes, 1}, ScalarType::Byte);
}

// A table on a device, and the pinned memory of its upload, which a captured graph repeats on every replay.
struct Table {
  std::vector<char> bytes;
  int32_t device;
  cudaStream_t stream;
  Tensor on_device, pinned;

  bool holds(const std::vector<char>& other, int32_t other_device, cudaStream_t other_stream) const {
    return device == other_device && stream == other_stream && bytes == other;
  }
};

// Tables by content, the last used first. A table that a captured graph uses is never freed. One whose upload
// was captured serves no other call, since its contents exist only after the graph has run.
class Tables {
 public:
  // Returns a table of these bytes. The caller keeps it until its launches are in the stream, because another
  // thread may remove it from the list before. After that, torch's allocator reuses its memory only for later
  // work in the stream in which it was allocated, which is the same stream.
  Tensor upload(const char* op, const Tensor& like, cudaStream_t stream, const std::vector<char>& bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool capturing = is_capturing(op, stream);
    auto table = tables_.begin();
    while (table != tables_.end() && !table->holds(bytes, like.get_device(), stream)) ++table;
    auto& list = capturing ? captured_ : tables_;
    if (table == tables_.end()) {
      list.push_front(make(like, stream, bytes));
    } else {
      list.splice(list.begin(), tables_, table);
    }
    const Tensor on_device = list.front().on_device;
    if (tables_.size() > kTables) tables_.pop_back();
    return on_device;
  }

 private:
  static Table make(const Tensor& like, cudaStream_t stream, const std::vector<char>& bytes) {
    const auto size = static_cast<int64_t>(bytes.size());
    Tensor on_device = bytes_on(like, size);
    const int64_t sizes[] = {std::max<int64_t>(size, 1)};
    Tensor pinned = torch::stable::empty({sizes, 1}, ScalarType::Byte, std::nullopt,
                                         torch::stable::Device(torch::headeronly::DeviceType::CPU), true);
    std::memcpy(pinned.data_ptr(), bytes.data(), bytes.size());
    torch::stable::copy_(on_device, pinned, true);
    return {bytes, like.get_device(), stream, on_device, pinned};
  }

  std::mutex mutex_;
  std::list<Table> tables_, captured_;
};

Tables& tables() {
  static auto* const tables = new Tables;  // outlives the CUDA context, so it is never destroyed
  return *tables;
}

void launch(const char* op, const Launch& launch, cudaStream_t stream) {
  const void* const kernel = kernel_named(launch.kernel);
  if (launch.grid > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(std::string(op) + ": " + launch.kernel +
                             " would need more than 2^31 - 1 blocks of threads");
  }
  if (launch.shared > kDefaultShared) {
    check(op, launch.kernel + " needs " + std::to_string(launch.shared) + " bytes of shared memory",
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared));
  }
  void* parameters[] = {const_cast<char*>(launch.parameters.data())};
  check(op, launch.kernel,
        cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(launch.grid)), dim3(launch.block), parameters,
                         launch.shared, stream));
}

}  // namespace

TensorInfo info(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  return {tensor.data_ptr(),
          tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Short,
          {sizes.begin(), sizes.end()},
          {strides.begin(), strides.end()}};
}

TensorInfos infos(const Tensors& tensors) {
  TensorInfos result;
  for (const Tensor& tensor : tensors) result.push_back(info(tensor));
  return result;
}

void run(const char* op, const Tensor& like, Plan plan) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device());
  const cudaStream_t stream = current_stream(like.get_device());
  const Tensor scratch = bytes_on(like, plan.scratch);
  plan.bind_scratch(scratch.data_ptr());
  const Tensor table = tables().upload(op, like, stream, plan.table);
  plan.bind_table(table.data_ptr());
  for (const Launch& each : plan.launches) launch(op, each, stream);
}

Gpu gpu_of(const Tensor& like) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check("kradagrad_ext", "cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, name, like.get_device()));
    return value;
  };
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMultiProcessorCount)};
}

}  // namespace kradagrad::cuda
