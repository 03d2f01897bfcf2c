// C = alpha A A' and its trace, for the executor's tests: A is n x k in bfloat16, rows of `stride` elements.
// 64 x 64 blocks of the lower triangle, mirrored; cp.async with two stages, ldmatrix, mma, shuffles, an
// atomic.
//
//   nvcc -arch=sm_80 -O3 -lineinfo -ptx rank_k.cu -o rank_k.ptx
//   sed -i -E 's#(\.file[^"]*")[^"]*/#\1#' rank_k.ptx
constexpr int kTile = 64, kDepth = 32, kRow = kDepth + 8, kStages = 2, kThreads = 128;

struct Arguments {
  const unsigned short* a;
  float* c;
  float* trace;
  int n, k, stride;
  float alpha;
};

using Stage = unsigned short[kTile][kRow];

__device__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Rows past n and columns past k become zeros.
__device__ void load(Stage& stage, const Arguments& p, int first_row, int first_column) {
  for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
    const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
    const bool inside = first_row + row < p.n && first_column + column < p.k;
    const void* from = inside ? p.a + (first_row + row) * p.stride + first_column + column : p.a;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(&stage[row][column])),
                 "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
  }
}

__device__ void fragment(unsigned (&r)[4], const unsigned short* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A warp's 32 x 32 part of the product over one stage.
__device__ void accumulate(float (&sum)[2][4][4], const Stage& left, const Stage& right, int row,
                           int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    unsigned a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      fragment(a[i], &left[row + 16 * i + lane % 16][k + lane / 16 * 8]);
      fragment(b[i], &right[column + 16 * i + lane % 16][k + lane / 16 * 8]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(sum[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) rank_k(const __grid_constant__ Arguments p) {
  __shared__ __align__(16) Stage left[kStages], right[kStages];
  const int block_row = blockIdx.y * kTile, block_column = blockIdx.x * kTile;
  if (block_column > block_row) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp / 2 * 32, column = warp % 2 * 32;
  float sum[2][4][4] = {};
  const int steps = (p.k + kDepth - 1) / kDepth;
  for (int step = -1; step < steps; ++step) {
    if (step + 1 < steps) {
      load(left[(step + 1) % kStages], p, block_row, (step + 1) * kDepth);
      load(right[(step + 1) % kStages], p, block_column, (step + 1) * kDepth);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (step < 0) continue;
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    accumulate(sum, left[step % kStages], right[step % kStages], row, column);
    __syncthreads();
  }
  float trace = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = block_row + row + i / 16 * 16 + i / 2 % 2 * 8 + lane / 4;
    const int c = block_column + column + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
    if (r >= p.n || c >= p.n) continue;
    const float value = p.alpha * sum[i / 16][i / 4 % 4][i % 4];
    if (r == c) trace += value;
    p.c[r * p.n + c] = value;
    if (block_row != block_column) p.c[c * p.n + r] = value;
  }
  for (int offset = 16; offset; offset /= 2) trace += __shfl_xor_sync(~0u, trace, offset);
  if (lane == 0 && block_row == block_column) atomicAdd(p.trace, trace);
}
