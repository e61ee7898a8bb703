// Warp-group matrix products of sm_90a (wgmma): 64 rows × N columns × 16 deep, float32 accumulators in the registers of 128 threads.
//
// Accumulator element 4·(column/8) + 2·(row half) + column%2 of a thread: row 16·warp + 8·(row half) + lane/4, column
// 8·(column/8) + 2·(lane%4) + column%2. A from registers is laid out alike, two 16-bit elements a register, so that rounded
// accumulators are the next product's A without any move (FlashAttention-3).
// PTX ISA, "wgmma.mma_async", "Matrix descriptor format".
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/hopper/barrier.cuh"

namespace longspan::kernels::cuda::hopper {

// Shared memory holds matrices as panels of 64 elements (128 bytes) a row, 16-byte pieces swizzled within 8 rows as the copy unit's
// SWIZZLE_128B writes them; 8 rows are 1,024 bytes and 1,024-aligned.
constexpr int kPanel = 64;

// Such a matrix as products take it. Rows along the product's M or N (K-major): the panel stride is not used, the next 16 of K are 32
// bytes on. Rows along K (MN-major, "transposed"): the panel stride leads to the next 64 of N, the next 16 of K are 16 rows on.
struct Matrix {
  uint32_t low;
  __device__ explicit Matrix(const void* first, uint32_t panel_stride = 16)
      : low((shared_address(first) & 0x3ffff) >> 4 | (panel_stride / 16) << 16) {}
  __device__ Matrix moved(uint32_t bytes) const {
    Matrix matrix = *this;
    matrix.low += bytes / 16;
    return matrix;
  }
  // The descriptor of what lies `bytes` on: 128-byte swizzle, 1,024 bytes from 8 rows to the next.
  __device__ uint64_t at(uint32_t bytes) const {
    uint64_t descriptor;
    asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(low + bytes / 16), "r"(0x40000000 | 1024 / 16));
    return descriptor;
  }
};

// Registers that a product reads or writes are final / may be read again.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `Pending` committed groups are under way.
template <int Pending>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// What this thread has written to or read from shared memory comes before what products and bulk copies do there once a barrier is passed.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The compiler must not move a use of these registers across this point: it does not know that products write them asynchronously.
template <int Count>
__device__ inline void pin(float (&registers)[Count]) {
#pragma unroll
  for (float& value : registers) asm volatile("" : "+f"(value)::"memory");
}
template <int Count>
__device__ inline void pin(uint32_t (&registers)[Count]) {
#pragma unroll
  for (uint32_t& value : registers) asm volatile("" : "+r"(value)::"memory");
}

#define LONGSPAN_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define LONGSPAN_D32(i) LONGSPAN_D8(i), LONGSPAN_D8(i + 8), LONGSPAN_D8(i + 16), LONGSPAN_D8(i + 24)
#define LONGSPAN_LIST32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LONGSPAN_LIST64 \
  LONGSPAN_LIST32       \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// %accumulate == 0 makes D = A·B of D += A·B.
#define LONGSPAN_SS(n, type, list, a, b, accumulate) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate     \
  ", 0;\n"                                           \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list "}, " a ", " b ", p, 1, 1, 0, 0;\n}"
#define LONGSPAN_RS(n, type, list, a, b)     \
  "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list "}, {" a "}, " b ", p, 1, 1, 1;\n}"

// d[0 … N/2) = or += A·Bᵀ: A 64 × 16, B N × 16, both K-major in shared memory.
template <typename Element, int N>
__device__ inline void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 128 && std::is_same_v<Element, __nv_bfloat16>) {
    asm volatile(LONGSPAN_SS("128", "bf16", LONGSPAN_LIST64, "%64", "%65", "%66")
                 : LONGSPAN_D32(0), LONGSPAN_D32(32)
                 : "l"(a), "l"(b), "r"(accumulate));
  } else if constexpr (N == 128) {
    asm volatile(LONGSPAN_SS("128", "f16", LONGSPAN_LIST64, "%64", "%65", "%66")
                 : LONGSPAN_D32(0), LONGSPAN_D32(32)
                 : "l"(a), "l"(b), "r"(accumulate));
  } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm volatile(LONGSPAN_SS("64", "bf16", LONGSPAN_LIST32, "%32", "%33", "%34") : LONGSPAN_D32(0) : "l"(a), "l"(b), "r"(accumulate));
  } else {
    asm volatile(LONGSPAN_SS("64", "f16", LONGSPAN_LIST32, "%32", "%33", "%34") : LONGSPAN_D32(0) : "l"(a), "l"(b), "r"(accumulate));
  }
}

// d += A·B: A 64 × 16 in registers (a0 … a3), B 16 × N MN-major in shared memory, N = 2·Count.
template <typename Element, int Count>
__device__ inline void multiply(float (&d)[Count], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b) {
  static_assert(Count == 32 || Count == 64);
  if constexpr (Count == 64 && std::is_same_v<Element, __nv_bfloat16>) {
    asm volatile(LONGSPAN_RS("128", "bf16", LONGSPAN_LIST64, "%64,%65,%66,%67", "%68")
                 : LONGSPAN_D32(0), LONGSPAN_D32(32)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
  } else if constexpr (Count == 64) {
    asm volatile(LONGSPAN_RS("128", "f16", LONGSPAN_LIST64, "%64,%65,%66,%67", "%68")
                 : LONGSPAN_D32(0), LONGSPAN_D32(32)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
  } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm volatile(LONGSPAN_RS("64", "bf16", LONGSPAN_LIST32, "%32,%33,%34,%35", "%36")
                 : LONGSPAN_D32(0)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
  } else {
    asm volatile(LONGSPAN_RS("64", "f16", LONGSPAN_LIST32, "%32,%33,%34,%35", "%36")
                 : LONGSPAN_D32(0)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
  }
}

#undef LONGSPAN_RS
#undef LONGSPAN_SS
#undef LONGSPAN_LIST64
#undef LONGSPAN_LIST32
#undef LONGSPAN_D32
#undef LONGSPAN_D8

// Registers per thread of the executing warp group, given back or taken.
template <int Registers>
__device__ inline void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace longspan::kernels::cuda::hopper
