// out = alpha a b + beta out by tiles [kRows, 2 vectors] of the output that stay in registers:
//
//   panel of b [kDepth, 2 vectors]   packed, on the stack: first-level cache
//   a                                read in place, element by element, each multiplied with a row of the
//                                    panel
//
// Every tile runs over the inner indices at which neither triangle is zero. The kernel is compiled for three
// vector widths; BLAS libraries choose theirs by the processor's vendor, and on some processors use vectors
// of half the width.
#include "products.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "multiversion.h"
#include "parallel.h"

namespace kradagrad::cpu {
namespace {

constexpr int64_t kStrip = 64;  // columns of a thread's work item

// One product of the batch.
template <class T>
struct Product {
  MatrixBatch<T> out, a, b;
  Triangles triangles;
  T alpha, beta;
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

template <class T>
void pack_panel(const MatrixBatch<T>& b, Range inner, Range cols, int64_t width, T* packed) {
  for (int64_t l = inner.begin; l < inner.end; ++l, packed += width) {
    const T* const row = b.data + l * b.row_stride + cols.begin * b.col_stride;
    if (b.col_stride == 1) {
      std::copy_n(row, cols.size(), packed);
    } else {
      for (int64_t j = 0; j < cols.size(); ++j) packed[j] = row[j * b.col_stride];
    }
    std::fill(packed + cols.size(), packed + width, T(0));
  }
}

// out[rows, cols] = alpha a b + beta out for one tile. `a` has pointers to the first inner elements of its
// rows; inner elements are `step` apart.
template <int kBytes, int kRows, int kVectors, class T>
KRADAGRAD_INLINE void multiply_tile(const T* const* a, int64_t step, const T* b, int64_t depth, T alpha,
                                    T beta, T* out, int64_t out_stride, int64_t rows, int64_t cols) {
  constexpr int kLanes = kBytes / sizeof(T), kCols = kLanes * kVectors;
  typedef T Vector __attribute__((vector_size(kBytes), may_alias));
  Vector sums[kRows][kVectors] = {};
  int64_t at = 0;
  for (int64_t l = 0; l < depth; ++l, at += step, b += kCols) {
    const Vector* const row = reinterpret_cast<const Vector*>(b);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const T value = a[i][at];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] += value * row[j];
    }
  }
  typedef T Loose __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  alignas(64) T last[kCols];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i, out += out_stride) {
    if (i >= rows) break;
    Loose* const whole = reinterpret_cast<Loose*>(cols == kCols ? out : last);
    if (cols < kCols && beta != 0) std::copy_n(out, cols, last);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      whole[j] = beta == 0 ? alpha * sums[i][j] : alpha * sums[i][j] + beta * whole[j];
    }
    if (cols < kCols) std::copy_n(last, cols, out);
  }
}

// Multiplies the columns of a panel, in chunks of the inner dimension.
template <int kBytes, int kRows, int kVectors, class T>
KRADAGRAD_INLINE void multiply_panel(const Product<T>& p, Range cols) {
  constexpr int kCols = kBytes / sizeof(T) * kVectors;
  alignas(64) T packed[kDepth * kCols];
  for (int64_t first = 0; first == 0 || first < p.b.rows; first += kDepth) {
    Range chunk{first, std::min(first + kDepth, p.b.rows)};
    if (p.triangles.b == Part::kUpper) chunk.end = std::min(chunk.end, cols.end);
    pack_panel(p.b, chunk, cols, kCols, packed);
    for (int64_t i = 0; i < p.out.rows; i += kRows) {
      const Range rows{i, std::min<int64_t>(i + kRows, p.out.rows)};
      if (p.triangles.out == Part::kUpper && rows.begin >= cols.end) break;
      Range inner = chunk;
      if (p.triangles.a == Part::kUpper) inner.begin = std::max(inner.begin, rows.begin);
      if (p.triangles.a == Part::kLower) inner.end = std::min(inner.end, rows.end);
      if (inner.size() <= 0) {
        if (first > 0) continue;
        inner = {chunk.begin, chunk.begin};  // only beta is applied
      }
      const T* a[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {  // rows beyond the last repeat it
        a[r] = p.a.data + std::min(i + r, rows.end - 1) * p.a.row_stride + inner.begin * p.a.col_stride;
      }
      multiply_tile<kBytes, kRows, kVectors>(a, p.a.col_stride, packed + (inner.begin - chunk.begin) * kCols,
                                             inner.size(), p.alpha, first > 0 ? T(1) : p.beta,
                                             p.out.data + i * p.out.row_stride + cols.begin, p.out.row_stride,
                                             rows.size(), cols.size());
    }
  }
}

// Multiplies the columns of a strip, panel by panel from the last: `out` may be `a` if b is upper triangular.
template <int kBytes, int kRows, class T>
KRADAGRAD_INLINE void multiply_strip(const Product<T>& p, Range cols) {
  constexpr int64_t kLanes = kBytes / sizeof(T), kCols = 2 * kLanes;
  for (int64_t j = cols.begin + (cols.size() - 1) / kCols * kCols; j >= cols.begin; j -= kCols) {
    const Range panel{j, std::min(j + kCols, cols.end)};
    if (panel.size() <= kLanes) multiply_panel<kBytes, kRows, 1>(p, panel);
    if (panel.size() > kLanes) multiply_panel<kBytes, kRows, 2>(p, panel);
  }
}

#if defined(__x86_64__) && defined(__GNUC__)
// Bytes of the processor's widest vectors that torch may use, which reads the same variable.
int vector_bytes() {
  const char* const limit = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view allowed = limit ? limit : "";
  if (allowed == "default" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 16;
  return allowed == "avx2" || !__builtin_cpu_supports("avx512f") ? 32 : 64;
}

template <class T>
__attribute__((target("avx512f,fma"))) void strip_of_64_bytes(const Product<T>& p, Range cols) {
  multiply_strip<64, 12>(p, cols);
}

template <class T>
__attribute__((target("avx2,fma"))) void strip_of_32_bytes(const Product<T>& p, Range cols) {
  multiply_strip<32, 6>(p, cols);
}
#define KRADAGRAD_X86
#endif

template <class T>
void strip_of_columns(const Product<T>& p, Range cols) {
#ifdef KRADAGRAD_X86
  static const int bytes = vector_bytes();
  if (bytes == 64) return strip_of_64_bytes(p, cols);
  if (bytes == 32) return strip_of_32_bytes(p, cols);
#endif
  multiply_strip<16, 6>(p, cols);
}

}  // namespace

template <class T>
void multiply(const MatrixBatch<T>& out, const MatrixBatch<T>& a, const MatrixBatch<T>& b,
              Triangles triangles, T alpha, T beta) {
  constexpr int64_t kThreadFlops = int64_t{1} << 22;
  if (out.count == 0 || out.rows == 0 || out.cols == 0) return;
  const int64_t strips = ceil_div(out.cols, kStrip);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t item = i / strips, first = i % strips * kStrip;
      const Product<T> product{
          out.items(item, 1), a.items(item, 1), b.items(item, 1), triangles, alpha, beta};
      strip_of_columns(product, {first, std::min(first + kStrip, out.cols)});
    }
  };
  const int64_t flops = 2 * out.rows * std::min(kStrip, out.cols) * std::max<int64_t>(b.rows, 1);
  if (out.data == a.data) return run(0, out.count * strips);
  torch::stable::parallel_for(0, out.count * strips, ceil_div(kThreadFlops, flops), run);
}

template void multiply(const MatrixBatch<float>&, const MatrixBatch<float>&, const MatrixBatch<float>&,
                       Triangles, float, float);
template void multiply(const MatrixBatch<double>&, const MatrixBatch<double>&, const MatrixBatch<double>&,
                       Triangles, double, double);

}  // namespace kradagrad::cpu
