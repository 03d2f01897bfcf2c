// The only inline PTX of the project: asynchronous copies global -> shared, wide stores, conversions, and the
// tensor cores' products. Everything here exists from sm_80 on.
#pragma once

#include <cstdint>

namespace kradagrad::cuda {

// An address in shared memory, in bytes; it takes half the registers and arithmetic of a pointer.
using Shared = uint32_t;

__device__ __forceinline__ Shared shared_address(const void* pointer) {
  return static_cast<Shared>(__cvta_generic_to_shared(pointer));
}

template <class T>
__device__ __forceinline__ T& memory_at(Shared address) {
  return *static_cast<T*>(__cvta_shared_to_generic(address));
}

// The same for global memory.
template <class T>
__device__ __forceinline__ T& memory_at(char* address) {
  __builtin_assume(__isGlobal(address));
  return *reinterpret_cast<T*>(address);
}

// Returns the same value, hidden from the compiler: values that depend on it are computed again instead of
// occupying registers from one phase of a kernel to the next.
__device__ __forceinline__ uint32_t forget(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Copies `bytes` (0 to kSize) from global to shared memory, with zeros up to kSize. kSize is 4, 8 or 16; both
// addresses are multiples of it.
template <int kSize>
__device__ __forceinline__ void copy_async(Shared to, const void* from, int bytes) {
  if constexpr (kSize == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(to), "l"(from), "r"(bytes),
                 "n"(kSize)
                 : "memory");
  }
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are still in flight.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Two floats rounded to bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t round_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// A float rounded to bf16.
__device__ __forceinline__ float rounded_bf16(float value) {
  return __uint_as_float(round_bf16x2(value, 0) << 16);
}

// A float rounded to tf32 (10 bits of mantissa).
__device__ __forceinline__ float round_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(value));
  return __uint_as_float(rounded);
}

// Loads four 8 x 8 matrices of bf16 from shared memory: lane 8 i + r passes the address of row r of matrix i,
// 16 bytes, and receives from every matrix, or its transpose, two neighbours of row lane / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// Transposes an 8 x 8 matrix of bf16, of which every lane has two neighbours of row lane / 4.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t words) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(transposed) : "r"(words));
  return transposed;
}

// d += a b for a [16, 16] and b [16, 8] of bf16, d [16, 8] of float32.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b for a [16, 8] and b [8, 8] of tf32, d [16, 8] of float32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Stores 8 or 16 bytes to global memory in one instruction; the compiler may split an assignment.
__device__ __forceinline__ void store_8(void* to, uint2 value) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(value.x),
               "r"(value.y)
               : "memory");
}

__device__ __forceinline__ void store_16(void* to, float4 value) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}

}  // namespace kradagrad::cuda
