// The forward pass for every GPU since sm_80, after FlashAttention-2 (T. Dao, 2023): a warp owns rows, scores and outputs stay in its
// registers, and the weights of one product are the left operand of the next without leaving them.
//
//   block of threads = the rows of one item, 128 of them or (large head_dim, float32) 64
//   per chunk of keys:  copy the next chunk to shared memory (cp.async) | S = Q·Kᵀ | mask | online softmax in base 2 | O = O·alpha + P·V
//
// A row's sum over a chunk is added to its state at once, so that the bits do not depend on where a list is cut into steps.
#include <cstdint>

#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/lists.cuh"
#include "kernels/cuda/runtime.hpp"
#include "longspan/error.hpp"

namespace longspan::kernels::cuda {
namespace {

__device__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes from global to shared memory, or zeros.
__device__ void copy_16(void* to, const void* from, bool there) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8×8 matrices of 16-bit elements; each lane gives the address of one of their 32 rows.
__device__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// c[16×8] += a[16×16]·b[16×8]
template <typename T>
__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ void multiply<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ void multiply<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T>
__device__ uint32_t pack_pair(float low, float high);
template <>
__device__ uint32_t pack_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// NaN and ∞ among the values that a row looks at, counted by a matrix product: +∞ stands for 1, −∞ for 128, NaN for 16384, each exact in
// both types and so far apart that the at most 64 of a chunk do not run into each other.
template <typename T>
constexpr uint32_t kOne = 0x3c00;
template <>
constexpr uint32_t kOne<__nv_bfloat16> = 0x3f80;
template <typename T>
constexpr uint32_t kTwoTo7 = 0x5800;
template <>
constexpr uint32_t kTwoTo7<__nv_bfloat16> = 0x4300;
template <typename T>
constexpr uint32_t kTwoTo14 = 0x7400;
template <>
constexpr uint32_t kTwoTo14<__nv_bfloat16> = 0x4680;

template <typename T>
__device__ uint32_t count_code(uint32_t bits) {
  if ((bits & kExponent<T>) != kExponent<T>) return 0;
  return (bits & 0x7fff) != kExponent<T> ? kTwoTo14<T> : bits & 0x8000 ? kTwoTo7<T> : kOne<T>;
}
template <typename T>
__device__ uint32_t count_codes(uint32_t pair) {
  return count_code<T>(pair & 0xffff) | count_code<T>(pair >> 16) << 16;
}
// The sum with what was counted.
__device__ float with_nonfinite(float sum, float counted) {
  const int count = static_cast<int>(counted);
  if (count & 0x7f) sum += __int_as_float(0x7f800000);
  if (count >> 7 & 0x7f) sum -= __int_as_float(0x7f800000);
  return count >> 14 ? __int_as_float(0x7fc00000) : sum;
}

// Rows of kDim elements in shared memory. Eight rows that lie below each other are read at once, so their 16-byte columns are permuted by
// the row's number: they fall into different banks.
template <typename T, int kDim>
__device__ T* at(T* rows, int row, int column16) {
  return rows + row * kDim + (column16 ^ (row & 7)) * 8;
}

// Rows [0, there) of `from`, `stride` elements apart, each head_dim long, to kRows rows of kDim; the rest is zero.
template <typename T, int kDim, int kRows, int kThreads>
__device__ void copy_rows(T* to, const T* from, int64_t stride, int there, int head_dim) {
  constexpr int kColumns = kDim / 8;
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int row = i / kColumns, column = i % kColumns;
    const bool is_there = row < there && column * 8 < head_dim;
    copy_16(at<T, kDim>(to, row, column), is_there ? from + row * stride + column * 8 : from, is_there);
  }
}

template <int kDim>
struct Shape {
  static constexpr int kWarps = kDim <= 128 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kTiles = 1;                                     // of 16 rows, per warp
  static constexpr int kKeys = kDim <= 128 ? 64 : 32;                  // of a chunk
  static constexpr int kRows = kWarps * kTiles * 16;                   // of a block of threads
  static constexpr int kParts = kTile / kRows;                         // blocks of threads per item
  static constexpr int kSharedBytes = (kRows + 4 * kKeys) * kDim * 2;  // Q, and two chunks of K and V: 96 KiB at most
};

template <typename T, int kDim>
__global__ void __launch_bounds__(Shape<kDim>::kThreads) forward_mma(const __grid_constant__ DeviceStep arguments) {
  using S = Shape<kDim>;
  constexpr int kTiles = S::kTiles, kKeys = S::kKeys, kRows = S::kRows;
  constexpr uint32_t kAll = 0xffffffff;
  extern __shared__ __align__(128) unsigned char shared[];
  T* const q = reinterpret_cast<T*>(shared);
  T* const kv = q + kRows * kDim;  // [2][K, V][kKeys][kDim]

  const Step& step = arguments.step;
  const Item item = arguments.items[blockIdx.x / S::kParts];
  const Work work = step.work.data()[item.work];
  const int first_row = static_cast<int>(blockIdx.x % S::kParts) * kRows;
  if (first_row >= work.rows) return;
  const int rows = min(kRows, work.rows - first_row);
  const int head_dim = step.head_dim;
  const float scale = static_cast<float>(static_cast<double>(step.scale) * 1.4426950408889634);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = lane / 4, pair = lane % 4;  // in a 16×8 accumulator: rows group and group + 8, columns 2·pair and 2·pair + 1
  const int warp_row = warp * kTiles * 16;

  const int64_t unit = int64_t{2} * kTile * head_dim;
  const T* const pool = reinterpret_cast<const T*>(step.pool);
  const auto load = [&](const Chunk& chunk, int stage) {
    const T* from = pool + chunk.slot * unit + int64_t{chunk.begin} * head_dim;
    T* to = kv + stage * 2 * kKeys * kDim;
    copy_rows<T, kDim, kKeys, S::kThreads>(to, from, head_dim, chunk.end - chunk.begin, head_dim);
    copy_rows<T, kDim, kKeys, S::kThreads>(to + kKeys * kDim, from + int64_t{kTile} * head_dim, head_dim, chunk.end - chunk.begin,
                                           head_dim);
  };

  Walk<kKeys> walk(step, work, first_row, rows);
  const int64_t q_stride = int64_t{step.heads} * head_dim;
  copy_rows<T, kDim, kRows, S::kThreads>(
      q, reinterpret_cast<const T*>(step.q) + (work.q_row + first_row) * q_stride + int64_t{item.head} * head_dim, q_stride, rows,
      head_dim);
  if (!walk.done()) load(walk.chunk(), 0);
  commit_copies();

  float m[kTiles][2], l[kTiles][2], o[kTiles][kDim / 8][4];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp_row + 16 * t + 8 * h + group;
      const bool goes_on = !work.begins && row < rows;
      const int64_t state = goes_on ? (work.state_row + first_row + row) * step.heads + item.head : 0;
      m[t][h] = goes_on ? step.m[state] : kMinusInfinity;
      l[t][h] = goes_on ? step.l[state] : 0.0f;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const bool is_there = goes_on && n < head_dim / 8;
        const float2 value = is_there ? *reinterpret_cast<const float2*>(step.o + state * head_dim + 8 * n + 2 * pair) : float2{0, 0};
        o[t][n][2 * h] = value.x, o[t][n][2 * h + 1] = value.y;
      }
    }
  }

  for (int stage = 0; !walk.done(); stage ^= 1) {
    const Chunk chunk = walk.chunk();
    walk.advance();
    wait_for_copies();
    __syncthreads();  // the chunk is here, and nobody reads the other stage any more
    if (!walk.done()) load(walk.chunk(), stage ^ 1);
    commit_copies();

    const bool masked = is_masked<kKeys>(chunk);
    uint64_t allowed[kTiles][2];
    if (masked) {
      uint64_t any = 0;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          any |= allowed[t][h] = allowed_keys(chunk, step.masks.data(), first_row + warp_row + 16 * t + 8 * h + group);
      if (!__any_sync(kAll, any != 0)) continue;  // no row of this warp
    }
    const T* const k = kv + stage * 2 * kKeys * kDim;
    const T* const v = k + kKeys * kDim;

    float s[kTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) load_matrices(a[t], at<const T, kDim>(q, warp_row + 16 * t + lane % 16, 2 * d + lane / 16));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, at<const T, kDim>(k, 16 * n + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply<T>(s[t][2 * n], a[t], b[0], b[1]);
          multiply<T>(s[t][2 * n + 1], a[t], b[2], b[3]);
        }
      }
    }

#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint64_t bits = masked ? allowed[t][h] >> (2 * pair) : ~uint64_t{0};
        float maximum = m[t][h];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = s[t][n][2 * h + e];
            score = bits >> (8 * n + e) & 1 ? score * scale : kMinusInfinity;
            maximum = fmaxf(maximum, score);
          }
        }
        maximum = fmaxf(maximum, __shfl_xor_sync(kAll, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(kAll, maximum, 2));
        const float shift = finite_shift(maximum);
        const float alpha = exp2_fast(m[t][h] - shift);
        m[t][h] = maximum;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = s[t][n][2 * h + e];
            score = exp2_fast(score - shift);
            sum += score;
          }
        }
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        l[t][h] = fmaf(l[t][h], alpha, sum);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) o[t][n][2 * h] *= alpha, o[t][n][2 * h + 1] *= alpha;
      }
    }

    // The accumulators of two neighbouring 16×8 tiles of S are one 16×16 left operand.
    uint32_t p[kTiles][kKeys / 16][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[t][n][i] = pack_pair<T>(s[t][2 * n + i / 2][2 * (i % 2)], s[t][2 * n + i / 2][2 * (i % 2) + 1]);

    const auto value = [&](int n, int d) { return at<const T, kDim>(v, 16 * n + lane / 8 % 2 * 8 + lane % 8, 2 * d + lane / 16); };
    if (chunk.tile.form == Tile::Form::full || arguments.nonfinite_v == nullptr || arguments.nonfinite_v[chunk.slot] == 0) {
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
          uint32_t b[4];
          load_matrices_transposed(b, value(n, d));
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            multiply<T>(o[t][2 * d], p[t][n], b[0], b[1]);
            multiply<T>(o[t][2 * d + 1], p[t][n], b[2], b[3]);
          }
        }
      }
      continue;
    }

    // A partial tile with NaN or ∞ in V: 0·NaN is NaN, so the product takes the finite values only, and a second one counts what each row
    // looks at of the others.
    const auto multiply_carefully = [&](int n, int d, const uint32_t(&weights)[kTiles][4]) {
      uint32_t b[4], codes[4];
      load_matrices_transposed(b, value(n, d));
#pragma unroll
      for (int i = 0; i < 4; ++i) codes[i] = count_codes<T>(b[i]), b[i] = finite_only<T>(b[i]);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t looks[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto bits = static_cast<uint32_t>(allowed[t][i % 2] >> (2 * pair + 16 * n + i / 2 * 8));
          looks[i] = (bits & 1) * kOne<T> | (bits >> 1 & 1) * (kOne<T> << 16);
        }
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float counted[4] = {};
          multiply<T>(counted, looks, codes[2 * c], codes[2 * c + 1]);
          multiply<T>(o[t][2 * d + c], weights[t], b[2 * c], b[2 * c + 1]);
#pragma unroll
          for (int i = 0; i < 4; ++i) o[t][2 * d + c][i] = with_nonfinite(o[t][2 * d + c][i], counted[i]);
        }
      }
    };
    if constexpr (kDim <= 128) {
      // Rare, hence a loop: unrolled, it was a third of the time that this file takes to compile.
#pragma unroll 1
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t weights[kTiles][4];
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            weights[t][i] = p[t][0][i];
#pragma unroll
            for (int other = 1; other < kKeys / 16; ++other) weights[t][i] = n == other ? p[t][other][i] : weights[t][i];
          }
#pragma unroll
        for (int d = 0; d < kDim / 16; ++d) multiply_carefully(n, d, weights);
      }
    } else {  // no register is left for a loop: with one the kernel was 8 % slower, also where V is finite
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d)
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
          uint32_t weights[kTiles][4];
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) weights[t][i] = p[t][n][i];
          multiply_carefully(n, d, weights);
        }
    }
  }

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp_row + 16 * t + 8 * h + group;
      if (row >= rows) continue;
      if (work.ends) {
        const int64_t result = (work.q_row + first_row + row) * step.heads + item.head;
        if (pair == 0) arguments.lse[result] = natural_lse(m[t][h], l[t][h]);
        const Normalise normalise(l[t][h]);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          if (n >= head_dim / 8) continue;
          store_pair(arguments.out, arguments.output_type, result * head_dim + 8 * n + 2 * pair, normalise(o[t][n][2 * h]),
                     normalise(o[t][n][2 * h + 1]));
        }
      } else {
        const int64_t state = (work.state_row + first_row + row) * step.heads + item.head;
        if (pair == 0) step.m[state] = m[t][h], step.l[state] = l[t][h];
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
          if (n < head_dim / 8)
            *reinterpret_cast<float2*>(step.o + state * head_dim + 8 * n + 2 * pair) = float2{o[t][n][2 * h], o[t][n][2 * h + 1]};
      }
    }
  }
}

// float32: 64 rows, 256 threads as 16 × 16; thread (y, x) has the rows 4·y … 4·y + 3, of the scores the keys x, x + 16, and of O the
// columns 4·x + 64·i.
template <int kDim>
struct PlainShape {
  static constexpr int kThreads = 256, kRows = 64, kParts = 2;
  static constexpr int kKeys = kDim <= 128 ? 32 : 16;
  static constexpr int kStride = kDim + 4;  // floats between rows: rows that are read at once fall into different banks
  static constexpr int kPStride = kKeys + 1;
  static constexpr int kSharedBytes = ((kRows + 2 * kKeys) * kStride + kRows * kPStride) * 4;
};

template <int kDim>
__global__ void __launch_bounds__(256) forward_fma(const __grid_constant__ DeviceStep arguments) {
  using S = PlainShape<kDim>;
  constexpr int kKeys = S::kKeys, kStride = S::kStride, kPer = kKeys / 16;
  constexpr uint32_t kAll = 0xffffffff;
  extern __shared__ __align__(128) unsigned char shared[];
  float* const q = reinterpret_cast<float*>(shared);
  float* const k = q + S::kRows * kStride;
  float* const v = k + kKeys * kStride;
  float* const p = v + kKeys * kStride;

  const Step& step = arguments.step;
  const Item item = arguments.items[blockIdx.x / S::kParts];
  const Work work = step.work.data()[item.work];
  const int first_row = static_cast<int>(blockIdx.x % S::kParts) * S::kRows;
  if (first_row >= work.rows) return;
  const int rows = min(S::kRows, work.rows - first_row);
  const int head_dim = step.head_dim;
  const float scale = static_cast<float>(static_cast<double>(step.scale) * 1.4426950408889634);
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;

  const auto copy = [&](float* to, const float* from, int64_t stride, int count, int there) {
    for (int i = threadIdx.x; i < count * (kDim / 4); i += S::kThreads) {
      const int row = i / (kDim / 4), column = 4 * (i % (kDim / 4));
      const bool is_there = row < there && column < head_dim;
      copy_16(to + row * kStride + column, is_there ? from + row * stride + column : from, is_there);
    }
  };
  const int64_t q_stride = int64_t{step.heads} * head_dim;
  copy(q, reinterpret_cast<const float*>(step.q) + (work.q_row + first_row) * q_stride + int64_t{item.head} * head_dim, q_stride, S::kRows,
       rows);

  float m[4], l[4], o[4][kDim / 16];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const bool goes_on = !work.begins && 4 * y + r < rows;
    const int64_t state = goes_on ? (work.state_row + first_row + 4 * y + r) * step.heads + item.head : 0;
    m[r] = goes_on ? step.m[state] : kMinusInfinity;
    l[r] = goes_on ? step.l[state] : 0.0f;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      const int column = d / 4 * 64 + 4 * x + d % 4;
      o[r][d] = goes_on && column < head_dim ? step.o[state * head_dim + column] : 0.0f;
    }
  }

  const int64_t unit = int64_t{2} * kTile * head_dim;
  for (Walk<kKeys> walk(step, work, first_row, rows); !walk.done(); walk.advance()) {
    const Chunk& chunk = walk.chunk();
    __syncthreads();  // nobody reads the last chunk any more
    const float* from = reinterpret_cast<const float*>(step.pool) + chunk.slot * unit + int64_t{chunk.begin} * head_dim;
    copy(k, from, head_dim, kKeys, chunk.end - chunk.begin);
    copy(v, from + int64_t{kTile} * head_dim, head_dim, kKeys, chunk.end - chunk.begin);
    wait_for_copies();
    __syncthreads();

    float s[4][kPer] = {};
    for (int d = 0; d < kDim; d += 4) {
      float4 query[4], key[kPer];
#pragma unroll
      for (int r = 0; r < 4; ++r) query[r] = *reinterpret_cast<const float4*>(q + (4 * y + r) * kStride + d);
#pragma unroll
      for (int c = 0; c < kPer; ++c) key[c] = *reinterpret_cast<const float4*>(k + (x + 16 * c) * kStride + d);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < kPer; ++c) {
          s[r][c] = fmaf(query[r].x, key[c].x, s[r][c]);
          s[r][c] = fmaf(query[r].y, key[c].y, s[r][c]);
          s[r][c] = fmaf(query[r].z, key[c].z, s[r][c]);
          s[r][c] = fmaf(query[r].w, key[c].w, s[r][c]);
        }
      }
    }

    const bool masked = is_masked<kKeys>(chunk);
    const bool careful = chunk.tile.form != Tile::Form::full && arguments.nonfinite_v != nullptr && arguments.nonfinite_v[chunk.slot] != 0;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const uint64_t bits = masked ? allowed_keys(chunk, step.masks.data(), first_row + 4 * y + r) : ~uint64_t{0};
      float maximum = m[r];
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        s[r][c] = bits >> (x + 16 * c) & 1 ? s[r][c] * scale : kMinusInfinity;
        maximum = fmaxf(maximum, s[r][c]);
      }
      for (int lanes = 8; lanes > 0; lanes /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kAll, maximum, lanes));
      const float shift = finite_shift(maximum);
      const float alpha = exp2f(m[r] - shift);
      m[r] = maximum;
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        const float weight = exp2f(s[r][c] - shift);
        sum += weight;
        // Below zero: not allowed; a product with NaN must not be made.
        p[(4 * y + r) * S::kPStride + x + 16 * c] = careful && !(bits >> (x + 16 * c) & 1) ? -1.0f : weight;
      }
      for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
      l[r] = fmaf(l[r], alpha, sum);
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) o[r][d] *= alpha;
    }
    __syncwarp();  // the weights of a row are made and used by the same warp

    for (int key = 0; key < kKeys; ++key) {
      float weight[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) weight[r] = p[(4 * y + r) * S::kPStride + key];
#pragma unroll
      for (int d = 0; d < kDim / 16; d += 4) {
        const float4 value = *reinterpret_cast<const float4*>(v + key * kStride + d * 16 + 4 * x);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (careful && weight[r] < 0) continue;
          o[r][d] = fmaf(weight[r], value.x, o[r][d]);
          o[r][d + 1] = fmaf(weight[r], value.y, o[r][d + 1]);
          o[r][d + 2] = fmaf(weight[r], value.z, o[r][d + 2]);
          o[r][d + 3] = fmaf(weight[r], value.w, o[r][d + 3]);
        }
      }
    }
  }
  wait_for_copies();  // of the queries, when there was no chunk

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = 4 * y + r;
    if (row >= rows) continue;
    const int64_t result = (work.q_row + first_row + row) * step.heads + item.head;
    const int64_t state = (work.state_row + first_row + row) * step.heads + item.head;
    const Normalise normalise(l[r]);
    if (x == 0) {
      if (work.ends)
        arguments.lse[result] = natural_lse(m[r], l[r]);
      else
        step.m[state] = m[r], step.l[state] = l[r];
    }
#pragma unroll
    for (int d = 0; d < kDim / 16; d += 2) {
      const int column = d / 4 * 64 + 4 * x + d % 4;
      if (column >= head_dim) continue;
      if (work.ends)
        store_pair(arguments.out, arguments.output_type, result * head_dim + column, normalise(o[r][d]), normalise(o[r][d + 1]));
      else
        *reinterpret_cast<float2*>(step.o + state * head_dim + column) = float2{o[r][d], o[r][d + 1]};
    }
  }
}

template <typename Kernel>
void launch(Kernel kernel, int64_t blocks, int threads, int shared_bytes, const DeviceStep& step, cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "cudaFuncSetAttribute");
  constexpr int64_t kMostBlocks = int64_t{1} << 30;
  if (blocks > kMostBlocks) internal_error("a step has more items than a launch has blocks");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(step);
  check(cudaGetLastError(), "launch of the portable forward kernel");
}

template <typename T, int kDim>
void launch_mma(const DeviceStep& step, cudaStream_t stream) {
  using S = Shape<kDim>;
  launch(forward_mma<T, kDim>, step.item_count * S::kParts, S::kThreads, S::kSharedBytes, step, stream);
}
template <typename T>
void launch_mma(const DeviceStep& step, cudaStream_t stream) {
  const int head_dim = step.step.head_dim;
  if (head_dim <= 64) return launch_mma<T, 64>(step, stream);
  if (head_dim <= 128) return launch_mma<T, 128>(step, stream);
  launch_mma<T, 256>(step, stream);
}
template <int kDim>
void launch_fma(const DeviceStep& step, cudaStream_t stream) {
  using S = PlainShape<kDim>;
  launch(forward_fma<kDim>, step.item_count * S::kParts, S::kThreads, S::kSharedBytes, step, stream);
}

}  // namespace

void forward_portable(const DeviceStep& step, cudaStream_t stream) {
  if (step.item_count == 0) return;
  switch (step.step.type) {
    case ElementType::float16:
      return launch_mma<__half>(step, stream);
    case ElementType::bfloat16:
      return launch_mma<__nv_bfloat16>(step, stream);
    case ElementType::float32:
      if (step.step.head_dim <= 64) return launch_fma<64>(step, stream);
      if (step.step.head_dim <= 128) return launch_fma<128>(step, stream);
      return launch_fma<256>(step, stream);
  }
}

}  // namespace longspan::kernels::cuda
