// start_factors, one CTA a block and side: a factor that has seen no gradient starts at
//
//   X = I / (damping s),  mean = s,   s = |G|_F^2 / d           (nothing happens where s = 0)
//
// and `pending`, the scale that X still has to be multiplied by, is 1 / decay, or 0 where the block takes no
// part. After the first gradient a CTA reads two numbers and ends.
//
// traces_of_squares: see factor_state.h.
//
// finish_groups, one warp a block: mean = decay mean + (1 - decay) s, the count of updates that fell back,
// and the norm of the preconditioned block from its partial sums, in a fixed order.
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

// The scale that is still to be applied to X; 0: no update.
__device__ __forceinline__ float start(const StartFactors& in, const StartFactor& of, int64_t block,
                                       float* scratch) {
  if (!in.active[of.first_block + block]) return 0;
  float* const statistics = of.statistics + 2 * block;
  if (in.rule.damping > 0 && statistics[0] == 0) {
    const Matrix grad(in.views, of.grad, block, of.rows, of.cols);
    const float scale = energy_of(grad, scratch) / of.d;
    if (scale == 0) return 0;
    if (threadIdx.x == 0) statistics[isfinite(scale) ? 0 : 1] += isfinite(scale) ? scale : 1;
    if (!isfinite(scale)) return 0;
    fill_diagonal(Matrix(in.views, of.factor, block, of.d, of.d), 1 / (in.rule.damping * scale));
  }
  return 1 / in.rule.decay;
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
    const float mean = rule.decay * statistics[0] + (1 - rule.decay) * energy / side.d;
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
  // Without an update of the first side, whose products sum it up, the gradient was zero.
  const bool summed = in.rule.damping > 0 && group.side[0].pending[block] != 0;
  const float energy =
      summed ? total(group.energy + block * group.energy_partials, group.energy_partials, lane) : 0;
  if (lane < group.sides) finish_side(in.rule, group.side[lane], block, group.blocks, energy);
}

}  // namespace kradagrad::cuda
