// mma.sync, ldmatrix, stmatrix and movmatrix.  Products are summed in double and rounded once; the hardware's
// order is not specified.
#include "bfloat.h"
#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

constexpr int kM = 16, kN = 8, kMaxK = 16;

// Eight columns as one vector: the compiler does not vectorise the loops in this shape.
using Row = double __attribute__((vector_size(8 * sizeof(double))));

// Operands in double: converting them inside the product loop would cost more than the products.
struct Fragments {
  double a[kM][kMaxK];
  Row b[kMaxK];
};

// op: 4 of d, the a, the b, 4 of c.  Element (row, column) of d and c: lane 4 (row % 8) + column / 2,
// register 2 (row / 8) + column % 2.
template <int kK>
void multiply(Machine& m, const Instruction& i, const Fragments& f, int first_c) {
  ++m.counters.mma[m.warp->scheduler()];
  Row sum[kM];
  for (int row = 0; row < kM; ++row) {
    Row s = {};
    for (int k = 0; k < kK; ++k) s += f.a[row][k] * f.b[k];
    sum[row] = s;
  }
  for (int r = 0; r < 4; ++r) {
    const float* c = m.lanes<float>(i.op[first_c + r]);
    for (int lane = 0; lane < kWarpSize; ++lane) sum[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] += c[lane];
  }
  for (int r = 0; r < 4; ++r) {
    float* d = m.lanes<float>(i.op[r]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      d[lane] = static_cast<float>(sum[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2]);
    }
  }
}

// A register of a holds two neighbours in k; registers go down 8 rows, then right 8 columns.
template <int kK>
void mma_bfloat(Machine& m, const Instruction& i, Mask) {
  Fragments f;
  constexpr int kA = kK / 4, kB = kK / 8;
  for (int r = 0; r < kA; ++r) {
    const u32* a = m.lanes<u32>(i.op[4 + r]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      double* pair = &f.a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8];
      pair[0] = from_bfloat(a[lane]);
      pair[1] = from_bfloat(a[lane] >> 16);
    }
  }
  for (int r = 0; r < kB; ++r) {
    const u32* b = m.lanes<u32>(i.op[4 + kA + r]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      f.b[lane % 4 * 2 + r * 8][lane / 4] = from_bfloat(b[lane]);
      f.b[lane % 4 * 2 + r * 8 + 1][lane / 4] = from_bfloat(b[lane] >> 16);
    }
  }
  multiply<kK>(m, i, f, 4 + kA + kB);
}

// One element a register; registers go down 8 rows, then right 4 columns.
template <int kK>
void mma_tf32(Machine& m, const Instruction& i, Mask) {
  Fragments f;
  constexpr int kA = kK / 2, kB = kK / 4;
  for (int r = 0; r < kA; ++r) {
    const u32* a = m.lanes<u32>(i.op[4 + r]);
    for (int lane = 0; lane < kWarpSize; ++lane)
      f.a[lane / 4 + r % 2 * 8][lane % 4 + r / 2 * 4] = from_tf32(a[lane]);
  }
  for (int r = 0; r < kB; ++r) {
    const u32* b = m.lanes<u32>(i.op[4 + kA + r]);
    for (int lane = 0; lane < kWarpSize; ++lane) f.b[lane % 4 + r * 4][lane / 4] = from_tf32(b[lane]);
  }
  multiply<kK>(m, i, f, 4 + kA + kB);
}

template <int kA, int kB>
void decode_mma(Decoder& d, Instruction& i) {
  if (!d.has("sync") || !d.has("aligned")) d.reject("mma needs .sync.aligned");
  d.expect(4);
  const int sizes[] = {4, kA, kB, 4};
  size_t at = 0;
  for (size_t k = 0; k < 4; ++k) {
    const auto names = d.vector(k);
    if (static_cast<int>(names.size()) != sizes[k]) d.reject("wrong number of fragment registers");
    for (std::string_view name : names) i.op[at++] = k == 0 ? d.destination(name, 32) : d.source(name, 32);
  }
  i.gather = Gather::kWarp;
}

// Lane l gives the address of row l % 8 of matrix l / 8, and gets two neighbours of row l / 4 of each matrix.
template <bool kTransposed>
void ldmatrix(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  m.addresses(i.address, address);
  const int rows = 8 * i.vector;
  count_shared(m, address, 16, rows == 32 ? kAllLanes : (1u << rows) - 1);
  u16 matrix[4][8][8];
  for (int row = 0; row < rows; ++row) {
    const u8* data = m.shared_access(address[row], 16, row, Use::kRead);
    if (data) {
      std::memcpy(matrix[row / 8][row % 8], data, 16);
    } else {
      std::memset(matrix[row / 8][row % 8], 0xff, 16);
    }
  }
  for (int k = 0; k < i.vector; ++k) {
    u32* d = m.lanes<u32>(i.op[k]);
    for_lanes(mask, [&](int lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const u32 low = kTransposed ? matrix[k][column][row] : matrix[k][row][column];
      const u32 high = kTransposed ? matrix[k][column + 1][row] : matrix[k][row][column + 1];
      d[lane] = low | high << 16;
    });
  }
}

// The inverse of ldmatrix: lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
void stmatrix(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  m.addresses(i.address, address);
  const int rows = 8 * i.vector;
  count_shared(m, address, 16, rows == 32 ? kAllLanes : (1u << rows) - 1);
  u16 matrix[4][8][8];
  for (int k = 0; k < i.vector; ++k) {
    const u32* values = m.lanes<u32>(i.op[k]);
    for_lanes(mask, [&](int lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      (kTransposed ? matrix[k][column][row] : matrix[k][row][column]) = static_cast<u16>(values[lane]);
      (kTransposed ? matrix[k][column + 1][row] : matrix[k][row][column + 1]) =
          static_cast<u16>(values[lane] >> 16);
    });
  }
  for (int row = 0; row < rows; ++row) {
    const u8* values = reinterpret_cast<const u8*>(matrix[row / 8][row % 8]);
    u8* data = m.shared_access(address[row], 16, row, Use::kWrite, values);
    if (data) std::memcpy(data, values, 16);
  }
}

// Every lane holds two neighbours of row l / 4 of a matrix, and gets those of its transpose.
void movmatrix(Machine& m, const Instruction& i, Mask mask) {
  u16 matrix[8][8];
  const u32* values = m.lanes<u32>(i.op[1]);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    matrix[lane / 4][lane % 4 * 2] = static_cast<u16>(values[lane]);
    matrix[lane / 4][lane % 4 * 2 + 1] = static_cast<u16>(values[lane] >> 16);
  }
  u32* d = m.lanes<u32>(i.op[0]);
  for_lanes(mask, [&](int lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    d[lane] = matrix[column][row] | static_cast<u32>(matrix[column + 1][row]) << 16;
  });
}

void decode_movmatrix(Decoder& d, Instruction& i) {
  if (!d.has("sync") || !d.has("aligned")) d.reject("movmatrix needs .sync.aligned");
  d.expect(2);
  i.op[0] = d.destination(0, 32);
  i.op[1] = d.source(1, 32);
  i.gather = Gather::kWarp;
}

template <int kMatrices, bool kStores>
void decode_matrices(Decoder& d, Instruction& i) {
  if (!d.has("sync") || !d.has("aligned")) d.reject("ldmatrix and stmatrix need .sync.aligned");
  d.expect(2);
  const auto names = d.vector(kStores ? 1 : 0);
  if (names.size() != kMatrices) d.reject("wrong number of registers");
  for (size_t k = 0; k < names.size(); ++k) {
    i.op[k] = kStores ? d.source(names[k], 32) : d.destination(names[k], 32);
  }
  i.vector = kMatrices;
  i.address = d.address(kStores ? 0 : 1, Space::kShared);
  i.gather = Gather::kWarp;
  d.origin().touches_memory = true;
  d.narrow_cells(Space::kShared, 16);
}

template <int kMatrices>
void add_matrices(OpcodeTable& t) {
  const std::string name = "matrix.m8n8.x" + std::to_string(kMatrices);
  t["ld" + name + ".b16"] = {"", ldmatrix<false>, decode_matrices<kMatrices, false>};
  t["ld" + name + ".trans.b16"] = {"", ldmatrix<true>, decode_matrices<kMatrices, false>};
  t["st" + name + ".b16"] = {"", stmatrix<false>, decode_matrices<kMatrices, true>};
  t["st" + name + ".trans.b16"] = {"", stmatrix<true>, decode_matrices<kMatrices, true>};
}

}  // namespace

void add_matrix_opcodes(OpcodeTable& t) {
  t["movmatrix.m8n8.trans.b16"] = {"", movmatrix, decode_movmatrix};
  t["mma.m16n8k16.row.col.f32.bf16.bf16.f32"] = {"", mma_bfloat<16>, decode_mma<4, 2>};
  t["mma.m16n8k8.row.col.f32.bf16.bf16.f32"] = {"", mma_bfloat<8>, decode_mma<2, 1>};
  t["mma.m16n8k8.row.col.f32.tf32.tf32.f32"] = {"", mma_tf32<8>, decode_mma<4, 2>};
  t["mma.m16n8k4.row.col.f32.tf32.tf32.f32"] = {"", mma_tf32<4>, decode_mma<2, 1>};
  add_matrices<1>(t);
  add_matrices<2>(t);
  add_matrices<4>(t);
}

}  // namespace ptx
