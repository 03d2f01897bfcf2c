#include "kernels.h"

#include <stdexcept>
#include <unordered_map>

#include "kernels/elementwise.h"
#include "kernels/polar_roots.h"
#include "kernels/scalars.h"
#include "kernels/square_root.h"
#include "kernels/square_root_resident.h"
#include "kernels/wide.h"

// The host functions that nvcc makes of `extern "C" __global__`; their addresses identify the kernels.
#define FOR_EVERY_KERNEL(KERNEL)                                 \
  KERNEL(square_root_product_64_tf32x3, SquareRootProducts)      \
  KERNEL(square_root_product_128_bf16x3, SquareRootProducts)     \
  KERNEL(square_root_product_128_fp32, SquareRootProducts)       \
  KERNEL(gradient_norms, SquareRootGroups)                       \
  KERNEL(start_sides, SquareRootGroups)                          \
  KERNEL(finish_sides, SquareRootGroups)                         \
  KERNEL(finish_norms, NormSums)                                 \
  KERNEL(resident_update_64_bf16x3, ResidentUpdate)              \
  KERNEL(resident_update_64_tf32x3, ResidentUpdate)              \
  KERNEL(resident_update_64_fp32, ResidentUpdate)                \
  KERNEL(resident_update_96_bf16x3, ResidentUpdate)              \
  KERNEL(resident_update_128_bf16x3, ResidentUpdate)             \
  KERNEL(resident_update_128_tf32x3, ResidentUpdate)             \
  KERNEL(resident_update_128_fp32, ResidentUpdate)               \
  KERNEL(resident_precondition_64_bf16x3, ResidentPrecondition)  \
  KERNEL(resident_precondition_64_tf32x3, ResidentPrecondition)  \
  KERNEL(resident_precondition_64_fp32, ResidentPrecondition)    \
  KERNEL(resident_precondition_96_bf16x3, ResidentPrecondition)  \
  KERNEL(resident_precondition_128_bf16x3, ResidentPrecondition) \
  KERNEL(resident_precondition_128_tf32x3, ResidentPrecondition) \
  KERNEL(resident_precondition_128_fp32, ResidentPrecondition)   \
  KERNEL(resident_root_64_bf16x3, ResidentRoots)                 \
  KERNEL(resident_root_64_tf32x3, ResidentRoots)                 \
  KERNEL(resident_root_64_fp32, ResidentRoots)                   \
  KERNEL(resident_root_96_bf16x3, ResidentRoots)                 \
  KERNEL(resident_root_128_bf16x3, ResidentRoots)                \
  KERNEL(resident_root_128_tf32x3, ResidentRoots)                \
  KERNEL(resident_root_128_fp32, ResidentRoots)                  \
  KERNEL(wide_update, WideUpdate)                                \
  KERNEL(wide_precondition, WidePrecondition)                    \
  KERNEL(wide_root, WideRoots)                                   \
  KERNEL(guard_gradients, GuardGradients)                        \
  KERNEL(scale_updates, ScaleUpdates)                            \
  FOR_EVERY_ELEMENTWISE_KERNEL(KERNEL)

namespace kradagrad::cuda {

#define DECLARE(name, parameters) extern "C" void name(parameters);
FOR_EVERY_KERNEL(DECLARE)
#undef DECLARE

const void* kernel_named(const std::string& name) {
#define ENTRY(name, parameters) {#name, reinterpret_cast<const void*>(&name)},
  static const std::unordered_map<std::string, const void*> kernels = {FOR_EVERY_KERNEL(ENTRY)};
#undef ENTRY
  const auto kernel = kernels.find(name);
  if (kernel == kernels.end()) throw std::logic_error("kradagrad_ext: no kernel is named " + name);
  return kernel->second;
}

}  // namespace kradagrad::cuda
