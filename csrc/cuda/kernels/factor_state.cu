// start_factors, one CTA a block and side: a factor that has seen no gradient starts at
//
//   X = I / (damping s),  mean = s,   s = |G|_F^2 / d           (nothing happens where s = 0)
//
// and `pending`, the scale that X still has to be multiplied by, is 1 / decay, or 0 where the block takes no
// part. The energy |G|_F^2 is left here where no product sums it up: of blocks that take no part, and of
// unfoldings in several chunks, since X may change only if all of them are finite. Otherwise a CTA reads two
// numbers after the first gradient and ends.
//
// traces_of_squares: see factor_state.h.
//
// finish_groups, one warp a block: mean = decay mean + (1 - decay) s, the count of updates that fell back,
// and the norm of the preconditioned block from its partial sums, in a fixed order.
#include "factor_rule.cuh"
#include "factor_state.h"
#include "memory.cuh"
#include "reduce.cuh"

namespace kradagrad::cuda {
namespace {

// Calls use(row, col) for every element, a warp a row at a time.
template <class Use>
__device__ __forceinline__ void for_each_element(int rows, int cols, const Use& use) {
  for (int row = threadIdx.x / 32; row < rows; row += kStartThreads / 32) {
    for (int col = threadIdx.x % 32; col < cols; col += 32) use(row, col);
  }
}

__device__ __forceinline__ float energy_of(const Matrix& grad, float* scratch) {
  float sum = 0;
  for_each_element(grad.rows, grad.cols, [&](int row, int col) {
    const float value = grad.read(row, col);
    sum += value * value;
  });
  return cta_sum<kStartThreads / 32>(sum, scratch);
}

__device__ __forceinline__ void fill_diagonal(const Matrix& factor, float diagonal) {
  for_each_element(factor.rows, factor.cols,
                   [&](int row, int col) { factor.at(row, col) = row == col ? diagonal : 0; });
}

// The factor of a first gradient; whether there is one.
__device__ __forceinline__ bool start_at(const StartFactors& in, const StartFactor& of, int64_t block,
                                         float scale) {
  if (scale == 0) return false;
  const float diagonal = 1 / (in.rule.damping * scale);
  const bool finite = isfinite(scale) && isfinite(diagonal);
  if (threadIdx.x == 0) of.statistics[2 * block + (finite ? 0 : 1)] += finite ? scale : 1;
  if (finite) fill_diagonal(Matrix(in.views, of.factor, block, of.d, of.d), diagonal);
  return finite;
}

// The scale that is still to be applied to X; 0: no update.
__device__ __forceinline__ float start(const StartFactors& in, const StartFactor& of, int64_t block,
                                       float* scratch) {
  if (!in.active[of.first_block + block]) return 0;
  const bool first = in.rule.damping > 0 && of.statistics[2 * block] == 0;
  const bool sums = of.energy && of.chunks > 1;
  float energy = 0;
  if (first || sums) energy = energy_of(Matrix(in.views, of.grad, block, of.rows, of.cols), scratch);
  const bool taken = !first || start_at(in, of, block, energy / of.d);
  if (sums || (of.energy && !taken)) {
    for (int i = threadIdx.x; i < of.energy_partials; i += kStartThreads) {
      of.energy[block * of.energy_partials + i] = i == 0 ? energy : 0;
    }
  }
  return taken ? 1 / in.rule.decay : 0;
}

// Sum of a block's partial sums, for every lane.
__device__ __forceinline__ float total(const float* partials, int count, int lane) {
  float sum = 0;
  for (int i = lane; i < count; i += 32) sum += partials[i];
  return warp_sum(sum);
}

__device__ __forceinline__ void finish_side(const FactorRule& rule, const FinishSide& side, int64_t block,
                                            int64_t blocks, float energy) {
  if (side.pending[block] == 0) return;
  bool failed = false;
  for (int chunk = 0; chunk < side.chunks; ++chunk) failed |= side.failed[chunk * blocks + block] != 0;
  float* const statistics = side.statistics + 2 * block;
  if (rule.damping > 0) {
    const float mean = tracked_mean(rule, statistics[0], energy / side.d);
    if (isfinite(mean)) statistics[0] = mean;
    failed |= !isfinite(mean);
  }
  if (failed) statistics[1] += 1;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kStartThreads, 4) start_factors(const StartFactors in) {
  __shared__ float scratch[kStartThreads / 32];
  const int64_t cta = blockIdx.x;
  const StartFactor& of = in.factors[search(in.count, cta, [&](int i) { return in.factors[i].first_cta; })];
  const int64_t block = cta - of.first_cta;
  const float pending = start(in, of, block, scratch);
  for (int chunk = threadIdx.x; chunk <= of.chunks; chunk += kStartThreads) {
    of.pending[chunk * of.blocks + block] = pending;
  }
}

extern "C" __global__ void __launch_bounds__(kStartThreads, 4) traces_of_squares(const TracesOfSquares in) {
  __shared__ float scratch[kStartThreads / 32];
  const int64_t cta = blockIdx.x;
  const TraceOfSquare& of = in.traces[search(in.count, cta, [&](int i) { return in.traces[i].first_cta; })];
  const int64_t block = of.start + cta - of.first_cta;
  if (!in.active[of.first_block + block] || of.pending[block] == 0) return;
  const Matrix matrix(in.views, of.matrix, block, of.d, of.d);
  float sum = 0;
  for_each_element(of.d, of.d, [&](int row, int col) { sum += matrix.at(row, col) * matrix.at(col, row); });
  sum = cta_sum<kStartThreads / 32>(sum, scratch);
  if (threadIdx.x == 0) of.sum[block] = fmaxf(sum, 0);
}

extern "C" __global__ void __launch_bounds__(32) finish_groups(const FinishGroups in) {
  const int64_t cta = blockIdx.x;
  const FinishGroup& group = in.groups[search(in.count, cta, [&](int i) { return in.groups[i].first_cta; })];
  const int64_t block = cta - group.first_cta, index = group.first_block + block;
  const bool active = in.active[index];
  const int lane = threadIdx.x;
  if (group.norm) {
    const float norm =
        active ? total(group.norm + block * group.norm_partials, group.norm_partials, lane) : 0;
    if (lane == 0) in.norms[index] = norm;
  }
  if (!active || group.sides == 0) return;
  const float energy = total(group.energy + block * group.energy_partials, group.energy_partials, lane);
  if (lane < group.sides) finish_side(in.rule, group.side[lane], block, group.blocks, energy);
}

}  // namespace kradagrad::cuda
