// square_root_product: see square_root_product.cuh. Tiles of 128, except 64 for tf32x3, whose fragments do
// not fit the registers beside a larger tile. `ctas` CTAs must fit the registers of an SM.
#include "square_root_product.cuh"

namespace kradagrad::cuda {

#define KRADAGRAD_KERNEL(side, ctas, name, precision)                    \
  extern "C" __global__ void __launch_bounds__(2 * side, ctas)           \
      square_root_product_##side##_##name(const SquareRootProducts in) { \
    square_root_product<side / kTile, Precision::precision>(in);         \
  }

KRADAGRAD_KERNEL(64, 2, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
