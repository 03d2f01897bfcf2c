// resident_precondition: V = P_l (D / rms_l) P_r of blocks [m, n] of up to 16 kTiles a side, and norms =
// |V|^2 (kradagrad_ext/backends/base.py), on chip from the read of D to the write of V.
//
// Teams take blocks in rounds (resident_block.cuh); a team finds a block's group by binary search over the
// groups' first items. Shared memory of a team, in tiles (T = 8: 136 KB):
//
//             first, T^2     second, two symmetric places of T (T + 1) / 2
//   D P_r     D              lower tiles of P_r;  free
//   P_l H     H = D P_r      the next block's P_r, in flight;  lower tiles of P_l
//
// Only a team's first item waits for memory. P_l arrives in registers during the first product; the next
// block's D, in registers, and P_r arrive during the second.
//
// Traffic: D and the lower triangles of both roots are read once, V and its norm are written once.
#include "product_item.cuh"
#include "staged_matrix.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
class ResidentProduct {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;

  using Staged = StagedMatrix<kTiles>;
  using StagedRoot = StagedMatrix<kTiles, LowerGrid<kTiles>>;
  using Blocks = Items<kTiles, ProductItem>;

  __device__ __forceinline__ ResidentProduct(const ResidentPrecondition& in, const Blocks& blocks)
      : in_(in), blocks_(blocks) {}

  __device__ __forceinline__ void run() {
    Staged direction;
    bool more = blocks_.start(in_);
    request(item(), direction);
#pragma unroll 1
    for (; more; more = blocks_.advance()) {
      load_direction(direction);
      StagedRoot left_root;
      left_root.start(item().left_root());
      blocks_.find_next(in_);
      multiply_right(left_root);
      request(blocks_.next(), direction);
      const float norm = multiply_left();
      if (Here::thread() == 0 && item().active) *item().norm = norm;
    }
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared right_place() const {
    return Here::place(in_.places, first_place(kTiles));
  }
  __device__ __forceinline__ Shared left_place() const {
    return Here::place(in_.places, first_place(kTiles) + symmetric_tiles(kTiles));
  }

  __device__ __forceinline__ ProductItem& item() const { return blocks_.current(); }
  __device__ __forceinline__ int m_tiles() const { return tiles_of(item().m); }
  __device__ __forceinline__ int n_tiles() const { return tiles_of(item().n); }

  // Starts to read a block's D and P_r; P_r goes to its place, which is free.
  __device__ __forceinline__ void request(const ProductItem& of, Staged& direction) const {
    direction.start(of.direction());
    StagedRoot().start_copy(of.right_root(), right_place());
  }

  // Stores the requested D in `first` and P_r in its place.
  __device__ __forceinline__ void load_direction(Staged& direction) const {
    StagedRoot right_root;
    direction.finish(item().direction(), first());
    right_root.finish_copy(item().right_root(), right_place());
    __syncthreads();
    direction.template store<Format>(first());
    right_root.template store<Format>(right_place());
    __syncthreads();
  }

  // Writes D P_r to the place of D, and P_l to its place.
  __device__ __forceinline__ void multiply_right(StagedRoot& left_root) const {
    Full half(Here::warp(), Here::lane());
    half.add(PlainTiles{first(), kTiles}, SymmetricTiles{right_place()}, m_tiles(), n_tiles(), n_tiles(),
             {item().direction().bf16, item().right_root().bf16});
    left_root.finish(item().left_root(), left_place());
    __syncthreads();
    half.write(first());
    left_root.template store<Format>(left_place());
    __syncthreads();
  }

  // Writes V to its matrix; returns |V|^2 to every thread.
  __device__ __forceinline__ float multiply_left() const {
    Full whole(Here::warp(), Here::lane());
    whole.add(SymmetricTiles{left_place()}, TransposedTiles{first(), kTiles}, m_tiles(), n_tiles(), m_tiles(),
              {item().left_root().bf16, false});
    const float norm = team_sum<Here::kWarps>(over_rms(whole));
    write_product<kTiles>(whole, item().out(), first());
    return norm;
  }

  // Divides by the root mean square of the block's gradients; returns this thread's part of the squared norm.
  __device__ __forceinline__ float over_rms(Full& product) const {
    const float rms = item().rms;
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
  Blocks blocks_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_precondition(const ResidentPrecondition& in) {
  using Product = ResidentProduct<kTiles, kPrecision>;
  __shared__ ProductItem items[Product::Blocks::kCount];
  Product(in, typename Product::Blocks(items)).run();
}

}  // namespace

// One kernel for each side and precision; `ctas` CTAs must fit the registers of an SM.
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
