// On Hopper, pieces of blocks go through shared memory by its copy unit: each warp has a place for one, asks for it, and when it is there
// for its way to memory. What is on its way must be as much as the link moves in a round trip: with 8 multiprocessors 12 warps and 16 KiB
// each are 1.5 MiB, 4 us at 400 GB/s. Of blocks of half as many bytes or less, twice as many multiprocessors copy. On other chips threads
// copy.
#include "kernels/cuda/peer_copies.hpp"

#include <algorithm>

#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {
namespace {

constexpr int kPiece = 16 << 10;  // bytes
constexpr int kWarps = 12;        // of a block of threads, each with a place for a piece
constexpr int kThreads = 32 * kWarps;
constexpr int64_t kMostMore = 2;
constexpr int64_t kMostOfThreads = 64;  // blocks of threads that copy by themselves

struct Arguments {
  const BlockCopy* copies;
  int64_t pieces, block_bytes;
  int pieces_of_block;
  volatile uint32_t* begun;
};

struct Piece {
  const std::byte* from;
  std::byte* to;
  uint32_t bytes;
};

__device__ Piece piece_of(const Arguments& arguments, int64_t number) {
  const BlockCopy copy = arguments.copies[number / arguments.pieces_of_block];
  const int64_t at = number % arguments.pieces_of_block * kPiece;
  return {copy.from + at, copy.to + at, static_cast<uint32_t>(min(int64_t{kPiece}, arguments.block_bytes - at))};
}

#if __CUDA_ARCH__ >= 900
__device__ void load(void* to, const std::byte* from, uint32_t bytes, uint64_t* full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(hopper::shared_address(to)),
               "l"(from), "r"(bytes), "r"(hopper::shared_address(full))
               : "memory");
}
__device__ void store(std::byte* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(hopper::shared_address(from)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

__device__ void copy_by_bulk(const Arguments& arguments) {
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
  if (number >= arguments.pieces) return;
  Piece piece = piece_of(arguments, number);
  for (uint32_t phase = 0;; phase ^= 1) {
    hopper::arrive_expect(full, piece.bytes);
    load(place, piece.from, piece.bytes, full);
    number += stride;
    const bool more = number < arguments.pieces;
    Piece next = piece;
    if (more) next = piece_of(arguments, number);  // meanwhile
    hopper::wait(full, phase);
    store(piece.to, place, piece.bytes);
    if (!more) break;
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    piece = next;
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

__device__ void copy_by_threads(const Arguments& arguments) {
  constexpr int kWord = 16;
  for (int64_t number = blockIdx.x; number < arguments.pieces; number += gridDim.x) {
    const Piece piece = piece_of(arguments, number);
    if (arguments.block_bytes % kWord == 0) {
#pragma unroll 2
      for (uint32_t at = threadIdx.x * kWord; at < piece.bytes; at += kThreads * kWord)
        *reinterpret_cast<uint4*>(piece.to + at) = *reinterpret_cast<const uint4*>(piece.from + at);
    } else {
      for (uint32_t at = threadIdx.x; at < piece.bytes; at += kThreads) piece.to[at] = piece.from[at];
    }
  }
}

__global__ void __launch_bounds__(kThreads) copy_pieces(Arguments arguments) {
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *arguments.begun = 1;
#if __CUDA_ARCH__ >= 900
  if (arguments.block_bytes % 16 == 0) {
    copy_by_bulk(arguments);
    return;
  }
#endif
  copy_by_threads(arguments);
}

}  // namespace

void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int multiprocessors, volatile uint32_t* begun,
                 cudaStream_t stream) {
  if (count == 0) return;
  const int64_t pieces_of_block = (block_bytes + kPiece - 1) / kPiece, pieces = count * pieces_of_block;
  const Arguments arguments{copies, pieces, block_bytes, static_cast<int>(pieces_of_block), begun};
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  const bool by_bulk = major == 9 && block_bytes % 16 == 0;
  constexpr int kShared = kWarps * kPiece;
  if (by_bulk) check(cudaFuncSetAttribute(copy_pieces, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "cudaFuncSetAttribute");
  const int64_t blocks =
      by_bulk ? std::min<int64_t>((pieces + kWarps - 1) / kWarps, multiprocessors * std::clamp<int64_t>(kPiece / block_bytes, 1, kMostMore))
              : std::min(pieces, kMostOfThreads);
  copy_pieces<<<static_cast<unsigned>(blocks), kThreads, by_bulk ? kShared : 0, stream>>>(arguments);
  check(cudaGetLastError(), "launch of copy_pieces");
}

}  // namespace longspan::kernels::cuda
