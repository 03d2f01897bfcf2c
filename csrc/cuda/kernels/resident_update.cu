// resident_update: the update of both factors of blocks [m, n] of up to 16 kTiles a side, on chip from the
// read of G and F to the write of F (kradagrad_ext/backends/base.py):
//
//   U = G and G^T, or coupled  |G| / |G P_r| G P_r  and  |G| / |P_l G| G^T P_l
//   B = s sqrt(weight) F^T U, with s the scale of the block's gradient
//   M = B B^T + C^T C,  C = rms' sqrt(damped_updates weight damping k) F
//   Y = (M + decay I) / t,  Z = T = a I - b Y;   from the second step on      (square_root_rule.cuh)
//     Y <- Y T;   T = a I - b Y Z;   Z <- T Z         or, with two steps in all, one product fewer
//   F <- restored F Z
//
// Teams take block sides in rounds (resident_block.cuh), with warps as in tile_products.cuh; a team finds a
// side's group by binary search over the groups' first items. G is stored in units of a power of two below
// its largest element, F in units of one below 1 / (rms' sqrt(damping k)), so that no square overflows for
// gradients of any scale; scaling by powers of two is exact. Shared memory of a team, in tiles (T = 8: 136
// KB):
//
//             first, T^2                    second, two or three symmetric places of T (T + 1) / 2
//   coupled   lower tiles of P              G, then U
//   whiten    F                             U, then B
//   iterate   F                             lower tiles of Y and Z, and of T from refine 3 on
//   F R       F                             the next side's P, in flight; Z
//
// Only a team's first item waits for memory: the next side's G, in registers, and P arrive during F R, and F
// arrives during the product U.
//
// Traffic: G, F and, for a coupled update, the lower triangle of P are read once; F is written once. A
// block's sides are consecutive items: the second one reads G from the L2. Per element of a square block of
// b^2: both sides 2 G + P + 4 F.
#include "largest.cuh"
#include "side_item.cuh"
#include "staged_matrix.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
class ResidentSideUpdate {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;
  using Lower = LowerTiles<kTiles>;
  using Staged = StagedMatrix<kTiles>;
  using StagedRoot = StagedMatrix<kTiles, LowerGrid<kTiles>>;
  using Sides = Items<kTiles, SideItem>;

  __device__ __forceinline__ ResidentSideUpdate(const ResidentUpdate& in, const Sides& sides)
      : in_(in), sides_(sides) {}

  __device__ __forceinline__ void run() {
    Staged grad;
    bool more = sides_.start(in_);
    request(item(), grad);
#pragma unroll 1
    for (; more; more = sides_.advance()) {
      load_gradient(grad);
      Staged factor;
      if (item().is_new) {
        factor.clear();
      } else {
        factor.start(item().factor());
      }
      sides_.find_next(in_);
      const float coupled = in_.rule.coupled ? couple() : 0;
      const bool ready = Here::thread() == 0 && item().prepare(in_.rule, coupled);
      const bool succeeded = update_factor(__syncthreads_or(ready), factor, grad);
      if (Here::thread() == 0) item().finish(succeeded);
    }
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared second() const { return Here::place(in_.places, first_place(kTiles)); }

  __device__ __forceinline__ SideItem& item() const { return sides_.current(); }
  __device__ __forceinline__ int d_tiles() const { return tiles_of(item().d); }
  __device__ __forceinline__ int k_tiles() const { return tiles_of(item().k); }

  __device__ __forceinline__ float sum(float value) const { return team_sum<Here::kWarps>(value); }

  __device__ __forceinline__ Full full_product() const { return Full(Here::warp(), Here::lane()); }
  __device__ __forceinline__ Lower lower_tiles_of_product() const { return Lower(Here::share()); }

  // Starts to read a side's G and P; P goes to the first symmetric place, which is free.
  __device__ __forceinline__ void request(const SideItem& of, Staged& grad) const {
    grad.start(of.grad());
    if (in_.rule.coupled) StagedRoot().start_copy(of.root(), symmetric_place(0));
  }

  // Stores the requested G in `second`, in the unit of its norm, and P in `first`.
  __device__ __forceinline__ void load_gradient(Staged& grad) const {
    grad.finish(item().grad(), first());
    float most = 0;
    grad.for_each([&](float value) { most = fmaxf(most, fabsf(value)); });
    StagedRoot root;
    if (in_.rule.coupled) {
      root.finish_copy(item().root(), symmetric_place(0));
    } else {
      root.clear();
    }
    most = team_max<Here::kWarps>(most);
    if (in_.rule.coupled) root.template store<Format>(first());
    const float unit = most > 0 && isfinite(most) ? power_of_two_below(most) : 1;
    float squares = 0;  // NaN if an element is NaN, which the maximum ignores
    grad.scale(inverse_power_of_two(unit));
    grad.for_each([&](float value) { squares = fmaf(value, value, squares); });
    grad.template store<Format>(second());
    squares = sum(squares);
    if (Here::thread() == 0) item().norm = {squares, squares == 0 ? 0 : unit};
  }

  // Writes U = G P_r, or G^T P_l, to the place of G; returns its squared norm.
  __device__ __forceinline__ float couple() const {
    const Exact exact{item().grad().bf16, item().root().bf16};
    const SymmetricTiles p{first()};
    Full u = full_product();
    if (item().right) {
      u.add(TransposedTiles{second(), kTiles}, p, d_tiles(), k_tiles(), k_tiles(), exact);
    } else {
      u.add(PlainTiles{second(), kTiles}, p, d_tiles(), k_tiles(), k_tiles(), exact);
    }
    __syncthreads();
    u.write(second());
    return sum(squares_of(u, 1));
  }

  // Multiplies the product by `scale`; returns this thread's part of its squared norm.
  static __device__ __forceinline__ float squares_of(Full& product, float scale) {
    float squares = 0;
    product.for_each_pair([&](int, int, float (&pair)[2]) {
      pair[0] *= scale;
      pair[1] *= scale;
      squares = fmaf(pair[1], pair[1], fmaf(pair[0], pair[0], squares));
    });
    return squares;
  }

  // F <- F R if that is finite and the block is ready; returns true if so. Requests the next side's G.
  __device__ __forceinline__ bool update_factor(bool any_ready, Staged& factor, Staged& grad) const {
    if (!any_ready) {
      request(sides_.next(), grad);
      return false;
    }
    const float root = item().update.rms * damping_root(in_.rule, item().k);
    const float unit = power_of_two_below(root);  // F is stored times this
    load_factor(factor, unit);
    const float whitened = whiten(item().update.scale * (item().norm.unit / unit));
    if (Here::thread() == 0) item().update.whitened *= whitened;
    Lower m = gram(root / unit);
    const float norm = norm_of(m, fmaxf(1, power_of_two_below(whitened)));
    const float restored = iterate(m, norm);
    request(sides_.next(), grad);
    return write_factor(restored / unit);
  }

  // |M|_F; no square overflows if M / unit is near 1 or below.
  __device__ __forceinline__ float norm_of(const Lower& m, float unit) const {
    return unit * sqrtf(sum(m.sum_of_squares(inverse_power_of_two(unit))));
  }

  // Stores F times `unit` in `first`.
  __device__ __forceinline__ void load_factor(Staged& factor, float unit) const {
    if (item().is_new) {
      factor.set_diagonal(unit * start_of(in_.rule, item().update.rms, item().k), item().d);
    } else {
      factor.finish(item().factor(), first());
      factor.scale(unit);
    }
    __syncthreads();
    factor.template store<Format>(first());
    __syncthreads();
  }

  // Writes B to the place of U; returns its squared norm.
  __device__ __forceinline__ float whiten(float scale) const {
    const Exact exact{item().exact_factor(), item().grad().bf16 && !in_.rule.coupled};
    const int rows = d_tiles(), cols = k_tiles();
    Full b = full_product();
    const TransposedTiles f{first(), kTiles};
    if (item().right && !in_.rule.coupled) {
      b.add(f, PlainTiles{second(), kTiles}, rows, cols, rows, exact);
    } else {
      b.add(f, TransposedTiles{second(), kTiles}, rows, cols, rows, exact);
    }
    const float squares = squares_of(b, scale);
    __syncthreads();
    b.write(second());
    return sum(squares);
  }

  // The lower tiles of M = B B^T + damped_updates weight damping^2 F^T F.
  __device__ __forceinline__ Lower gram(float damping) const {
    Lower m = lower_tiles_of_product();
    const float damped = in_.rule.damped_updates * in_.rule.weight;
    if (damped > 0) {
      const TransposedTiles f{first(), kTiles};
      m.template add<Multiply>(f, f, d_tiles(), d_tiles(), {item().exact_factor(), item().exact_factor()});
      m.scale(damping * damping * damped);
    }
    const PlainTiles b{second(), kTiles};
    m.template add<Multiply>(b, b, d_tiles(), k_tiles());
    return m;
  }

  __device__ __forceinline__ Shared symmetric_place(int i) const {
    return second() + i * symmetric_tiles(kTiles) * kTileBytes;
  }

  // Makes Z in the second symmetric place, from M, with Y in the first; returns the factor of F Z.
  __device__ __forceinline__ float iterate(Lower& m, float norm) const {
    const Iteration first(in_.rule, norm, 0);
    m.add_diagonal(item().d, in_.rule.decay);
    m.scale(1 / first.t);
    m.template write<Format>(symmetric_place(0));
    m.scale(-first.b1);
    m.add_diagonal(item().d, first.a1);
    m.template write<Format>(symmetric_place(1));
    __syncthreads();
    if (in_.rule.refine == 2) {
      square_second_step(m, first, Iteration(in_.rule, norm, 1));
    } else {
      repeat_steps(norm);
    }
    return first.restored;
  }

  // The second step if it is the last, from Z = T in registers and in its place: with S = Y T
  //
  //   T^2 = a1 T - b1 S,   Z = a T - b S T^2
  __device__ __forceinline__ void square_second_step(const Lower& t, const Iteration& first,
                                                     const Iteration& second) const {
    const Shared y = symmetric_place(0), z = symmetric_place(1);
    const SymmetricTiles left{y}, right{z};
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      Lower product = lower_tiles_of_product();
      product.template add<Multiply>(left, right, d_tiles(), d_tiles());
      __syncthreads();
      if (i == 0) product.template write<Format>(y);
      product.scale(i == 0 ? -first.b1 : -second.b);
      product.add(t, i == 0 ? first.a1 : second.a);
      product.template write<Format>(z);
      __syncthreads();
    }
  }

  // The second step and all later ones. T is in the third place.
  __device__ __forceinline__ void repeat_steps(float norm) const {
    const int products = 3 * (in_.rule.refine - 1);
    const Shared y = symmetric_place(0), z = symmetric_place(1), t = symmetric_place(2);
#pragma unroll 1
    for (int i = 0; i < products; ++i) {
      const int phase = i % 3;
      Lower product = lower_tiles_of_product();
      const SymmetricTiles left{phase == 2 ? t : y}, right{phase == 0 && i > 0 ? t : z};
      product.template add<Multiply>(left, right, d_tiles(), d_tiles());
      if (phase == 1) {
        const Iteration it(in_.rule, norm, i / 3 + 1);
        product.scale(-it.b);
        product.add_diagonal(item().d, it.a);
      }
      __syncthreads();
      product.template write<Format>(phase == 0 ? y : phase == 1 ? t : z);
      __syncthreads();
    }
  }

  // Writes F' = scale F Z to the factor, if all of it is finite in the factor's dtype.
  __device__ __forceinline__ bool write_factor(float scale) const {
    const int tiles = d_tiles();
    Full updated = full_product();
    updated.add(PlainTiles{first(), kTiles}, SymmetricTiles{symmetric_place(1)}, tiles, tiles, tiles,
                {item().exact_factor(), false});
    updated.scale(scale);
    if (item().factor().bf16) updated.for_each([](float& value) { value = rounded_bf16(value); });
    float failed = 0;  // stays 0 if all values are finite
    updated.for_each([&](float value) { failed = fmaf(value, 0, failed); });
    if (!(sum(failed) == 0) || !item().ready) return false;
    write_product<kTiles>(updated, item().factor(), first());
    return true;
  }

  const ResidentUpdate& in_;
  Sides sides_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_update(const ResidentUpdate& in) {
  using Update = ResidentSideUpdate<kTiles, kPrecision>;
  __shared__ SideItem items[Update::Sides::kCount];
  Update(in, typename Update::Sides(items)).run();
}

}  // namespace

// One kernel for each side and precision; `ctas` CTAs must fit the registers of an SM.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)                  \
  extern "C" __global__ void __launch_bounds__(kResidentThreads, ctas) \
      resident_update_##side##_##name(const ResidentUpdate in) {       \
    resident_update<side / kTile, Precision::precision>(in);           \
  }

KRADAGRAD_KERNEL(64, 2, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 2, fp32, kFp32)
KRADAGRAD_KERNEL(96, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
