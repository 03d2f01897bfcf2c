// What the kernels of whole blocks on chip share: the teams of a CTA, and a matrix on its way from global to
// shared memory.
//
// A CTA has 256 threads: one team for sides of up to 128, two for smaller ones, which do the same steps at
// the same time on a work item each. Barriers are the CTA's, so a team that has nothing to do goes along with
// a matrix of no rows.
#pragma once

#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_resident.h"
#include "tile_products.cuh"

namespace kradagrad::cuda {

// What every thread knows about its place, made anew whenever it is asked for: it takes no registers from
// products.
template <int kTiles>
struct Worker {
  static constexpr int kWarps = Team<kTiles>::kWarps;
  static constexpr int kTeamThreads = Team<kTiles>::kThreads;
  static constexpr int kTeams = teams_of(kTiles);
  static_assert(kTeams * kTeamThreads == kResidentThreads);

  static __device__ __forceinline__ int team() {
    return kTeams == 1 ? 0 : forget(threadIdx.x) / kTeamThreads;
  }
  static __device__ __forceinline__ int thread() {
    return forget(threadIdx.x) % kTeamThreads;
  }  // of the team
  static __device__ __forceinline__ int warp() { return thread() / 32; }
  static __device__ __forceinline__ Lane lane() { return Lane(thread()); }

  // A tile of the team's shared memory, of which it has `places`.
  static __device__ __forceinline__ Shared place(int places, int tile) {
    extern __shared__ float4 memory[];
    return shared_address(memory) + (team() * places + tile) * kTileBytes;
  }

  // The second team counts from the other end: schedulers that had less of the first team's tiles get more.
  static __device__ __forceinline__ LowerShare<kTiles> share() {
    return {team() % 2 == 0 ? warp() : kWarps - 1 - warp(), lane()};
  }
};

// A matrix of up to kTiles x kTiles tiles in the registers of its team, four neighbouring elements of a row
// at a time. Sixteen lanes hold an 8 x 8 matrix of a tile, the other sixteen the one to its right: they read
// 64 bytes of each of eight rows, and store to all banks.
template <int kTiles>
struct StagedMatrix {
  using Here = Worker<kTiles>;
  static constexpr int kTileFours = kTileFloats / 4;
  static constexpr int kCount = kTiles * kTiles * kTileFours / Team<kTiles>::kThreads;
  static constexpr int kThreads = Team<kTiles>::kThreads;
  static constexpr int kTilesAtOnce = kThreads / kTileFours, kSteps = kTiles / kTilesAtOnce;  // of a row
  int thread;
  Position first;  // of four[0]; the others follow at equal distances
  float four[kCount][4];

  __device__ __forceinline__ StagedMatrix() : thread(Here::thread()) {
    const int lane = thread % 32;
    first.row = thread % kTileFours / 32 * 8 + lane % 16 / 2;
    first.col = thread / kTileFours * kTile + lane / 16 * 8 + lane % 2 * 4;
  }

  // Starts to read a matrix, zeros outside of it, if it lies in whole quadruples of 16 bytes; what comes next
  // does not wait for it.
  __device__ __forceinline__ void start(const Matrix& from) {
    if (!from.in_fours()) return;
    const int64_t start = from.row_stride * first.row + first.col;
    if (from.bf16) {
      read_aligned(from, static_cast<const __nv_bfloat16*>(from.data) + start);
    } else {
      read_aligned(from, static_cast<const float*>(from.data) + start);
    }
  }

  // Ends that, or reads element by element through the shared memory `place`, which nobody reads any more;
  // after the next barrier it may be stored to.
  __device__ __forceinline__ void finish(const Matrix& from, Shared place) {
    if (!from.in_fours()) read_elements(from, place);
  }

  // Becomes `value` times I of [size, size].
  __device__ __forceinline__ void set_diagonal(float value, int size) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Position at = position(i);
#pragma unroll
      for (int j = 0; j < 4; ++j) four[i][j] = at.row == at.col + j && at.row < size ? value : 0;
    }
  }

  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) four[i / 4][i % 4] *= factor;
  }

  // Calls use(value) for each.
  template <class Use>
  __device__ __forceinline__ void for_each(const Use& use) const {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) use(four[i / 4][i % 4]);
  }

  // To a grid of kTiles x kTiles tiles.
  template <class Format>
  __device__ __forceinline__ void store(Shared tiles) const {
    const Shared tile = tiles + thread / kTileFours * kTileBytes;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Format::store_four(tile + i * kTilesAtOnce * kTileBytes, first.row, first.col % kTile, four[i]);
    }
  }

 private:
  __device__ __forceinline__ Position position(int i) const {
    return {first.row + i / kSteps * kTile, first.col + i % kSteps * kTilesAtOnce * kTile};
  }

  template <class Element>
  __device__ __forceinline__ void read_aligned(const Matrix& from, const Element* data) {
    __builtin_assume(__isGlobal(data));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Position at = position(i);
      const bool inside = at.row < from.rows && at.col < from.cols;
      read_four(data + i % kSteps * kTilesAtOnce * kTile, inside, four[i]);
      if (i % kSteps == kSteps - 1) data += kTile * from.row_stride;
    }
  }

  // Each thread reads what it has written itself.
  __device__ __forceinline__ void read_elements(const Matrix& from, Shared place) {
    place += thread * sizeof(float4);
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      const auto [row, col] = position(i);
      memory_at<float4>(place + i * kThreads * sizeof(float4)) = {
          from.read(row, col), from.read(row, col + 1), from.read(row, col + 2), from.read(row, col + 3)};
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float4 own = memory_at<const float4>(place + i * kThreads * sizeof(float4));
      four[i][0] = own.x, four[i][1] = own.y, four[i][2] = own.z, four[i][3] = own.w;
    }
  }
};

// Writes a product to a matrix. `place`: shared memory of kTiles^2 tiles that nobody reads any more, which
// pairs pass through that are not written as 8 bytes of float32.
template <int kTiles, class Product>
__device__ __forceinline__ void write_product(Product& product, const Matrix& to, Shared place) {
  if (!to.bf16 && to.aligned && to.cols % 2 == 0) {
    const Position first = product.position(0);
    float* data = static_cast<float*>(to.data) + to.row_stride * first.row + first.col;
    __builtin_assume(__isGlobal(data));
    product.for_each_row([&](int row, int first_col, const float (&pairs)[Product::kRowPairs][2]) {
#pragma unroll
      for (int i = 0; i < Product::kRowPairs; ++i) {
        const bool inside = row < to.rows && first_col + 8 * i < to.cols;
        if (inside) *reinterpret_cast<float2*>(data + 8 * i) = {pairs[i][0], pairs[i][1]};
      }
      data += 8 * to.row_stride;
    });
    return;
  }
  constexpr int kStep = Team<kTiles>::kThreads * sizeof(float2);
  const Shared first = place + Worker<kTiles>::thread() * sizeof(float2);
  Shared own = first;
  product.for_each_pair([&](int, int, float (&pair)[2]) {
    memory_at<float2>(own) = {pair[0], pair[1]};
    own += kStep;
  });
#pragma unroll 1
  for (int i = 0; i < Product::kPairs; ++i) {
    const Position at = product.position(i);
    to.write(at.row, at.col, memory_at<const float2>(first + i * kStep));
  }
}

// The index of this team's work item of `count`, one CTA for every kTeams; whether there is one.
template <int kTiles>
struct WorkItem {
  int64_t index;
  bool exists;
  __device__ __forceinline__ explicit WorkItem(int64_t count)
      : index(int64_t{blockIdx.x} * Worker<kTiles>::kTeams + Worker<kTiles>::team()), exists(index < count) {
    index = min(index, count - 1);
  }
};

}  // namespace kradagrad::cuda
