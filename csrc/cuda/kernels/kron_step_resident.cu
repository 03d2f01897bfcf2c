// kron_step_resident: the whole step of blocks [m, n] of up to 16 kTiles a side, in one launch.
//
//   if update:        left and right factors from G (resident_factor.cuh)
//   if precondition:  P = left_root D right_root;   norms = |P|_F^2
//
// One CTA a block, kTiles warps; a CTA finds its group by binary search over the groups' first blocks. Shared
// memory: 2 T^2 + T tiles (T = 8: 136 KB). Traffic: G twice (the second read finds it in the L2), D once, the
// lower halves of both factors and roots once, factors and P written once.
#include "kron_step_resident.h"
#include "resident_factor.cuh"

namespace kradagrad::cuda {
namespace {

// |G|_F^2 of a block whose tiles are in shared memory.
template <int kTiles>
__device__ __forceinline__ float energy_of(const float* tiles, int count, float* scratch) {
  float sum = 0;
  for (int i = threadIdx.x; i < count * kTileFloats; i += Cta<kTiles>::kThreads) {
    sum += tiles[i] * tiles[i];
  }
  return cta_sum<Cta<kTiles>::kWarps>(sum, scratch);
}

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void update_factors(const KronStepResident& in, const KronGroup& group,
                                               int64_t block, SharedTiles<kTiles> shared) {
  const int m = group.m, n = group.n;
  const Matrix grad(in.views, group.grad, block, m, n);
  copy_grid<Cta<kTiles>::kThreads>(shared.second, grad, tiles_of(m), tiles_of(n));
  finish_copies();
  const float energy = energy_of<kTiles>(shared.second, tiles_of(m) * tiles_of(n), shared.scratch);
  bool loaded = true;
  if (group.left_statistics) {
    FactorUpdate<kTiles, kPrecision, false>(shared, in.rule, grad)
        .run(Matrix(in.views, group.left, block, m, m), group.left_statistics + 2 * block, energy, loaded);
  }
  if (group.right_statistics) {
    FactorUpdate<kTiles, kPrecision, true>(shared, in.rule, grad)
        .run(Matrix(in.views, group.right, block, n, n), group.right_statistics + 2 * block, energy, loaded);
  }
}

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void precondition(const KronStepResident& in, const KronGroup& group,
                                             int64_t block, SharedTiles<kTiles> shared) {
  constexpr int kThreads = Cta<kTiles>::kThreads;
  const int m = group.m, n = group.n, m_tiles = tiles_of(m), n_tiles = tiles_of(n);
  const Matrix direction(in.views, group.direction, block, m, n);
  const Matrix left(in.views, group.left_root, block, m, m), right(in.views, group.right_root, block, n, n);
  __syncthreads();
  copy_lower<kThreads>(shared.first, left, m_tiles);
  copy_grid<kThreads>(shared.second, direction, m_tiles, n_tiles);
  finish_copies();
  FullProduct<kTiles, kPrecision> half;
  half.add(SymmetricTiles{shared.first}, TransposedTiles{shared.second, n_tiles}, m_tiles, n_tiles, m_tiles,
           {left.bf16, direction.bf16});
  __syncthreads();
  copy_lower<kThreads>(shared.second, right, n_tiles);
  half.write(shared.first, m_tiles, n_tiles);
  finish_copies();
  FullProduct<kTiles, kPrecision> product;
  product.add(PlainTiles{shared.first, n_tiles}, SymmetricTiles{shared.second}, m_tiles, n_tiles, n_tiles,
              {false, right.bf16});
  const Matrix out(in.views, group.out, block, m, n);
  float norm = 0;
  product.for_each_pair(m_tiles, n_tiles, [&](int row, int col, float (&pair)[2]) {
    norm += pair[0] * pair[0] + pair[1] * pair[1];
    out.write_pair(row, col, {pair[0], pair[1]});
  });
  norm = cta_sum<Cta<kTiles>::kWarps>(norm, shared.scratch);
  if (threadIdx.x == 0) in.norms[group.first_block + block] = norm;
}

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void kron_step(const KronStepResident& in) {
  extern __shared__ float4 memory[];
  const SharedTiles<kTiles> shared(reinterpret_cast<float*>(memory));
  const int64_t cta = blockIdx.x;
  const KronGroup& group =
      in.groups[search(in.group_count, cta, [&](int i) { return in.groups[i].first_cta; })];
  const int64_t block = cta - group.first_cta, index = group.first_block + block;
  if (!in.active[index] || group.m == 0 || group.n == 0) {
    if (in.precondition && threadIdx.x == 0) in.norms[index] = 0;
    return;
  }
  if (in.update) update_factors<kTiles, kPrecision>(in, group, block, shared);
  if (in.precondition) precondition<kTiles, kPrecision>(in, group, block, shared);
}

}  // namespace

// One kernel for each side and precision; `ctas` of them are to fit an SM's registers.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)                 \
  extern "C" __global__ void __launch_bounds__(2 * side, ctas)        \
      kron_step_resident_##side##_##name(const KronStepResident in) { \
    kron_step<side / kTile, Precision::precision>(in);                \
  }

KRADAGRAD_KERNEL(64, 3, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 2, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 2, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(64, 2, fp32, kFp32)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
