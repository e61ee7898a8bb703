// Copies of blocks from the memory of other GPUs of this host into this one's, over NVLink or PCIe, by few multiprocessors: nothing is
// gathered there or scattered here.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace longspan::kernels::cuda {

struct BlockCopy {
  const std::byte* from;
  std::byte* to;
};

// `copies[count]` (device memory), each of `block_bytes`, on Hopper by `multiprocessors` at most, twice as many where blocks have 8 KiB or
// less. Sets *begun (pinned host memory) to 1 once the copies have multiprocessors: of those that compute, which are started after that,
// they leave the rest.
void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int multiprocessors, volatile uint32_t* begun,
                 cudaStream_t stream);

// Keys and values of another GPU as its caller has them: [rows][kv_heads][head_bytes], aligned to 16 bytes.
struct PeerRows {
  const std::byte *k = nullptr, *v = nullptr;
  int64_t rows = 0;
};
constexpr size_t kMostRowPeers = 15;  // whose rows one launch copies: a kernel takes the tensor maps of no more as its arguments

constexpr int kQuarterRows = 64;

// Some quarters of a unit (kernels/kernel.hpp), which the kernel puts together out of rows: 0 and 1 are K of its first and last 64 rows, 2
// and 3 V. What the unit's block has no rows for becomes zero.
struct RowCopy {
  std::byte* to;
  int32_t first_row;        // of the unit,
  uint8_t rows;             // 1…128 of them
  uint8_t quarter_of_peer;  // the first quarter, and of whom of `peers`: quarter_of()
  uint16_t kv_head;
  static constexpr uint8_t quarter_of(size_t peer, int quarter) { return static_cast<uint8_t>(4 * peer + static_cast<size_t>(quarter)); }
};

// As copy_blocks(), of blocks of `quarters` (1 or 4) quarters each. `head_bytes`: a multiple of 16, 512 at most.
void copy_rows(std::span<const PeerRows> peers, int kv_heads, int head_bytes, const RowCopy* copies, int64_t count, int quarters,
               int multiprocessors, volatile uint32_t* begun, cudaStream_t stream);

}  // namespace longspan::kernels::cuda
