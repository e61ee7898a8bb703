// A case for the Hopper kernel: its pattern, its lists, all that a step needs in device memory, and the oracle on sampled rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/step.hpp"

using namespace longspan;
using namespace longspan::kernels;
using namespace longspan::kernels::cuda;

#define CHECK(call)                                                                          \
  do {                                                                                       \
    if (cudaError_t status = (call); status != cudaSuccess) {                                \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

// A pattern as the oracle sees it: a pair at a time.
struct Pattern {
  enum Kind { full, causal, window, blocks, hashed } kind = full;
  int width = 0;                 // window: keys seen, the row's own included; blocks: tokens of a block
  int columns = 0;               // blocks: key blocks in a row of the map
  const uint8_t* map = nullptr;  // blocks: 1 = allowed
  __host__ __device__ bool allows(int64_t i, int64_t j) const {
    switch (kind) {
      case full:
        return true;
      case causal:
        return j <= i;
      case window:
        return j <= i && j > i - width;
      case blocks:
        return map[i / width * columns + j / width];
      case hashed: {
        uint32_t x = static_cast<uint32_t>(i * 2654435761u ^ j * 40503u * 65537u);
        x ^= x >> 15, x *= 0x2c1b3c6d, x ^= x >> 12, x *= 0x297a2d39, x ^= x >> 15;
        return x % 5 == 0;
      }
    }
    return false;
  }
};

struct Case {
  std::string name;
  int64_t tokens;
  int heads, kv_heads, head_dim;
  ElementType type = ElementType::bfloat16;
  Pattern::Kind kind = Pattern::full;
  int width = 0;
  double density = 1;
  bool bits = false;          // every partial tile as bits
  int64_t poisoned_key = -1;  // V of this key: NaN in column 3, ∞ in column 5
  int halves = 0;             // of query blocks, in an item; 0: as the library chooses
};

template <typename T>
struct Device {
  T* data = nullptr;
  size_t count = 0;
  Device() = default;
  explicit Device(size_t n) : count(n) { CHECK(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    CHECK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(Device&& other) noexcept { *this = std::move(other); }
  Device& operator=(Device&& other) noexcept {
    std::swap(data, other.data), std::swap(count, other.count);
    return *this;
  }
  ~Device() { cudaFree(data); }
};

__device__ float normal(uint64_t index, uint32_t seed) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull, z = (z ^ z >> 27) * 0x94d049bb133111ebull, z ^= z >> 31;
  const float u = (static_cast<uint32_t>(z) + 1.0f) * 0x1p-32f, v = static_cast<uint32_t>(z >> 32) * 0x1p-32f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}
__device__ void put(uint16_t* at, float x, bool bfloat16) {
  if (bfloat16)
    *reinterpret_cast<__nv_bfloat16*>(at) = __float2bfloat16(x);
  else
    *reinterpret_cast<__half*>(at) = __float2half(x);
}
__device__ float get(const uint16_t* at, bool bfloat16) {
  return bfloat16 ? __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at)) : __half2float(*reinterpret_cast<const __half*>(at));
}
__global__ void fill_q(uint16_t* q, int64_t count, uint32_t seed, bool bfloat16) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    put(q + i, normal(i, seed), bfloat16);
}
// One block a (resident block, KV head): its unit, zero past the rows.
__global__ void fill_units(uint16_t* pool, const int32_t* slots, const int32_t* rows, int64_t resident, int D, uint32_t seed,
                           bool bfloat16) {
  const int64_t unit = blockIdx.y * resident + blockIdx.x;
  uint16_t* to = pool + int64_t{slots[unit]} * 2 * kTile * D;
  for (int i = threadIdx.x; i < 2 * kTile * D; i += blockDim.x)
    put(to + i, i / D % kTile < rows[blockIdx.x] ? normal(unit * 2 * kTile * D + i, seed) : 0.0f, bfloat16);
}

// The same keys and values as rows, [rows][kv_heads][D].
__global__ void fill_rows(uint16_t* k, uint16_t* v, const uint16_t* pool, const int32_t* slots, int64_t resident, int64_t rows,
                          int kv_heads, int D) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * kv_heads * D; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / D / kv_heads, head = i / D % kv_heads;
    const uint16_t* unit = pool + slots[head * resident + row / kTile] * int64_t{2} * kTile * D + row % kTile * D + i % D;
    k[i] = unit[0], v[i] = unit[kTile * D];
  }
}

__global__ void poison_key(uint16_t* pool, const int32_t* slots, int64_t resident, int D, int64_t key, bool bfloat16, uint8_t* flags) {
  const int32_t slot = slots[threadIdx.x * resident + key / kTile];
  uint16_t* v = pool + (int64_t{slot} * 2 * kTile + kTile + key % kTile) * D;
  put(v + 3, NAN, bfloat16), put(v + 5, INFINITY, bfloat16);
  flags[slot] = 1;
}

// One block a sampled (row, head): O and LSE in double.
__global__ void reference(const uint16_t* q, const uint16_t* pool, const int32_t* slots, int64_t resident, int64_t tokens, int heads,
                          int kv_heads, int D, double scale, bool bfloat16, Pattern pattern, const int64_t* rows, const int* sample_heads,
                          double* scratch, double* o, double* lse) {
  __shared__ double reduced[1024];
  const int64_t row = rows[blockIdx.x];
  const int head = sample_heads[blockIdx.x], kv = head / (heads / kv_heads), t = threadIdx.x;
  double* p = scratch + blockIdx.x * tokens;
  const auto unit = [&](int64_t j) { return pool + int64_t{slots[kv * resident + j / kTile]} * 2 * kTile * D + j % kTile * D; };
  double high = -INFINITY;
  for (int64_t j = t; j < tokens; j += blockDim.x) {
    double s = -INFINITY;
    if (pattern.allows(row, j)) {
      s = 0;
      const uint16_t *a = q + (row * heads + head) * D, *b = unit(j);
      for (int d = 0; d < D; ++d) s += static_cast<double>(get(a + d, bfloat16)) * get(b + d, bfloat16);
      s *= scale;
    }
    p[j] = s;
    high = fmax(high, s);
  }
  reduced[t] = high;
  __syncthreads();
  for (int n = blockDim.x / 2; n; n /= 2) {
    if (t < n) reduced[t] = fmax(reduced[t], reduced[t + n]);
    __syncthreads();
  }
  high = reduced[0];
  __syncthreads();
  double sum = 0;
  for (int64_t j = t; j < tokens; j += blockDim.x) p[j] = p[j] == -INFINITY ? 0 : exp(p[j] - high), sum += p[j];
  reduced[t] = sum;
  __syncthreads();
  for (int n = blockDim.x / 2; n; n /= 2) {
    if (t < n) reduced[t] += reduced[t + n];
    __syncthreads();
  }
  sum = reduced[0];
  __syncthreads();
  const int d = t % D, part = t / D, parts = blockDim.x / D;
  double out = 0;
  for (int64_t j = part; j < tokens; j += parts)
    if (p[j] != 0) out += p[j] * get(unit(j) + kTile * D + d, bfloat16);
  reduced[t] = out;
  __syncthreads();
  if (part == 0) {
    for (int i = 1; i < parts; ++i) out += reduced[i * D + d];
    o[blockIdx.x * D + d] = sum == 0 ? 0 : out / sum;
    if (d == 0) lse[blockIdx.x] = sum == 0 ? -INFINITY : high + log(sum);
  }
}

__global__ void digest(const uint32_t* words, int64_t count, unsigned long long* sum) {
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    mine += (words[i] + 0x9e3779b9ull) * ((i * 0xbf58476d1ce4e5b9ull) | 1);
  atomicAdd(sum, mine);
}

// longspan_queue() of the first build; all that are compared take the same items.
inline int64_t (*queue_of)(const Work*, int64_t, const Tile*, int64_t, int32_t, int32_t, int32_t, int64_t, Item*, int32_t*);

// Everything of one case in device memory.
struct Problem {
  Case what;
  int64_t blocks;
  Pattern pattern;
  std::vector<uint8_t> map_host;
  Device<uint8_t> map;
  std::vector<Tile> tiles;
  std::vector<Work> work;
  std::vector<Item> items;
  int32_t halves;
  std::vector<MaskBits> masks_host;
  Device<uint16_t> q, pool, k_rows, v_rows, out;
  Device<float> lse, m, l, o;
  Device<int32_t> slots, places_in_rows, key_rows;
  Device<uint32_t> counter;
  Device<Tile> tiles_d;
  Device<Work> work_d;
  Device<Item> items_d;
  Device<MaskBits> masks_d;
  Device<uint8_t> nonfinite, nonfinite_rows;
  int64_t pool_slots, guard = 64;
  double pairs = 0;  // allowed, one head

  explicit Problem(const Case& c) : what(c), halves(c.halves) {
    const bool bf = c.type == ElementType::bfloat16;
    blocks = (c.tokens + kTile - 1) / kTile;
    pattern.kind = c.kind, pattern.width = c.width;
    std::mt19937_64 random(17);
    if (c.kind == Pattern::blocks) {
      pattern.columns = static_cast<int>((c.tokens + c.width - 1) / c.width);
      map_host.resize(size_t(pattern.columns) * pattern.columns);
      for (auto& cell : map_host) cell = random() % 1000000 < c.density * 1e6;
      map = Device<uint8_t>(map_host);
    }
    Pattern host = pattern;
    host.map = map_host.data();
    pattern.map = map.data;
    build_lists(host);

    // Units at random slots of a pool with 8 units more, which hold NaN.
    pool_slots = blocks * c.kv_heads + 8;
    std::vector<int32_t> slot(pool_slots), rows(blocks);
    for (int64_t i = 0; i < pool_slots; ++i) slot[i] = static_cast<int32_t>(i);
    std::shuffle(slot.begin(), slot.end(), random);
    for (int64_t b = 0; b < blocks; ++b) rows[b] = static_cast<int32_t>(std::min<int64_t>(kTile, c.tokens - b * kTile));
    slot.resize(blocks * c.kv_heads);
    slots = Device<int32_t>(slot), key_rows = Device<int32_t>(rows);
    pool = Device<uint16_t>(pool_slots * 2 * kTile * c.head_dim);
    CHECK(cudaMemset(pool.data, 0xff, pool.count * 2));
    q = Device<uint16_t>(c.tokens * c.heads * c.head_dim);
    fill_q<<<1024, 256>>>(q.data, q.count, 1, bf);
    fill_units<<<dim3(blocks, c.kv_heads), 256>>>(pool.data, slots.data, key_rows.data, blocks, c.head_dim, 2, bf);
    out = Device<uint16_t>((c.tokens + guard) * c.heads * c.head_dim), lse = Device<float>((c.tokens + guard) * c.heads);
    counter = Device<uint32_t>(std::vector<uint32_t>{0});
    nonfinite = Device<uint8_t>(pool_slots);
    CHECK(cudaMemset(nonfinite.data, 0, pool_slots));
    if (c.poisoned_key >= 0) poison_key<<<1, c.kv_heads>>>(pool.data, slots.data, blocks, c.head_dim, c.poisoned_key, bf, nonfinite.data);
    std::vector<int32_t> places(blocks * c.kv_heads);
    for (int64_t i = 0; i < blocks * c.kv_heads; ++i) places[i] = KeysInRows::slot(i % blocks * kTile);
    std::vector<uint8_t> odd(blocks * c.kv_heads);
    if (c.poisoned_key >= 0) std::fill_n(odd.begin() + c.poisoned_key / kTile * c.kv_heads, c.kv_heads, uint8_t{1});
    places_in_rows = Device<int32_t>(places), nonfinite_rows = Device<uint8_t>(odd);
    k_rows = Device<uint16_t>(c.tokens * c.kv_heads * c.head_dim), v_rows = Device<uint16_t>(k_rows.count);
    fill_rows<<<1024, 256>>>(k_rows.data, v_rows.data, pool.data, slots.data, blocks, c.tokens, c.kv_heads, c.head_dim);
    upload();
    CHECK(cudaDeviceSynchronize());
  }

  void build_lists(const Pattern& host) {
    const Case& c = what;
    std::vector<double> cost(blocks);
    for (int64_t I = 0; I < blocks; ++I) {
      Work w;
      w.q_row = w.state_row = I * kTile;
      w.rows = static_cast<int32_t>(std::min<int64_t>(kTile, c.tokens - I * kTile));
      w.first_tile = static_cast<int64_t>(tiles.size());
      w.begins = w.ends = true;
      std::vector<Tile> full;
      int64_t J0 = 0, J1 = blocks;
      if (c.kind == Pattern::causal || c.kind == Pattern::window) J1 = I + 1;
      if (c.kind == Pattern::window) J0 = std::max<int64_t>(0, (I * kTile - c.width + 1)) / kTile;
      for (int64_t J = J0; J < J1; ++J) {
        const int keys = static_cast<int>(std::min<int64_t>(kTile, c.tokens - J * kTile));
        Tile tile;
        tile.key = static_cast<int32_t>(J);
        int64_t seen = 0;
        if (!c.bits && c.kind != Pattern::hashed && c.kind != Pattern::blocks) {
          const int64_t shift = (I - J) * kTile;  // i − j = row − key + shift
          const int64_t lo = c.kind == Pattern::full ? INT32_MIN : -shift, hi = c.kind == Pattern::window ? c.width - 1 - shift : INT32_MAX;
          if (lo < -kTile + 2 && hi > kTile - 2) {
            tile.form = Tile::Form::full, seen = int64_t{w.rows} * keys;
          } else {
            tile.form = Tile::Form::band, tile.band = {static_cast<int32_t>(lo), static_cast<int32_t>(hi)};
            tile.quarters = 0;
            for (int r = 0; r < w.rows; ++r)
              for (int k = 0; k < keys; ++k)
                if (r - k >= lo && r - k <= hi) tile.quarters |= 1 << (2 * (r / 64) + k / 64), ++seen;
          }
        } else if (c.kind == Pattern::blocks && !c.bits && c.width >= 16) {
          uint64_t subtiles = 0;
          tile.quarters = 0;
          for (int a = 0; a < 8; ++a)
            for (int b = 0; b < 8; ++b) {
              const int64_t i = I * kTile + 16 * a, j = J * kTile + 16 * b;
              if (i >= c.tokens || j >= c.tokens || !host.allows(i, j)) continue;
              subtiles |= uint64_t{1} << (8 * a + b), tile.quarters |= 1 << (2 * (a / 4) + b / 4);
              seen += std::min<int64_t>(16, c.tokens - i) * std::min<int64_t>(16, c.tokens - j);
            }
          if (subtiles == ~uint64_t{0}) {
            tile.form = Tile::Form::full, tile.count = 1, tile.quarters = 0xf;
          } else {
            tile.form = Tile::Form::subtiles, tile.subtiles = subtiles;
          }
        } else {
          MaskBits bits;
          tile.quarters = 0;
          for (int r = 0; r < w.rows; ++r)
            for (int k = 0; k < keys; ++k)
              if (host.allows(I * kTile + r, J * kTile + k))
                bits.words[2 * r + k / 64] |= uint64_t{1} << (k % 64), tile.quarters |= 1 << (2 * (r / 64) + k / 64), ++seen;
          tile.form = Tile::Form::bits, tile.mask = static_cast<int64_t>(masks_host.size());
          if (seen) masks_host.push_back(bits);
        }
        if (!seen) continue;
        pairs += static_cast<double>(seen), cost[I] += seen;
        if (tile.form != Tile::Form::full) {
          tiles.push_back(tile);
        } else if (!full.empty() && full.back().key + full.back().count == J) {
          ++full.back().count;
        } else {
          full.push_back(Tile::full_run(static_cast<int32_t>(J), 1));
        }
      }
      tiles.insert(tiles.end(), full.begin(), full.end());
      std::sort(tiles.begin() + w.first_tile, tiles.end(), [](const Tile& a, const Tile& b) { return a.key < b.key; });
      w.tile_count = static_cast<int64_t>(tiles.size()) - w.first_tile;
      work.push_back(w);
    }
    std::vector<int32_t> dear(blocks);
    std::iota(dear.begin(), dear.end(), 0);
    std::stable_sort(dear.begin(), dear.end(), [&](int a, int b) { return cost[a] > cost[b]; });
    // One Work per KV head, dearest first.
    std::vector<Work> all;
    for (int32_t i : dear)
      for (int kv = 0; kv < c.kv_heads; ++kv) all.push_back(work[i]), all.back().kv_head = kv;
    work = std::move(all);
    items.resize(work.size() * (c.heads / c.kv_heads));
    items.resize(queue_of(work.data(), static_cast<int64_t>(work.size()), tiles.data(), static_cast<int64_t>(tiles.size()), c.heads,
                          c.kv_heads, c.head_dim, blocks, items.data(), &halves));
  }
  void upload() {
    tiles_d = Device<Tile>(tiles), work_d = Device<Work>(work), items_d = Device<Item>(items), masks_d = Device<MaskBits>(masks_host);
  }
  // `in_rows`: keys are not in the pool.
  DeviceStep step(bool in_rows = false) const {
    DeviceStep s;
    s.step.type = what.type, s.step.heads = what.heads, s.step.kv_heads = what.kv_heads, s.step.head_dim = what.head_dim;
    s.step.scale = 1 / std::sqrt(static_cast<float>(what.head_dim));
    s.step.q = reinterpret_cast<std::byte*>(q.data), s.step.pool = reinterpret_cast<std::byte*>(pool.data);
    s.step.slots = slots.data, s.step.key_rows = key_rows.data, s.step.resident = blocks;
    s.step.work = {work_d.data, work_d.count}, s.step.tiles = {tiles_d.data, tiles_d.count}, s.step.masks = {masks_d.data, masks_d.count};
    s.step.m = m.data, s.step.l = l.data, s.step.o = o.data;
    s.output_type = what.type, s.out = reinterpret_cast<std::byte*>(out.data), s.lse = lse.data;
    s.q_rows = what.tokens, s.pool_slots = pool_slots, s.items = items_d.data, s.item_count = static_cast<int64_t>(items_d.count);
    s.counter = counter.data, s.halves_at_a_time = halves, s.nonfinite_v = nonfinite.data;
    if (in_rows) {
      s.step.slots = places_in_rows.data;
      s.step.in_rows = {reinterpret_cast<std::byte*>(k_rows.data), reinterpret_cast<std::byte*>(v_rows.data), what.tokens,
                        nonfinite_rows.data};
    }
    for (const Work& one : work)
      if (!one.begins) s.state_rows = std::max(s.state_rows, one.state_row + one.rows);
    return s;
  }
  void poison() {
    CHECK(cudaMemset(out.data, 0xff, out.count * 2));
    CHECK(cudaMemset(lse.data, 0xff, lse.count * 4));
  }
  unsigned long long bits() {
    Device<unsigned long long> sum(1);
    CHECK(cudaMemset(sum.data, 0, 8));
    digest<<<512, 256>>>(reinterpret_cast<uint32_t*>(out.data), out.count / 2, sum.data);
    digest<<<512, 256>>>(reinterpret_cast<uint32_t*>(lse.data), lse.count, sum.data);
    unsigned long long host;
    CHECK(cudaMemcpy(&host, sum.data, 8, cudaMemcpyDeviceToHost));
    return host;
  }
  double flops() const { return 4.0 * pairs * what.head_dim * what.heads; }
};
