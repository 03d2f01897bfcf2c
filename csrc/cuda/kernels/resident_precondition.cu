// resident_precondition: V = P_l (D / rms_l) P_r of blocks [m, n] of up to 16 kTiles a side, and norms =
// |V|^2 (kradagrad_ext/backends/base.py), on chip from the reading of D to the writing of V.
//
// One team a block (resident_block.cuh); a team finds its group by binary search over the groups' first
// items. Shared memory of a team, two places of T^2 tiles (T = 8: 128 KB): D, then D P_r; P_r, then P_l.
// Traffic: D and both roots once, V and its norm written once.
#include "product_item.cuh"
#include "resident_block.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
class ResidentProduct {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;

  __device__ __forceinline__ ResidentProduct(const ResidentPrecondition& in, const ProductItem& item)
      : in_(in), item_(item) {}

  // |V|^2, for every thread.
  __device__ __forceinline__ float run() {
    StagedMatrix<kTiles> direction, right_root, left_root;
    const Matrix d = item_.direction(in_.views), right = item_.right_root(in_.views);
    direction.start(d);
    right_root.start(right);
    store(direction, d, first());
    store(right_root, right, second());
    left_root.start(item_.left_root(in_.views));
    __syncthreads();
    Full half = product(first(), second(), n(), {bf16(item_.group.direction), bf16(item_.group.right_root)});
    __syncthreads();
    half.write(first());
    store(left_root, item_.left_root(in_.views), second());
    __syncthreads();
    Full whole = product(second(), first(), m(), {bf16(item_.group.left_root), false});
    const float norm = team_sum<Here::kWarps>(over_rms(whole));
    write_product<kTiles>(whole, item_.out(in_.views), first());
    return norm;
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared second() const { return Here::place(in_.places, first_place(kTiles)); }

  __device__ __forceinline__ int m() const { return item_.m; }
  __device__ __forceinline__ int n() const { return item_.n; }
  static __device__ __forceinline__ bool bf16(const Matrices& of) { return of.bf16 != 0; }

  // Ends the reading of a matrix into a place.
  __device__ __forceinline__ void store(StagedMatrix<kTiles>& staged, const Matrix& of, Shared place) const {
    staged.finish(of, place);
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
    const float rms = item_.rms;
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
  const ProductItem& item_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_precondition(const ResidentPrecondition& in) {
  __shared__ ProductItem items[Worker<kTiles>::kTeams];
  const WorkItem<kTiles> work(in.items);
  ProductItem& item = items[Worker<kTiles>::team()];
  if (Worker<kTiles>::thread() == 0) item.find(in, work.index, work.exists);
  __syncthreads();
  const float norm = __syncthreads_or(item.active) ? ResidentProduct<kTiles, kPrecision>(in, item).run() : 0;
  if (Worker<kTiles>::thread() == 0) item.set_norm(in, norm);
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
