// Products of matrices in shared memory, and their distribution to the warps of a team. A matrix has up to
// kTiles x kTiles tiles. Tiles of a place beyond the matrix are multiplied and written like all others,
// unless a warp has only such tiles: no row or column that exists depends on one that does not.
//
// Full products: warps in a 2 x kWarps/2 grid, each kRows x kCols tiles.
//
// Symmetric products: only the lower tiles. The four schedulers of an SM, each of which serves every fourth
// warp, get the same number of tiles. The digit is the warp's number:
//
// clang-format off
//   kTiles = 8   0                     kTiles = 6   0                kTiles = 4   0
//                0 0                                0 0                           0 0
//                1 0 1                              1 0 1                         2 3 1
//                1 0 1 1                            1 0 1 1                       2 3 1 1
//                4 4 2 7 2                          2 3 3 3 2
//                4 4 2 7 2 2                        2 3 3 3 2 2
//                5 5 3 7 6 6 3
//                5 5 3 7 6 6 3 3
//   tiles of warps 0 to 3, 4 to 7:  5, 4              5 5 5 6                       3 3 2 2
// clang-format on
//
// If two teams share a CTA, the second team numbers its warps in reverse.
#pragma once

#include "precision.cuh"

namespace kradagrad::cuda {

// The threads that process a block's side together.
template <int kTiles>
struct Team {
  static constexpr int kWarps = kTiles > 6 ? 8 : 4;
  static constexpr int kThreads = 32 * kWarps;
};

// unrolled calls use(i) for i() in [0, kCount); i() is known at compile time.
template <int kValue>
struct Constant {
  constexpr __device__ int operator()() const { return kValue; }
};

template <int kCount, int kFirst = 0, class Use>
__device__ __forceinline__ void unrolled(const Use& use) {
  if constexpr (kFirst < kCount) {
    use(Constant<kFirst>{});
    unrolled<kCount, kFirst + 1>(use);
  }
}

struct Position {
  int row, col;
};

// The position of the first element of the i-th of a lane's four pairs of a tile: halves of 8 columns, rows
// g, g + 8.
__device__ __forceinline__ Position position_of_pair(int tile_row, int tile_col, int i, Lane lane) {
  return {tile_row * kTile + lane.group + i % 2 * 8, tile_col * kTile + i / 2 * 8 + lane.member * 2};
}

// Shapes: the row tiles of A and B that a warp reads, and the two that make each slot of C. Row tile r of a
// symmetric operand is read along its rows up to k = r and along its columns from there on. The order changes
// at r or r + 1, the odd one of them, since a tile on the diagonal may be read either way. Row tiles that
// change together have the same rank, and the ranks change in ascending order as k grows. Row tiles of A are
// read and multiplied kAtOnce at a time.
//
// Rectangle: kRows x kCols tiles, row by row, where B or, with kOfA, A may be symmetric. If the number of row
// tiles that change is even, they change in pairs that start at even ones.
template <int kRows, int kCols, bool kOfA>
struct Rectangle {
  static constexpr int kA = kRows, kB = kCols, kSlots = kRows * kCols;
  static constexpr int kAtOnce = kRows % 2 == 0 ? 2 : kRows;  // the registers do not suffice for four
  static constexpr int kChanging = kOfA ? kRows : kCols, kTogether = kChanging % 2 == 0 ? 2 : 1;
  static constexpr int kRanks = kChanging / kTogether;
  static constexpr __device__ Slot slot(int s) { return {s / kCols, s % kCols}; }
  static constexpr __device__ int rank_a(int i) { return i / kTogether; }
  static constexpr __device__ int rank_b(int j) { return j / kTogether; }
};

// The tile of an operand of rank `kRank` in segment `kSegment`, in which all ranks below it have changed.
template <int kSegment, int kRank, class Grid>
__device__ __forceinline__ auto tile_at(const Grid& grid, int row, int k) {
  if constexpr (!Grid::kSymmetric) {
    return grid.at(row, k);
  } else if constexpr (kSegment <= kRank) {
    return grid.lower(row, k);
  } else {
    return grid.upper(row, k);
  }
}

// c += A B^T for the slots of a shape over k in [begin, end), with row tiles rows[i] of A and cols[j] of B.
template <class Multiply, class Shape, int kSegment, int kSlots, class A, class B>
__device__ __forceinline__ void add_segment(float (&c)[kSlots][2][4], A a, B b, const int (&rows)[Shape::kA],
                                            const int (&cols)[Shape::kB], int begin, int end, Exact exact) {
  const Lane lane(forget(threadIdx.x));  // computed here: addresses stay within the loop
#pragma unroll 1
  for (int k = begin; k < end; ++k) {
    typename Multiply::Fragment left[Shape::kA], right[Shape::kB];
    unrolled<Shape::kB>([&](auto j) {
      const auto tile = tile_at<kSegment, Shape::rank_b(j())>(b, cols[j()], k);
      right[j()].template read<true>(tile, lane);
    });
    unrolled<Shape::kA>([&](auto i) {
      const auto tile = tile_at<kSegment, Shape::rank_a(i())>(a, rows[i()], k);
      left[i()].template read<false>(tile, lane);
      constexpr int kFirst = i() / Shape::kAtOnce * Shape::kAtOnce, kEnd = i() + 1;
      if constexpr (kEnd == kFirst + Shape::kAtOnce) {
        Multiply::template add<Shape, kFirst, kEnd>(c, left, right, lane, exact);
      }
    });
  }
}

// The same over k in [0, depth).
template <class Multiply, class Shape, int kSlots, class A, class B>
__device__ __forceinline__ void add_product(float (&c)[kSlots][2][4], A a, B b, const int (&rows)[Shape::kA],
                                            const int (&cols)[Shape::kB], int depth, Exact exact) {
  constexpr int kSegments = A::kSymmetric || B::kSymmetric ? Shape::kRanks + 1 : 1;
  int begin = 0;
  unrolled<kSegments>([&](auto segment) {
    constexpr int kSegment = segment();
    int end = depth;
    if constexpr (kSegment + 1 < kSegments) {
      unrolled<Shape::kB>([&](auto j) {
        if (B::kSymmetric && Shape::rank_b(j()) == kSegment) end = min(depth, (cols[j()] | 1));
      });
      unrolled<Shape::kA>([&](auto i) {
        if (A::kSymmetric && Shape::rank_a(i()) == kSegment) end = min(depth, (rows[i()] | 1));
      });
    }
    add_segment<Multiply, Shape, kSegment>(c, a, b, rows, cols, begin, end, exact);
    begin = end;
  });
}

// A warp's part of a full product C = A B^T; all sizes are in tiles.
template <int kTiles, class Multiply>
struct FullProduct {
  static constexpr int kRows = kTiles / 2, kCols = 2 * kTiles / Team<kTiles>::kWarps;
  static constexpr int kSlots = kRows * kCols;
  int warp;
  Lane lane;
  float c[kSlots][2][4] = {};

  __device__ __forceinline__ FullProduct(int warp, Lane lane) : warp(warp), lane(lane) {}

  __device__ __forceinline__ int row(int i) const { return warp % 2 * kRows + i; }
  __device__ __forceinline__ int col(int j) const { return warp / 2 * kCols + j; }

  template <class A, class B>
  __device__ __forceinline__ void add(A a, B b, int rows, int cols, int depth, Exact exact = {}) {
    if (row(0) >= rows || col(0) >= cols) return;
    int row_tiles[kRows], col_tiles[kCols];
#pragma unroll
    for (int i = 0; i < kRows; ++i) row_tiles[i] = row(i);
#pragma unroll
    for (int j = 0; j < kCols; ++j) col_tiles[j] = col(j);
    add_product<Multiply, Rectangle<kRows, kCols, A::kSymmetric>>(c, a, b, row_tiles, col_tiles, depth,
                                                                  exact);
  }

  // Calls use(value) for every element.
  template <class Use>
  __device__ __forceinline__ void for_each(const Use& use) {
#pragma unroll
    for (int e = 0; e < 8 * kSlots; ++e) use(c[e / 8][e / 4 % 2][e % 4]);
  }

  __device__ __forceinline__ void scale(float factor) {
    for_each([&](float& value) { value *= factor; });
  }

  // Writes a grid of kTiles x kTiles tiles.
  __device__ __forceinline__ void write(Shared tiles) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int place = row(s / kCols) * kTiles + col(s % kCols);
      FormatOf<Multiply>::write(tiles + place * kTileBytes, c[s], lane);
    }
  }

  static constexpr int kPairs = 4 * kSlots;

  // Calls use(row, col, float (&)[2]) for the pairs (row, col), (row, col + 1) of this lane; they are zeros
  // beyond the matrix.
  template <class Use>
  __device__ __forceinline__ void for_each_pair(const Use& use) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const Position at = position(i);
      use(at.row, at.col, reinterpret_cast<float (&)[2]>(c[i / 4][i / 2 % 2][i % 2 * 2]));
    }
  }

  // Calls use(row, first col, pairs) for every row of this lane, 8 rows apart: pairs of columns, 8 apart.
  static constexpr int kRowPairs = 2 * kCols;
  template <class Use>
  __device__ __forceinline__ void for_each_row(const Use& use) {
    const Position first = position(0);
#pragma unroll
    for (int r = 0; r < 2 * kRows; ++r) {
      float pairs[kRowPairs][2];
#pragma unroll
      for (int i = 0; i < 2 * kRowPairs; ++i) {
        pairs[i / 2][i % 2] = c[r / 2 * kCols + i / 4][i / 2 % 2][r % 2 * 2 + i % 2];
      }
      use(first.row + 8 * r, first.col, pairs);
    }
  }

  // The position of the i-th pair.
  __device__ __forceinline__ Position position(int i) const {
    return position_of_pair(row(i / 4 / kCols), col(i / 4 % kCols), i % 4, lane);
  }
};

// Tiles (p, p), (q, p), (q, q) of neighbours p, q on the diagonal, and the tiles of rows p, q in kColumns
// earlier columns.
template <int kColumns>
struct Diagonal {
  static constexpr int kA = 2, kB = 2 + kColumns, kSlots = 3 + 2 * kColumns, kRanks = 1 + kColumns;
  static constexpr int kAtOnce = kA;
  static constexpr __device__ Slot slot(int s) { return s < 3 ? Slot{s > 0, s > 1} : Slot{s - 3, 2}; }
  static constexpr __device__ int rank_a(int) { return kColumns; }
  static constexpr __device__ int rank_b(int j) { return j < 2 ? kColumns : 0; }
};

// The same at the top of the diagonal, and two tiles below (q, q).
struct Corner {
  static constexpr int kA = 4, kB = 2, kSlots = 5, kRanks = 2;
  static constexpr int kAtOnce = kA;
  static constexpr __device__ Slot slot(int s) { return s < 3 ? Slot{s > 0, s > 1} : Slot{s - 1, 1}; }
  static constexpr __device__ int rank_a(int i) { return i / 2; }
  static constexpr __device__ int rank_b(int) { return 0; }
};

// kRows x kCols tiles below the diagonal, column by column; three columns start at an odd one.
template <int kRows, int kCols>
struct Below {
  static constexpr int kA = kRows, kB = kCols, kSlots = kRows * kCols, kAtOnce = kA;
  static constexpr int kColumnRanks = kCols / 2 + kCols % 2, kRanks = kColumnRanks + kRows / 2;
  static constexpr __device__ Slot slot(int s) { return {s % kRows, s / kRows}; }
  static constexpr __device__ int rank_a(int i) { return kColumnRanks + i / 2; }
  static constexpr __device__ int rank_b(int j) { return kCols % 2 == 0 ? j / 2 : (j + 1) / 2; }
};

// A warp's lower tiles of a symmetric matrix; slots 0 and 2 may be on the diagonal.
template <int kTiles>
struct LowerShare {
  static constexpr int kSlots = kTiles == 8 ? 5 : kTiles == 6 ? 6 : 3;
  static constexpr int kLeastSlots = kTiles == 8 ? 4 : kTiles == 6 ? 5 : 2;
  static constexpr uint32_t kMissing = 15;
  int warp;
  Lane lane;
  uint32_t rows = 0, cols = 0;  // of all slots, 4 bits each

  __device__ __forceinline__ LowerShare(int warp, Lane lane) : warp(warp), lane(lane) {
    visit([&](auto shape, const auto& row_tiles, const auto& col_tiles) {
      using Shape = decltype(shape);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const bool missing = s >= Shape::kSlots;
        rows |= (missing ? kMissing : row_tiles[missing ? 0 : Shape::slot(s).a]) << 4 * s;
        cols |= (missing ? kMissing : col_tiles[missing ? 0 : Shape::slot(s).b]) << 4 * s;
      }
    });
  }

  __device__ __forceinline__ int row(int slot) const { return rows >> 4 * slot & 15; }
  __device__ __forceinline__ int col(int slot) const { return cols >> 4 * slot & 15; }

  // A copy hidden from the compiler: values that depend on it stay within one phase of a kernel.
  __device__ __forceinline__ LowerShare forgotten() const {
    LowerShare copy = *this;
    copy.warp = forget(warp);
    copy.rows = forget(rows);
    copy.cols = forget(cols);
    return copy;
  }

  // Calls use(shape, rows, cols) with the row tiles of A and of B that are read.
  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) const {
    const int first = 2 * warp;
    if constexpr (kTiles == 8) {
      if (warp == 0) {
        use(Corner{}, Ints<4>{0, 1, 2, 3}, Ints<2>{0, 1});
      } else if (warp < 4) {
        use(Diagonal<1>{}, Ints<2>{first, first + 1}, Ints<3>{first, first + 1, warp == 1 ? 0 : 2});
      } else if (warp < 7) {
        const int row = warp == 4 ? 4 : 6, col = warp == 6 ? 4 : 0;
        use(Below<2, 2>{}, Ints<2>{row, row + 1}, Ints<2>{col, col + 1});
      } else {
        use(Below<4, 1>{}, Ints<4>{4, 5, 6, 7}, Ints<1>{3});
      }
    } else if constexpr (kTiles == 6) {
      if (warp == 0) {
        use(Corner{}, Ints<4>{0, 1, 2, 3}, Ints<2>{0, 1});
      } else if (warp < 3) {
        use(Diagonal<1>{}, Ints<2>{first, first + 1}, Ints<3>{first, first + 1, 0});
      } else {
        use(Below<2, 3>{}, Ints<2>{4, 5}, Ints<3>{1, 2, 3});
      }
    } else {
      if (warp < 2) {
        use(Diagonal<0>{}, Ints<2>{first, first + 1}, Ints<2>{first, first + 1});
      } else {
        use(Below<2, 1>{}, Ints<2>{2, 3}, Ints<1>{warp - 2});
      }
    }
  }

 private:
  template <int kCount>
  using Ints = int[kCount];
};

// A warp's lower tiles of a symmetric matrix, in registers.
template <int kTiles>
struct LowerTiles {
  using Share = LowerShare<kTiles>;
  static constexpr int kSlots = Share::kSlots;
  Share share;
  float c[kSlots][2][4] = {};

  __device__ __forceinline__ explicit LowerTiles(const Share& share) : share(share) {}

  static __device__ __forceinline__ Shared tile_of(Shared tiles, const Share& share, int slot) {
    return SymmetricTiles{tiles}.place(share.row(slot), share.col(slot));
  }

  __device__ __forceinline__ bool has(int slot) const {
    return slot < Share::kLeastSlots || share.row(slot) < kTiles;
  }

  // Writes the tiles. Elements above the diagonal are the mirror image of those below: rounding differences
  // between the two would grow with every refinement.
  template <class Format>
  __device__ __forceinline__ void write(Shared tiles) const {
    const Share current = share.forgotten();
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (!has(s)) continue;
      const Shared tile = tile_of(tiles, current, s);
      if (s % 2 == 0 && s < 3 && current.row(s) == current.col(s)) {
        Format::write_mirrored(tile, c[s], current.lane);
      } else {
        Format::write(tile, c[s], current.lane);
      }
    }
  }

  // Adds `factor` times a matrix that `write` has written.
  template <class Format>
  __device__ __forceinline__ void add_written(Shared tiles, float factor) {
    const Share current = share.forgotten();
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (has(s)) Format::add(c[s], factor, tile_of(tiles, current, s), current.lane);
    }
  }

  // Adds `value` to the diagonal's elements up to `size`.
  __device__ __forceinline__ void add_diagonal(int size, float value) {
#pragma unroll
    for (int s = 0; s < kSlots && s < 3; s += 2) {
      if (share.row(s) != share.col(s)) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Position at = position_of_pair(share.row(s), share.col(s), i, share.lane);
        if (at.row < size && at.row == at.col) c[s][i / 2][i % 2 * 2] += value;
        if (at.row < size && at.row == at.col + 1) c[s][i / 2][i % 2 * 2 + 1] += value;
      }
    }
  }

  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int e = 0; e < 8; ++e) c[s][e / 4][e % 4] *= factor;
    }
  }

  // Adds `factor` times another matrix.
  __device__ __forceinline__ void add(const LowerTiles& other, float factor) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        c[s][e / 4][e % 4] = fmaf(factor, other.c[s][e / 4][e % 4], c[s][e / 4][e % 4]);
      }
    }
  }

  // C += A B^T for the lower tiles of C.
  template <class Multiply, class A, class B>
  __device__ __forceinline__ void add(A a, B b, int tile_rows, int depth, Exact exact = {}) {
    if (share.row(0) >= tile_rows) return;
    share.forgotten().visit([&](auto shape, const auto& rows, const auto& cols) {
      add_product<Multiply, decltype(shape)>(c, a, b, rows, cols, depth, exact);
    });
  }

  // Sum of (scale value)^2 over the whole symmetric matrix.
  __device__ __forceinline__ float sum_of_squares(float scale) const {
    float sum = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      float squares = 0;
#pragma unroll
      for (int e = 0; e < 8; ++e) squares += scale * c[s][e / 4][e % 4] * (scale * c[s][e / 4][e % 4]);
      sum += share.row(s) == share.col(s) ? squares : 2 * squares;
    }
    return sum;
  }
};

}  // namespace kradagrad::cuda
