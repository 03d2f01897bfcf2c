// A matrix that is being moved from global to shared memory, through the team's registers or, asynchronously,
// through shared memory that only the copying thread reads.
#pragma once

#include "resident_block.cuh"

namespace kradagrad::cuda {

// The tiles of a kTiles x kTiles grid by which a matrix is staged, in the order of their places in shared
// memory: all of them, row by row.
template <int kTiles>
struct WholeGrid {
  static constexpr int kCount = kTiles * kTiles;
  static __device__ __forceinline__ Position tile(int place) { return {place / kTiles, place % kTiles}; }

  // The tile of the place `kFirst` + i, i < kNumber, where kNumber divides a row.
  template <int kFirst, int kNumber>
  static __device__ __forceinline__ Position tile_after(int i) {
    return {kFirst / kTiles, kFirst % kTiles + i};
  }
};

// The same for a symmetric matrix, which is stored as its lower tiles; a place beyond the last one is that of
// a tile below the grid.
template <int kTiles>
struct LowerGrid {
  static constexpr int kCount = lower_tiles(kTiles);
  static constexpr __device__ __forceinline__ Position tile(int place) {
    int row = 0;
    while (lower_tiles(row + 1) <= place) ++row;
    return {row, place - lower_tiles(row)};
  }

  template <int kFirst, int kNumber>
  static __device__ __forceinline__ Position tile_after(int i) {
    constexpr uint32_t kRows = packed(kFirst, kNumber, true), kCols = packed(kFirst, kNumber, false);
    return {static_cast<int>(kRows >> 8 * i & 255), static_cast<int>(kCols >> 8 * i & 255)};
  }

 private:
  // Rows or columns of consecutive places, 8 bits each.
  static constexpr __host__ __device__ uint32_t packed(int first, int number, bool rows) {
    uint32_t result = 0;
    for (int i = 0; i < number; ++i) {
      int row = 0;
      while (lower_tiles(row + 1) <= first + i) ++row;
      result |= static_cast<uint32_t>(rows ? row : first + i - lower_tiles(row)) << 8 * i;
    }
    return result;
  }
};

// A matrix is staged four neighbouring elements of a row at a time. Sixteen lanes have an 8 x 8 matrix of a
// tile, the other sixteen have the one to its right: they read 64 bytes of each of eight rows, and store to
// all banks. Two warps fill a tile.
template <int kTiles, class Grid = WholeGrid<kTiles>>
struct StagedMatrix {
  using Here = Worker<kTiles>;
  static constexpr int kThreads = Team<kTiles>::kThreads;
  static constexpr int kTileFours = kTileFloats / 4, kTilesAtOnce = kThreads / kTileFours;
  static constexpr int kCount = (Grid::kCount + kTilesAtOnce - 1) / kTilesAtOnce;
  float four[kCount][4];

  // Starts to read a matrix, with zeros outside it, if its rows are whole aligned groups of four elements.
  // Does not wait for the data.
  __device__ __forceinline__ void start(const Matrix& from) {
    if (!from.in_fours()) {
      clear();
    } else if (from.bf16) {
      read_aligned<__nv_bfloat16>(from);
    } else {
      read_aligned<float>(from);
    }
  }

  // Completes the read, or reads element by element through the shared memory `place`, which is free. After
  // the next barrier, `place` may be stored to.
  __device__ __forceinline__ void finish(const Matrix& from, Shared place) {
    if (!from.in_fours()) {
      read_elements(from, place);
    } else if (from.bf16) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        unpack(uint2{__float_as_uint(four[i][0]), __float_as_uint(four[i][1])}, four[i]);
      }
    }
  }

  // Starts to copy a matrix to `place`, if its rows are whole aligned groups of four elements.
  __device__ __forceinline__ void start_copy(const Matrix& from, Shared place) const {
    if (from.in_fours()) {
      if (from.bf16) {
        copy_aligned<__nv_bfloat16>(from, place);
      } else {
        copy_aligned<float>(from, place);
      }
    }
    copy_async_commit();
  }

  // Completes the copy, as `finish` completes a read.
  __device__ __forceinline__ void finish_copy(const Matrix& from, Shared place) {
    copy_async_wait<0>();
    if (!from.in_fours()) {
      read_elements(from, place);
    } else if (from.bf16) {
      read_groups<uint2>(place);
    } else {
      read_groups<float4>(place);
    }
  }

  // Sets all values to zero, also where nothing is read: else the compiler would preserve the old values.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) four[i / 4][i % 4] = 0;
  }

  // Becomes `value` times the identity [size, size].
  __device__ __forceinline__ void set_diagonal(float value, int size) {
    const Place place;
    unrolled<kCount>([&](auto i) {
      const Position at = element(place.template tile_of<i()>(), place.within);
#pragma unroll
      for (int j = 0; j < 4; ++j) four[i()][j] = at.row == at.col + j && at.row < size ? value : 0;
    });
  }

  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) four[i / 4][i % 4] *= factor;
  }

  // Calls use(value) for every element.
  template <class Use>
  __device__ __forceinline__ void for_each(const Use& use) const {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) use(four[i / 4][i % 4]);
  }

  // Stores the elements to the places of their tiles.
  template <class Format>
  __device__ __forceinline__ void store(Shared tiles) const {
    const Place place;
    const Shared tile = tiles + place.tile * kTileBytes;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Format::store_four(tile + i * kTilesAtOnce * kTileBytes, place.within.row, place.within.col, four[i]);
    }
  }

 private:
  // The four elements of a thread within its tile, which is one of kTilesAtOnce; `tile`: the place of its
  // first tile. Computed again at every use, so that it takes no registers from products.
  struct Place {
    int tile;
    Position within;
    __device__ __forceinline__ Place() {
      const uint32_t thread = Here::thread(), lane = thread % 32;
      tile = thread / kTileFours;
      within.row = thread % kTileFours / 32 * 8 + lane % 16 / 2;
      within.col = lane / 16 * 8 + lane % 2 * 4;
    }

    // The tile of the i-th four elements.
    template <int kIndex>
    __device__ __forceinline__ Position tile_of() const {
      return Grid::template tile_after<kIndex * kTilesAtOnce, kTilesAtOnce>(tile);
    }
  };

  static __device__ __forceinline__ Position element(const Position& tile, const Position& within) {
    return {tile.row * kTile + within.row, tile.col * kTile + within.col};
  }

  // The first of a thread's groups of four elements in `place`; they are kGroupStep apart.
  static __device__ __forceinline__ Shared first_four(Shared place) {
    return place + Here::thread() * sizeof(float4);
  }
  static constexpr int kGroupStep = kThreads * sizeof(float4);

  // Calls use(i, address, true if inside) for the groups of four of a matrix with contiguous rows. If the
  // matrix fills the grid, all groups are inside, and nothing is tested.
  template <class Element, class Use>
  __device__ __forceinline__ void for_each_four(const Matrix& from, const Use& use) const {
    if (from.rows == kTiles * kTile && from.cols == kTiles * kTile && kFillsGrid) {
      visit<Element>(from, [&](auto i, const Element* at, bool) { use(i, at, true); });
    } else {
      visit<Element>(from, use);
    }
  }

  // False if some places are below the grid, and thus outside every matrix.
  static constexpr bool kFillsGrid = Grid::kCount % kTilesAtOnce == 0;

  template <class Element, class Use>
  __device__ __forceinline__ void visit(const Matrix& from, const Use& use) const {
    const Place place;
    const Position within = place.within;
    const Element* const first = from.row<const Element>(within.row) + within.col;
    const int64_t rows = kTile * from.row_stride;
    unrolled<kCount>([&](auto i) {
      const Position at = place.template tile_of<i()>();
      const bool inside = at.row * kTile + within.row < from.rows && at.col * kTile + within.col < from.cols;
      use(i, first + at.row * rows + at.col * kTile, inside);
    });
  }

  template <class Element>
  __device__ __forceinline__ void read_aligned(const Matrix& from) {
    for_each_four<Element>(
        from, [&](auto i, const Element* at, bool inside) { read_packed(at, inside, four[i()]); });
  }

  // Reads four elements without converting them, which would wait for the data.
  static __device__ __forceinline__ void read_packed(const float* from, bool inside, float (&to)[4]) {
    read_four(from, inside, to);
  }
  static __device__ __forceinline__ void read_packed(const __nv_bfloat16* from, bool inside, float (&to)[4]) {
    const uint2 packed = inside ? *reinterpret_cast<const uint2*>(from) : uint2{};
    to[0] = __uint_as_float(packed.x), to[1] = __uint_as_float(packed.y), to[2] = to[3] = 0;
  }

  template <class Element>
  __device__ __forceinline__ void copy_aligned(const Matrix& from, Shared place) const {
    const Shared to = first_four(place);
    for_each_four<Element>(from, [&](auto i, const Element* at, bool inside) {
      constexpr int kSize = 4 * sizeof(Element);
      copy_async<kSize>(to + i() * kGroupStep, inside ? at : from.data, inside ? kSize : 0);
    });
  }

  // Each thread reads back only the elements that it has written.
  __device__ __forceinline__ void read_elements(const Matrix& from, Shared place) {
    const Place of_thread;
    const Shared to = first_four(place);
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      const auto [row, col] = element(Grid::tile(i * kTilesAtOnce + of_thread.tile), of_thread.within);
      memory_at<float4>(to + i * kGroupStep) = {from.read(row, col), from.read(row, col + 1),
                                                from.read(row, col + 2), from.read(row, col + 3)};
    }
    read_groups<float4>(place);
  }

  // Reads a thread's elements of float32 (float4) or bf16 (uint2).
  template <class Four>
  __device__ __forceinline__ void read_groups(Shared place) {
    const Shared from = first_four(place);
#pragma unroll
    for (int i = 0; i < kCount; ++i) unpack(memory_at<const Four>(from + i * kGroupStep), four[i]);
  }
};

}  // namespace kradagrad::cuda
