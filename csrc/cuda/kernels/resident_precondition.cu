// resident_precondition: V = P_l (D / rms_l) P_r of blocks [m, n] of up to 16 kTiles a side, and norms =
// |V|^2 (kradagrad_ext/backends/base.py), on chip from the reading of D to the writing of V.
//
// One CTA a block, kTiles warps (tile_products.cuh); a CTA finds its group by binary search over the
// groups' first CTAs. Shared memory, in tiles (T = 8: 136 KB): D, then D P_r in the first T^2; P_r, then P_l
// in the second. Traffic: D and both roots once, V and its norm written once.
#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"
#include "tile_products.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void precondition(const ResidentPrecondition& in,
                                             const ResidentProductGroup& group, int64_t block, float* first) {
  constexpr int kThreads = Cta<kTiles>::kThreads;
  float* const second = first + first_place(kTiles) * kTileFloats;
  float* const scratch = second + second_place(kTiles) * kTileFloats;
  const int m = group.m, n = group.n, m_tiles = tiles_of(m), n_tiles = tiles_of(n);
  copy_grid<kThreads>(first, Matrix(in.views, group.direction, block, m, n), m_tiles, n_tiles);
  copy_grid<kThreads>(second, Matrix(in.views, group.right_root, block, n, n), n_tiles, n_tiles);
  float norm = 0;
#pragma unroll 1
  for (int factor = 0; factor < 2; ++factor) {
    finish_copies();
    const bool whole = factor == 1;
    const float *const a = whole ? second : first, *const b = whole ? first : second;
    const Exact exact = whole ? Exact{group.left_root.bf16 != 0, false}
                              : Exact{group.direction.bf16 != 0, group.right_root.bf16 != 0};
    const int depth = whole ? m_tiles : n_tiles;
    FullProduct<kTiles, kPrecision> product;
    product.add(PlainTiles{a, depth}, TransposedTiles{b, n_tiles}, m_tiles, n_tiles, depth, exact);
    if (whole) {
      const Matrix out(in.views, group.out, block, m, n);
      const float rms = group.statistics[block * kColumns + kRms];
      product.for_each_pair(m_tiles, n_tiles, [&](int row, int col, float (&pair)[2]) {
        const float2 v = rms > 0 ? float2{pair[0] / rms, pair[1] / rms} : float2{0, 0};
        norm += v.x * v.x + v.y * v.y;
        out.write_pair(row, col, v);
      });
    } else {
      __syncthreads();
      copy_grid<kThreads>(second, Matrix(in.views, group.left_root, block, m, m), m_tiles, m_tiles);
      product.write(first, m_tiles, n_tiles);
    }
  }
  norm = cta_sum<Cta<kTiles>::kWarps>(norm, scratch);
  if (threadIdx.x == 0) in.norms[group.first_block + block] = norm;
}

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_precondition(const ResidentPrecondition& in) {
  extern __shared__ float4 memory[];
  const int64_t cta = blockIdx.x;
  const ResidentProductGroup& group =
      in.groups[search(in.count, cta, [&](int i) { return in.groups[i].first_cta; })];
  const int64_t block = cta - group.first_cta, index = group.first_block + block;
  if (in.scales[index] == 0 || group.m == 0 || group.n == 0) {
    if (threadIdx.x == 0) in.norms[index] = 0;
    return;
  }
  precondition<kTiles, kPrecision>(in, group, block, reinterpret_cast<float*>(memory));
}

}  // namespace

// One kernel for each side and precision; `ctas` of them are to fit an SM's registers.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)                        \
  extern "C" __global__ void __launch_bounds__(2 * side, ctas)               \
      resident_precondition_##side##_##name(const ResidentPrecondition in) { \
    resident_precondition<side / kTile, Precision::precision>(in);           \
  }

KRADAGRAD_KERNEL(64, 3, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 3, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 3, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(64, 3, fp32, kFp32)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
