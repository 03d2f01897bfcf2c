// The steps between the grouped products of an update in the square-root form (square_root.h).
//
// gradient_norms, one CTA per block: the power of two `unit` below the largest |g|, then the sum of (g /
// unit)^2, so that no square overflows or underflows.
//
// start_sides, one CTA per block, its threads over the elements: for each side, with g = s |G| / sqrt(d k)
// and s the scale of the block's gradient,
//
//   w' = decay w + weight,   rms' = sqrt((decay w rms^2 + weight g^2) / w')
//   scale = s sqrt(weight) |G| / |U|
//
//   if w = 0:      F = I / (rms' sqrt(prior k))
//   with damping:  C^T = rms' sqrt(damped_updates weight damping k) F^T, beside B
//
// finish_sides, one CTA per block: F <- F' and the statistics if F' is finite, else the count of fallbacks.
// finish_norms, one warp per block: the sum of partial sums, in a fixed order.
#include "largest.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {
namespace {

constexpr int kBlockWarps = kBlockThreads / 32;

// Calls use(row, col) for every element; a warp takes a row at a time.
template <class Use>
__device__ __forceinline__ void for_each_element(int rows, int cols, const Use& use) {
  for (int row = threadIdx.x / 32; row < rows; row += kBlockWarps) {
    for (int col = threadIdx.x % 32; col < cols; col += 32) use(row, col);
  }
}

__device__ __forceinline__ float total(const float* partials, int count) {
  float sum = 0;
  for (int i = threadIdx.x % 32; i < count; i += 32) sum += partials[i];
  return warp_sum(sum);
}

// The next statistics, and if the block takes part; the same for every thread.
__device__ __forceinline__ BlockUpdate next(const SquareRootRule& rule, const SquareRootGroupSide& side,
                                            const GradientNorm& norm, float scale, int64_t block) {
  const float stretch =
      side.coupled ? total(side.coupled + block * side.coupled_partials, side.coupled_partials) / norm.sum
                   : 1;
  return next_statistics(rule, side.statistics + block * kColumns, norm, scale, stretch, side.d, side.k);
}

__device__ __forceinline__ void start_side(const SquareRootGroups& in, const SquareRootGroupSide& side,
                                           const BlockUpdate& update, int64_t block) {
  const float root = damping_root(in.rule, side.k);
  const bool is_new = side.statistics[block * kColumns + kWeight] == 0;
  const Matrix factor(in.views, side.factor, block, side.d, side.d);
  const float start = start_of(in.rule, update.rms, side.k);
  if (is_new) {  // below, each thread reads only elements that it writes here
    for_each_element(side.d, side.d,
                     [&](int row, int col) { factor.store(row, col, row == col ? start : 0); });
  }
  if (side.damping.views == 0) return;
  const Matrix damping(in.views, side.damping, block, side.d, side.d);
  const float scale = update.rms * root * sqrtf(in.rule.damped_updates * in.rule.weight);
  for_each_element(side.d, side.d,
                   [&](int row, int col) { damping.store(col, row, scale * factor.read(row, col)); });
}

// True if F' of a block is finite; the same for every thread.
__device__ __forceinline__ bool succeeded(const SquareRootGroupSide& side, int64_t block) {
  return total(side.failed + block * side.failed_partials, side.failed_partials) == 0;
}

__device__ __forceinline__ void finish_side(const SquareRootGroups& in, const SquareRootGroupSide& side,
                                            int64_t block) {
  const BlockUpdate update = side.updates[block];
  if (update.readiness == Readiness::kNone) return;
  float* const statistics = side.statistics + block * kColumns;
  if (update.readiness == Readiness::kCounted || !succeeded(side, block)) {
    if (threadIdx.x == 0) statistics[kFallbacks] += 1;
    return;
  }
  const Matrix factor(in.views, side.factor, block, side.d, side.d);
  const Matrix updated(in.views, side.updated, block, side.d, side.d);
  for_each_element(side.d, side.d, [&](int row, int col) { factor.store(row, col, updated.read(row, col)); });
  const float whitened = total(side.whitened + block * side.whitened_partials, side.whitened_partials);
  if (threadIdx.x == 0) {
    statistics[kRms] = update.rms;
    statistics[kWeight] = update.weight;
    statistics[kWhitened] = update.whitened * whitened;
  }
}

// The group of this CTA, and its block within the group.
__device__ __forceinline__ const SquareRootGroup& group_of(const SquareRootGroups& in, int64_t* block) {
  const int64_t cta = blockIdx.x;
  const SquareRootGroup& group =
      in.groups[search(in.count, cta, [&](int i) { return in.groups[i].first_cta; })];
  *block = group.start + cta - group.first_cta;
  return group;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kBlockThreads, 3) gradient_norms(const SquareRootGroups in) {
  int64_t block;
  const SquareRootGroup& group = group_of(in, &block);
  if (in.scales[group.first_block + block] == 0) return;
  const Matrix grad(in.views, group.grad, block, group.m, group.n);
  float most = 0, sum = 0;
  bool finite = true;
  for_each_element(group.m, group.n, [&](int row, int col) {
    const float value = fabsf(grad.read(row, col));
    finite = finite && isfinite(value);
    most = fmaxf(most, value);
  });
  most = team_max<kBlockWarps>(most);
  const float unit = most > 0 && isfinite(most) ? power_of_two_below(most) : 0;
  for_each_element(group.m, group.n, [&](int row, int col) {
    const float value = unit > 0 ? grad.read(row, col) / unit : 0;
    sum += value * value;
  });
  sum = team_sum<kBlockWarps>(finite ? sum : INFINITY);
  if (threadIdx.x == 0) group.gradient[block] = {sum, isfinite(sum) ? unit : 1};
}

extern "C" __global__ void __launch_bounds__(kBlockThreads, 3) start_sides(const SquareRootGroups in) {
  int64_t block;
  const SquareRootGroup& group = group_of(in, &block);
  const float scale = in.scales[group.first_block + block];
  if (scale == 0) return;
  for (int i = 0; i < group.sides; ++i) {
    const SquareRootGroupSide& side = group.side[i];
    const BlockUpdate update = next(in.rule, side, group.gradient[block], scale, block);
    if (threadIdx.x == 0) side.updates[block] = update;
    if (update.readiness == Readiness::kReady) start_side(in, side, update, block);
  }
}

extern "C" __global__ void __launch_bounds__(kBlockThreads, 3) finish_sides(const SquareRootGroups in) {
  int64_t block;
  const SquareRootGroup& group = group_of(in, &block);
  if (in.scales[group.first_block + block] == 0) return;
  for (int i = 0; i < group.sides; ++i) finish_side(in, group.side[i], block);
}

extern "C" __global__ void __launch_bounds__(32) finish_norms(const NormSums in) {
  const int64_t cta = blockIdx.x;
  const NormSum& sum = in.sums[search(in.count, cta, [&](int i) { return in.sums[i].first_cta; })];
  const int64_t block = sum.start + cta - sum.first_cta, index = sum.first_block + block;
  const bool counts = in.scales[index] != 0 && sum.partials;
  const float norm = counts ? total(sum.partials + block * sum.count, sum.count) : 0;
  if (threadIdx.x == 0) in.norms[index] = norm;
}

}  // namespace kradagrad::cuda
