// resident_precondition: V = P_l (D / rms_l) P_r of blocks [m, n] of up to 16 kTiles a side, and norms =
// |V|^2 (kradagrad_ext/backends/base.py), on chip from the reading of D to the writing of V.
//
// One team a block (resident_block.cuh); a team finds its group by binary search over the groups' first
// items. Shared memory of a team, two places of T^2 tiles (T = 8: 128 KB): D, then D P_r; P_r, then P_l.
// Traffic: D and both roots once, V and its norm written once.
#include "resident_block.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
class ResidentProduct {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;

  __device__ __forceinline__ ResidentProduct(const ResidentPrecondition& in,
                                             const ResidentProductGroup& group, int64_t block, bool active)
      : in_(in), group_(group), block_(block), active_(active) {}

  // |V|^2, for every thread.
  __device__ __forceinline__ float run() {
    StagedMatrix<kTiles> direction, right_root, left_root;
    direction.start(matrix(group_.direction, m(), n()));
    right_root.start(matrix(group_.right_root, n(), n()));
    store(direction, group_.direction, m(), n(), first());
    store(right_root, group_.right_root, n(), n(), second());
    left_root.start(matrix(group_.left_root, m(), m()));
    __syncthreads();
    Full half = product(first(), second(), n(), {group_.direction.bf16 != 0, group_.right_root.bf16 != 0});
    __syncthreads();
    half.write(first());
    store(left_root, group_.left_root, m(), m(), second());
    __syncthreads();
    Full whole = product(second(), first(), m(), {group_.left_root.bf16 != 0, false});
    const float norm = team_sum<Here::kWarps>(over_rms(whole));
    write_product<kTiles>(whole, matrix(group_.out, m(), n()), first());
    return norm;
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared second() const { return Here::place(in_.places, first_place(kTiles)); }

  __device__ __forceinline__ int m() const { return active_ ? group_.m : 0; }
  __device__ __forceinline__ int n() const { return active_ ? group_.n : 0; }

  __device__ __forceinline__ Matrix matrix(const Matrices& of, int rows, int cols) const {
    return Matrix(in_.views, of, block_, rows, cols);
  }

  // Ends the reading of a matrix into a place.
  __device__ __forceinline__ void store(StagedMatrix<kTiles>& staged, const Matrices& of, int rows, int cols,
                                        Shared place) const {
    staged.finish(matrix(of, rows, cols), place);
    __syncthreads();
    staged.template store<Format>(place);
  }

  // a [m, depth] times b [depth, n].
  __device__ __forceinline__ Full product(Shared a, Shared b, int depth, Exact exact) const {
    Full result(Here::warp(), Here::lane());
    result.add(PlainTiles{a, kTiles}, TransposedTiles{b, kTiles}, tiles_of(m()), tiles_of(n()),
               tiles_of(depth), exact);
    return result;
  }

  // Divides by the root mean square of the block's gradients; this thread's part of the squared norm.
  __device__ __forceinline__ float over_rms(Full& product) const {
    const float rms = group_.statistics[block_ * kColumns + kRms];
    float norm = 0;
    product.for_each_pair([&](int, int, float (&pair)[2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        pair[i] = rms > 0 ? pair[i] / rms : 0;
        norm = fmaf(pair[i], pair[i], norm);
      }
    });
    return norm;
  }

  const ResidentPrecondition& in_;
  const ResidentProductGroup& group_;
  int64_t block_;
  bool active_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_precondition(const ResidentPrecondition& in) {
  const WorkItem<kTiles> work(in.items);
  const ResidentProductGroup& group =
      in.groups[search(in.count, work.index, [&](int i) { return in.groups[i].first_item; })];
  const int64_t block = work.index - group.first_item;
  const bool active = work.exists && in.scales[group.first_block + block] != 0;
  float norm = 0;
  if (__syncthreads_or(active)) {
    norm = ResidentProduct<kTiles, kPrecision>(in, group, block, active).run();
  }
  if (work.exists && Worker<kTiles>::thread() == 0) in.norms[group.first_block + block] = norm;
}

}  // namespace

// One kernel for each side and precision; `ctas` of them are to fit an SM's registers.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)                        \
  extern "C" __global__ void __launch_bounds__(kResidentThreads, ctas)       \
      resident_precondition_##side##_##name(const ResidentPrecondition in) { \
    resident_precondition<side / kTile, Precision::precision>(in);           \
  }

KRADAGRAD_KERNEL(64, 2, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 2, fp32, kFp32)
KRADAGRAD_KERNEL(96, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
