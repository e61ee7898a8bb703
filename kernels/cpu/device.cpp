#include "kernels/cpu/device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/cpu/attention.hpp"

namespace longspan::kernels::cpu {

namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
constexpr int64_t kStagingBytes = int64_t{8} << 20;  // of key rows on their way into units

}  // namespace

std::string CpuDevice::name() const { return target_names(); }

// Units are read in an order that only the pattern knows: with small pages the CPU would look for a page as often as for keys.
Buffer CpuDevice::allocate(int64_t bytes) {
  const size_t whole = (static_cast<size_t>(std::max<int64_t>(1, bytes)) + kPage - 1) / kPage * kPage;
  const bool huge = whole >= 2 * kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, huge ? kHugePage : kPage, whole) != 0) throw std::bad_alloc();
  if (huge) madvise(memory, whole, MADV_HUGEPAGE);  // a wish: where the system has none, small pages do
  return Buffer(static_cast<std::byte*>(memory), {[](void* freed, void*) { std::free(freed); }});
}

void CpuDevice::clear(void* memory, int64_t bytes) {
  if (bytes > 0) std::memset(memory, 0, static_cast<size_t>(bytes));
}
void CpuDevice::upload(const void* from, int64_t bytes, void* to) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}
void CpuDevice::download(const void* from, int64_t bytes, void* to) { upload(from, bytes, to); }

void CpuDevice::load_rows(int64_t rows, int64_t row_bytes, const ReadRows& read, std::byte* to) {
  if (rows == 0) return;
  const std::byte* from = read(0, rows, to);
  if (from != to) upload(from, rows * row_bytes, to);
}

void CpuDevice::load_units(const KeyBlocks& blocks, const ReadKeys& read, const Pool& pool) {
  const int64_t row = static_cast<int64_t>(size_of(blocks.type)) * blocks.head_dim;
  const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kStagingBytes / (2 * kTile * blocks.kv_heads * row)));
  std::vector<std::byte> k, v;
  int64_t first_row = 0;
  for (size_t first = 0; first < blocks.rows.size(); first += at_once) {
    const auto part = blocks.rows.subspan(first, std::min(at_once, blocks.rows.size() - first));
    int64_t rows = 0;
    for (int32_t count : part) rows += count;
    KeyRows read_rows;
    if (blocks.in_place.empty()) {
      k.resize(static_cast<size_t>(rows * blocks.kv_heads * row));
      v.resize(k.size());
      read_rows = read(first_row, rows, k.data(), v.data());
    }
    first_row += rows;
    int64_t at = 0;
    for (size_t b = 0; b < part.size(); at += part[b++] * blocks.kv_heads * row) {
      const KeyRows from = blocks.in_place.empty() ? KeyRows{read_rows.k + at, read_rows.v + at} : blocks.in_place[first + b];
      for (int h = 0; h < blocks.kv_heads; ++h) {
        const int64_t slot = blocks.slots[(first + b) * static_cast<size_t>(blocks.kv_heads) + static_cast<size_t>(h)];
        std::byte* to_k = pool.units + slot * unit_bytes(blocks.type, blocks.head_dim);
        std::byte* to_v = to_k + kTile * row;
        for (int64_t r = 0; r < part[b]; ++r) {
          std::memcpy(to_k + r * row, from.k + (r * blocks.kv_heads + h) * row, static_cast<size_t>(row));
          std::memcpy(to_v + r * row, from.v + (r * blocks.kv_heads + h) * row, static_cast<size_t>(row));
        }
        const auto rest = static_cast<size_t>((kTile - part[b]) * row);
        std::memset(to_k + part[b] * row, 0, rest);
        std::memset(to_v + part[b] * row, 0, rest);
      }
    }
  }
}

void CpuDevice::store_rows(const Results& results, int64_t rows, int heads, int head_dim, const PlaceRows& place, const WriteRows& write) {
  if (rows == 0) return;
  const ResultRows to = place ? place(0, rows) : ResultRows{};
  if (to.o == nullptr) return write(0, rows, results.o, results.lse);
  upload(results.o, rows * heads * head_dim * static_cast<int64_t>(size_of(results.type)), to.o);
  if (to.lse != nullptr) upload(results.lse, rows * heads * 4, to.lse);
}

void CpuDevice::start(const Step& step, int64_t, const Pool&, const Results&) { start_forward(step, threads_); }

void CpuDevice::clear_states(int64_t count, int head_dim, float* m, float* l, float* o) {
  cpu::clear_states(count, head_dim, m, l, o, threads_);
}
void CpuDevice::finish(std::span<const Finish> all) {
  for (const Finish& one : all) cpu::finish(one, threads_);
}
void CpuDevice::merge(const Merge& merge) { cpu::merge(merge, threads_); }

namespace {

void pack_states(const StateBlock& block, float* packed) {
  float *m = packed, *l = m + block.states(), *o = l + block.states();
  for (int64_t row = block.first_row; row < block.first_row + block.rows; ++row) {
    for (int32_t head : block.head_list) {
      const int64_t state = row * block.heads + head;
      *m++ = block.m[state], *l++ = block.l[state];
      o = std::copy_n(block.o + state * block.head_dim, block.head_dim, o);
    }
  }
}

}  // namespace

void CpuDevice::merge_blocks(std::span<const MergeBlocks> all) {
  std::vector<float> packed;
  for (const auto& [blocks, into] : all) {
    for (const StateBlock& block : blocks) {
      const int64_t states = block.states();
      if (&block == &blocks.front()) {
        pack_states(block, into);
        continue;
      }
      packed.resize(static_cast<size_t>(block.packed_floats()));
      const float* from = packed.data();
      pack_states(block, packed.data());
      merge({block.head_dim, states, from, from + states, from + 2 * states, into, into + states, into + 2 * states});
    }
  }
}

}  // namespace longspan::kernels::cpu
