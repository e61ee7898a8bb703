// As runtime.hpp beside it.
#pragma once

#include <span>

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

struct BlockCopy {
  const std::byte* from;
  std::byte* to;
};

// Does `copy(i)` for each of `count`, some of them at a time.
template <typename Copy>
void copy_each(int64_t count, volatile uint32_t* begun, cudaStream_t stream, Copy copy) {
  stream->ask([begun] { *begun = 1; });
  constexpr int64_t kPiece = 16;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    stream->ask([copy, begin, end = std::min(count, begin + kPiece)] {
      for (int64_t i = begin; i < end; ++i) copy(i);
    });
  }
}

inline void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int, volatile uint32_t* begun, cudaStream_t stream) {
  if (count == 0) return;
  copy_each(count, begun, stream,
            [copies, block_bytes](int64_t i) { std::memcpy(copies[i].to, copies[i].from, static_cast<size_t>(block_bytes)); });
}

struct PeerRows {
  const std::byte *k = nullptr, *v = nullptr;
  int64_t rows = 0;
};
constexpr size_t kMostRowPeers = 15;
constexpr int kQuarterRows = 64;

struct RowCopy {
  std::byte* to;
  int32_t first_row;
  uint8_t rows, quarter_of_peer;
  uint16_t kv_head;
  static constexpr uint8_t quarter_of(size_t peer, int quarter) { return static_cast<uint8_t>(4 * peer + static_cast<size_t>(quarter)); }
};

inline void copy_rows(std::span<const PeerRows> peers, int kv_heads, int head_bytes, const RowCopy* copies, int64_t count, int quarters,
                      int, volatile uint32_t* begun, cudaStream_t stream) {
  const std::vector<PeerRows> from(peers.begin(), peers.end());
  copy_each(count, begun, stream, [from, kv_heads, head_bytes, copies, quarters](int64_t i) {
    const RowCopy& copy = copies[i];
    const PeerRows& rows = from[copy.quarter_of_peer / 4U];
    const int first = copy.quarter_of_peer % 4;
    std::byte* to = copy.to;
    for (int quarter = first; quarter < first + quarters; ++quarter) {
      const std::byte* const base = quarter / 2 == 0 ? rows.k : rows.v;
      for (int row = quarter % 2 * kQuarterRows, last = row + kQuarterRows; row < last; ++row, to += head_bytes) {
        if (row < copy.rows)
          std::memcpy(to, base + (int64_t{copy.first_row + row} * kv_heads + copy.kv_head) * head_bytes, static_cast<size_t>(head_bytes));
        else
          std::memset(to, 0, static_cast<size_t>(head_bytes));
      }
    }
  });
}

}  // namespace longspan::kernels::cuda
