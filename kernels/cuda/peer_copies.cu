// On Hopper, pieces of blocks go through shared memory by its copy unit: each warp has a place for one, asks for it, and when it is there
// for its way to memory. What is on its way must be as much as the link moves in a round trip: with 8 multiprocessors 12 warps and 16 KiB
// each are 1.5 MiB, 4 us at 400 GB/s. Of pieces of half as many bytes, twice as many multiprocessors copy. On other chips threads copy
// (rows, too, which only a Hopper shows, but to any that shares its host).
#include "kernels/cuda/peer_copies.hpp"

#include <algorithm>

#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/hopper/copy.cuh"
#include "kernels/cuda/hopper/tensor_map.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {
namespace {

constexpr int kPiece = 16 << 10;  // bytes
constexpr int kWarps = 12;        // of a block of threads, each with a place for a piece
constexpr int kThreads = 32 * kWarps;
constexpr int64_t kMostMore = 2;
constexpr int64_t kMostOfThreads = 64;  // blocks of threads that copy by themselves
static_assert(2 * kQuarterRows == kTile);

// Two kinds of copies, BlockPieces and RowPieces, cut into numbered pieces: all[number] says where one goes, ask_for() has the copy unit
// bring it to a warp's place, where clear_rest() may change it; word() is for threads, 16 bytes of it.

struct BlockPieces {
  const BlockCopy* copies;
  int64_t count, block_bytes;
  int of_block;

  struct Piece {
    const std::byte* from;
    std::byte* to;
    uint32_t bytes;
  };
  __device__ Piece operator[](int64_t number) const {
    const BlockCopy copy = copies[number / of_block];
    const int64_t at = number % of_block * kPiece;
    return {copy.from + at, copy.to + at, static_cast<uint32_t>(min(int64_t{kPiece}, block_bytes - at))};
  }
#if __CUDA_ARCH__ >= 900
  __device__ void ask_for(const Piece& piece, void* place, uint64_t* full) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(hopper::shared_address(place)),
        "l"(piece.from), "r"(piece.bytes), "r"(hopper::shared_address(full))
        : "memory");
  }
  __device__ void clear_rest(const Piece&, std::byte*) const {}
#else
  __device__ uint4 word(const Piece& piece, uint32_t at) const { return *reinterpret_cast<const uint4*>(piece.from + at); }
#endif
};

struct RowMaps {
  CUtensorMap of[kMostRowPeers][2];  // of K and V
};
struct Peers {
  PeerRows of[kMostRowPeers];
};

// A piece is a quarter, or so many of its rows as have room in a place.
struct RowPieces {
  const RowCopy* copies;
  int64_t count;
  int of_block, of_quarter;
  int rows;  // of a piece
  int head_bytes, kv_heads;
  const RowMaps* maps;  // on Hopper,
  const Peers* peers;   // elsewhere

  struct Piece {
    int peer, tensor, row, rows, kv_head;  // rows: as many as the block has for it
    std::byte* to;
    uint32_t bytes;
  };
  __device__ Piece operator[](int64_t number) const {
    const RowCopy copy = copies[number / of_block];
    const int piece = static_cast<int>(number % of_block), quarter = copy.quarter_of_peer % 4 + piece / of_quarter;
    const int first = quarter % 2 * kQuarterRows + piece % of_quarter * rows;  // of the unit's
    const uint32_t bytes = rows * head_bytes;
    return {.peer = copy.quarter_of_peer / 4,
            .tensor = quarter / 2,
            .row = copy.first_row + first,
            .rows = min(max(copy.rows - first, 0), rows),
            .kv_head = copy.kv_head,
            .to = copy.to + int64_t{piece} * bytes,
            .bytes = bytes};
  }
  __device__ uint4 word(const Piece& piece, uint32_t at) const {
    const PeerRows& from = peers->of[piece.peer];
    const int row = static_cast<int>(at) / head_bytes;
    if (row >= piece.rows) return {};
    const std::byte* base = piece.tensor == 0 ? from.k : from.v;
    return *reinterpret_cast<const uint4*>(base + (int64_t{piece.row + row} * kv_heads + piece.kv_head) * head_bytes + at % head_bytes);
  }
#if __CUDA_ARCH__ >= 900
  __device__ void ask_for(const Piece& piece, void* place, uint64_t* full) const {
    hopper::load_box(place, &maps->of[piece.peer][piece.tensor], full, 0, piece.kv_head, piece.row);
  }
  // Of what has come: rows behind the block's are not its own.
  __device__ void clear_rest(const Piece& piece, std::byte* place) const {
    if (piece.rows == rows) return;
    for (uint32_t at = piece.rows * head_bytes; at < piece.bytes; at += 16) *reinterpret_cast<uint4*>(place + at) = {};
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
#endif
};

#if __CUDA_ARCH__ >= 900
__device__ void store(std::byte* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(hopper::shared_address(from)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

template <class Pieces>
__device__ void copy_by_bulk(const Pieces& pieces) {
  extern __shared__ __align__(128) std::byte places[];  // [kWarps][kPiece]
  __shared__ uint64_t arrived[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x % 32 != 0) return;
  std::byte* const place = places + warp * kPiece;
  uint64_t* const full = &arrived[warp];
  hopper::barrier_init(full, 1);
  hopper::barrier_init_done();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  int64_t number = int64_t{blockIdx.x} * kWarps + warp;
  if (number >= pieces.count) return;
  typename Pieces::Piece piece = pieces[number];
  for (uint32_t phase = 0;; phase ^= 1) {
    hopper::arrive_expect(full, piece.bytes);
    pieces.ask_for(piece, place, full);
    number += stride;
    const bool more = number < pieces.count;
    typename Pieces::Piece next = piece;
    if (more) next = pieces[number];  // meanwhile
    hopper::wait(full, phase);
    pieces.clear_rest(piece, place);
    store(piece.to, place, piece.bytes);
    if (!more) break;
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    piece = next;
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

template <class Pieces>
__device__ void copy_by_threads(const Pieces& pieces) {
  constexpr int kWord = 16;
  for (int64_t number = blockIdx.x; number < pieces.count; number += gridDim.x) {
    const typename Pieces::Piece piece = pieces[number];
#pragma unroll 2
    for (uint32_t at = threadIdx.x * kWord; at < piece.bytes; at += kThreads * kWord)
      *reinterpret_cast<uint4*>(piece.to + at) = pieces.word(piece, at);
  }
}
__device__ void copy_by_bytes(const BlockPieces& pieces) {
  for (int64_t number = blockIdx.x; number < pieces.count; number += gridDim.x) {
    const BlockPieces::Piece piece = pieces[number];
    for (uint32_t at = threadIdx.x; at < piece.bytes; at += kThreads) piece.to[at] = piece.from[at];
  }
}

__device__ void has_begun(volatile uint32_t* begun) {
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *begun = 1;
}

__global__ void __launch_bounds__(kThreads) copy_pieces(BlockPieces pieces, volatile uint32_t* begun) {
  has_begun(begun);
  if (pieces.block_bytes % 16 != 0) {
    copy_by_bytes(pieces);
    return;
  }
#if __CUDA_ARCH__ >= 900
  copy_by_bulk(pieces);
#else
  copy_by_threads(pieces);
#endif
}

__global__ void __launch_bounds__(kThreads)
    copy_pieces_of_rows(RowPieces pieces, const __grid_constant__ RowMaps maps, volatile uint32_t* begun) {
  has_begun(begun);
#if __CUDA_ARCH__ >= 900
  pieces.maps = &maps;
  copy_by_bulk(pieces);
#endif
}
__global__ void __launch_bounds__(kThreads)
    copy_words_of_rows(RowPieces pieces, const __grid_constant__ Peers peers, volatile uint32_t* begun) {
  has_begun(begun);
  pieces.peers = &peers;
  copy_by_threads(pieces);
}

// Of the current device, which has the copy unit. (Code of later chips is made of what the oldest takes.)
bool has_copy_unit() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  return major == 9;
}

constexpr int kShared = kWarps * kPiece;

unsigned blocks_by_bulk(int64_t pieces, int64_t piece_bytes, int multiprocessors) {
  return static_cast<unsigned>(
      std::min<int64_t>((pieces + kWarps - 1) / kWarps, multiprocessors * std::clamp<int64_t>(kPiece / piece_bytes, 1, kMostMore)));
}

}  // namespace

void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int multiprocessors, volatile uint32_t* begun,
                 cudaStream_t stream) {
  if (count == 0) return;
  const int64_t pieces_of_block = (block_bytes + kPiece - 1) / kPiece, pieces = count * pieces_of_block;
  const BlockPieces all{copies, pieces, block_bytes, static_cast<int>(pieces_of_block)};
  const bool by_bulk = has_copy_unit() && block_bytes % 16 == 0;
  if (by_bulk) check(cudaFuncSetAttribute(copy_pieces, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "cudaFuncSetAttribute");
  const unsigned blocks =
      by_bulk ? blocks_by_bulk(pieces, block_bytes, multiprocessors) : static_cast<unsigned>(std::min(pieces, kMostOfThreads));
  copy_pieces<<<blocks, kThreads, by_bulk ? kShared : 0, stream>>>(all, begun);
  check(cudaGetLastError(), "launch of copy_pieces");
}

void copy_rows(std::span<const PeerRows> peers, int kv_heads, int head_bytes, const RowCopy* copies, int64_t count, int quarters,
               int multiprocessors, volatile uint32_t* begun, cudaStream_t stream) {
  if (count == 0) return;
  int rows = kQuarterRows;  // of a piece
  while (rows * head_bytes > kPiece) rows /= 2;
  const int of_quarter = kQuarterRows / rows, of_block = quarters * of_quarter;
  const RowPieces all{.copies = copies,
                      .count = count * of_block,
                      .of_block = of_block,
                      .of_quarter = of_quarter,
                      .rows = rows,
                      .head_bytes = head_bytes,
                      .kv_heads = kv_heads};
  if (!has_copy_unit()) {
    Peers from{};
    std::copy(peers.begin(), peers.end(), from.of);
    copy_words_of_rows<<<static_cast<unsigned>(std::min(all.count, kMostOfThreads)), kThreads, 0, stream>>>(all, from, begun);
    check(cudaGetLastError(), "launch of copy_words_of_rows");
    return;
  }
  RowMaps maps{};
  for (size_t peer = 0; peer < peers.size(); ++peer) {
    if (peers[peer].rows == 0) continue;
    for (int tensor = 0; tensor < 2; ++tensor) {
      constexpr int kElement = 2;  // bytes; what they mean does not matter
      const auto row_bytes = static_cast<cuuint64_t>(head_bytes), heads = static_cast<cuuint64_t>(kv_heads);
      maps.of[peer][tensor] =
          hopper::tensor_map<3>(CU_TENSOR_MAP_DATA_TYPE_UINT16, CU_TENSOR_MAP_SWIZZLE_NONE, tensor == 0 ? peers[peer].k : peers[peer].v,
                                {row_bytes / kElement, heads, static_cast<cuuint64_t>(peers[peer].rows)}, {row_bytes, row_bytes * heads},
                                {static_cast<cuuint32_t>(head_bytes / kElement), 1, static_cast<cuuint32_t>(rows)});
    }
  }
  check(cudaFuncSetAttribute(copy_pieces_of_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "cudaFuncSetAttribute");
  const unsigned blocks = blocks_by_bulk(all.count, int64_t{rows} * head_bytes, multiprocessors);
  copy_pieces_of_rows<<<blocks, kThreads, kShared, stream>>>(all, maps, begun);
  check(cudaGetLastError(), "launch of copy_pieces_of_rows");
}

}  // namespace longspan::kernels::cuda
