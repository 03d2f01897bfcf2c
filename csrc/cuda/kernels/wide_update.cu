// wide_update: the update of both factors of blocks [m, n] of 129 to 256 a side, as in resident_update.cu,
// with the block's matrices in global memory (wide_block.cuh).
//
// CTAs take block sides in rounds. A CTA has five grids:
//
//             0             1     2             3               4
//   read      G             P
//   coupled   G             P     U
//   whiten    B (or G)      F     U (or B)
//   gram                    F                   M, then Y       Z = T
//   of 2      S             F     T^2           Y, then Z       T
//   of 3      Y             F     T             Z               (old Z)
//   step 3+                 F     Y, T, Z and a free one change places
//   F R                     F     F' as float32 in a free one, until all of it has been checked to be finite
#include "side_item.cuh"
#include "wide_block.cuh"

namespace kradagrad::cuda {
namespace {

class WideSideUpdate {
 public:
  using Product = WideBlock::Product;

  __device__ __forceinline__ WideSideUpdate(const WideUpdate& in, SideItem& item)
      : in_(in.update), wide_(in.scratch, WideUpdate::kMatrices, kWideTiles), item_(item) {}

  __device__ __forceinline__ void run() {
    load_gradient();
    const float coupled = in_.rule.coupled ? couple() : 0;
    const bool ready = threadIdx.x == 0 && item_.prepare(in_.rule, coupled);
    const bool succeeded = __syncthreads_or(ready) && update_factor();
    if (threadIdx.x == 0) item_.finish(succeeded);
    __syncthreads();
  }

 private:
  static constexpr int kFactor = 1;

  __device__ __forceinline__ Grid unfolding() const { return wide_.grid(in_.rule.coupled ? 2 : 0); }
  __device__ __forceinline__ Grid whitened() const { return wide_.grid(in_.rule.coupled ? 0 : 2); }
  __device__ __forceinline__ int d_halves() const { return WideBlock::halves_of(item_.d); }
  __device__ __forceinline__ int d_tiles() const { return tiles_of(item_.d); }

  // Loads G, in the unit of its norm.
  __device__ __forceinline__ void load_gradient() const {
    const Matrix grad = item_.grad();
    const float most = WideBlock::largest(grad);
    const float unit = most > 0 && isfinite(most) ? power_of_two_below(most) : 1;
    float squares = 0;  // NaN if an element is NaN, which the maximum ignores
    WideBlock::split(grad, wide_.grid(0), inverse_power_of_two(unit),
                     [&](float value) { squares = fmaf(value, value, squares); });
    squares = WideBlock::sum(squares);
    if (threadIdx.x == 0) item_.norm = {squares, squares == 0 ? 0 : unit};
  }

  // Makes U = G P_r, or P_l G; returns its squared norm.
  __device__ __forceinline__ float couple() const {
    WideBlock::split(item_.root(), wide_.grid(1), 1, [](float) {});
    __syncthreads();
    const WideOperand root{wide_.grid(1), !item_.right, item_.root().bf16};
    const WideOperand grad{wide_.grid(0), item_.right, item_.grad().bf16};
    float squares = 0;
    wide_.product(item_.right ? root : grad, item_.right ? grad : root, WideBlock::halves_of(item_.m),
                  WideBlock::halves_of(item_.n), tiles_of(item_.k), false, [&](Product& c, int row, int col) {
                    squares += WideBlock::squares(c);
                    WideBlock::write(c, unfolding(), row, col);
                  });
    return WideBlock::sum(squares);
  }

  // F <- F R if that is finite; returns true if so.
  __device__ __forceinline__ bool update_factor() const {
    const float root = item_.update.rms * damping_root(in_.rule, item_.k);
    const float unit = power_of_two_below(root);  // F is stored times this
    load_factor(unit);
    const float squares = whiten(item_.update.scale * (item_.norm.unit / unit));
    if (threadIdx.x == 0) item_.update.whitened *= squares;
    const float norm = gram(root / unit, fmaxf(1, power_of_two_below(squares)));
    int z, free;
    const float restored = iterate(norm, z, free);
    return write_factor(restored / unit, z, free);
  }

  __device__ __forceinline__ void load_factor(float unit) const {
    if (item_.is_new) {
      start_factor(unit * start_of(in_.rule, item_.update.rms, item_.k));
    } else {
      WideBlock::split(item_.factor(), wide_.grid(kFactor), unit, [](float) {});
    }
    __syncthreads();
  }

  // Makes F = `start` times I.
  __device__ __forceinline__ void start_factor(float start) const {
    wide_.product({}, {}, d_halves(), d_halves(), 0, false, [&](Product& c, int row, int col) {
      WideBlock::add_diagonal(c, item_.d, start, row, col);
      WideBlock::write(c, wide_.grid(kFactor), row, col);
    });
  }

  // Makes B; returns its squared norm.
  __device__ __forceinline__ float whiten(float scale) const {
    const bool exact = item_.grad().bf16 && !in_.rule.coupled;
    float squares = 0;
    wide_.product({wide_.grid(kFactor), true, item_.exact_factor()}, {unfolding(), !item_.right, exact},
                  d_halves(), WideBlock::halves_of(item_.k), d_tiles(), false,
                  [&](Product& c, int row, int col) {
                    c.scale(scale);
                    squares += WideBlock::squares(c);
                    WideBlock::write(c, whitened(), row, col);
                  });
    return WideBlock::sum(squares);
  }

  // Makes M = B B^T + damped_updates weight damping^2 F^T F; returns its norm. No square overflows if M /
  // unit is near 1 or below.
  __device__ __forceinline__ float gram(float damping, float unit) const {
    const float damped = in_.rule.damped_updates * in_.rule.weight;
    const WideOperand f{wide_.grid(kFactor), true, item_.exact_factor()}, b{whitened(), false, false};
    float squares = 0;
    wide_.product(b, b, d_halves(), d_halves(), tiles_of(item_.k), true, [&](Product& c, int row, int col) {
      if (damped > 0) {
        const float factor = damping * damping * damped;
        c.scale(1 / factor);
        wide_.multiply(c, f, f, row, col, d_tiles());
        c.scale(factor);
      }
      WideBlock::write_symmetric(c, wide_.grid(3), row, col);
      c.scale(inverse_power_of_two(unit));
      squares += WideBlock::squares(c, row > col);
    });
    return unit * sqrtf(WideBlock::sum(squares));
  }

  // Calls use(c, row, col) for the tiles on and below the diagonal of a symmetric matrix.
  template <class Use>
  __device__ __forceinline__ void for_each_tile(const Use& use) const {
    wide_.product({}, {}, d_halves(), d_halves(), 0, true, use);
  }

  // Makes Z from M; returns the factor of F Z, and sets `z` to the grid of Z and `free` to a free one.
  __device__ __forceinline__ float iterate(float norm, int& z, int& free) const {
    const Iteration first(in_.rule, norm, 0);
    int y = 3, t = 4;
    z = 4, free = 0;
    for_each_tile([&](Product& c, int row, int col) {
      WideBlock::add_symmetric(c, 1 / first.t, wide_.grid(y), row, col);
      WideBlock::add_diagonal(c, item_.d, in_.rule.decay / first.t, row, col);
      WideBlock::write_symmetric(c, wide_.grid(y), row, col);
      c.scale(-first.b1);
      WideBlock::add_diagonal(c, item_.d, first.a1, row, col);
      WideBlock::write_symmetric(c, wide_.grid(z), row, col);
    });
    if (in_.rule.refine == 2) {
      square_second_step(first, Iteration(in_.rule, norm, 1));
      z = 3, free = 0;
      return first.restored;
    }
#pragma unroll 1
    for (int step = 1; step < in_.rule.refine; ++step) {
      const Iteration it(in_.rule, norm, step);
      const int other = t == z ? 2 : t;
      multiply(y, t, free, 1, 0);
      multiply(free, z, y, -it.b, it.a);  // the new T, in the place of Y
      multiply(y, z, other, 1, 0);
      const int old_z = z;
      t = y, y = free, z = other, free = old_z;
    }
    return first.restored;
  }

  // The second step if it is the last (resident_update.cu): S and T^2, then Z in the place of Y.
  __device__ __forceinline__ void square_second_step(const Iteration& first, const Iteration& second) const {
    const Grid s = wide_.grid(0), square = wide_.grid(2), y = wide_.grid(3), t = wide_.grid(4);
    wide_.product({y}, {t}, d_halves(), d_halves(), d_tiles(), true, [&](Product& c, int row, int col) {
      WideBlock::write_symmetric(c, s, row, col);
      c.scale(-first.b1);
      WideBlock::add_symmetric(c, first.a1, t, row, col);
      WideBlock::write_symmetric(c, square, row, col);
    });
    wide_.product({s}, {square}, d_halves(), d_halves(), d_tiles(), true, [&](Product& c, int row, int col) {
      c.scale(-second.b);
      WideBlock::add_symmetric(c, second.a, t, row, col);
      WideBlock::write_symmetric(c, y, row, col);
    });
  }

  // to = scale A B + diagonal I, symmetric.
  __device__ __forceinline__ void multiply(int a, int b, int to, float scale, float diagonal) const {
    wide_.product({wide_.grid(a)}, {wide_.grid(b)}, d_halves(), d_halves(), d_tiles(), true,
                  [&](Product& c, int row, int col) {
                    c.scale(scale);
                    WideBlock::add_diagonal(c, item_.d, diagonal, row, col);
                    WideBlock::write_symmetric(c, wide_.grid(to), row, col);
                  });
  }

  // Writes F' = scale F Z to the factor, if all of it is finite in the factor's dtype.
  __device__ __forceinline__ bool write_factor(float scale, int z, int free) const {
    const Matrix factor = item_.factor();
    auto* const kept = reinterpret_cast<float4*>(wide_.grid(free).tiles) + threadIdx.x;
    float failed = 0;  // stays 0 if all values are finite
    int place = 0;
    wide_.product({wide_.grid(kFactor), false, item_.exact_factor()}, {wide_.grid(z)}, d_halves(), d_halves(),
                  d_tiles(), false, [&](Product& c, int, int) {
                    c.scale(scale);
                    if (factor.bf16) c.for_each([](float& value) { value = rounded_bf16(value); });
                    c.for_each([&](float value) { failed = fmaf(value, 0, failed); });
#pragma unroll
                    for (int s = 0; s < 2 * Product::kSlots; ++s, place += kResidentThreads) {
                      const float (&half)[4] = c.c[s / 2][s % 2];
                      kept[place] = {half[0], half[1], half[2], half[3]};
                    }
                  });
    if (!(WideBlock::sum(failed) == 0)) return false;
    write_kept(factor, kept);
    return true;
  }

  // Writes the kept F' to the factor; every thread reads only the elements that it has kept.
  __device__ __forceinline__ void write_kept(const Matrix& factor, const float4* kept) const {
    Product c(threadIdx.x / 32, Lane(threadIdx.x));
#pragma unroll 1
    for (int tile = 0; tile < d_halves() * d_halves(); ++tile) {
      const int row = tile / d_halves() * WideBlock::kHalf * kTile;
      const int col = tile % d_halves() * WideBlock::kHalf * kTile;
#pragma unroll
      for (int s = 0; s < 2 * Product::kSlots; ++s, kept += kResidentThreads) {
        float (&half)[4] = c.c[s / 2][s % 2];
        half[0] = kept->x, half[1] = kept->y, half[2] = kept->z, half[3] = kept->w;
      }
      c.for_each_pair(
          [&](int i, int j, float (&pair)[2]) { factor.write(row + i, col + j, {pair[0], pair[1]}); });
    }
  }

  const ResidentUpdate& in_;
  WideBlock wide_;
  SideItem& item_;
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kResidentThreads, 1) wide_update(const WideUpdate in) {
  __shared__ SideItem item;
  for (int64_t next = blockIdx.x; find(item, in.update, next); next = item.index + gridDim.x) {
    WideSideUpdate(in, item).run();
  }
}

}  // namespace kradagrad::cuda
