// Longspan for programs that hold their tensors in memory: plan once, attend many times.
//
//   longspan::Attention attention(MPI_COMM_WORLD, {.tokens = n, .heads = 8, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16},
//                                 "causal & (window(4095) | sink(4))");
//   for (auto [begin, end] : attention.tokens()) …         // the rows that this rank holds, in this order
//   attention.forward({q, ldq}, {k, ldk}, {v, ldv}, {o, ldo}, lse);
//
// Needs MPI initialised with MPI_THREAD_FUNNELED or more, and every call from the thread that may call MPI. Programs link
// longspan::longspan (find_package(longspan)); a whole one is tests/package/example/attend.cpp.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "longspan/device_kind.hpp"
#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"
#include "pattern/pattern.hpp"
#include "plan/options.hpp"

namespace longspan {

struct AttentionOptions {
  plan::PartitionKind partition = plan::PartitionKind::automatic;
  // Bytes a rank may use for what it fetches and for working rows, of the GPU's memory where it computes on one; 0: what the plan needs at
  // its fastest (on a GPU at most 80 % of what is free).
  int64_t memory = 0;
  ElementType output_type = ElementType::float32;
  bool reproducible = false;                  // bits independent of the number of ranks
  double scale = 0;                           // of the scores; 0: 1/√head_dim
  DeviceKind device = DeviceKind::automatic;  // GPUs where every rank has one, else CPUs
  bool share_gpu = false;                     // several ranks of a host may compute on one GPU
  bool rows_on_gpu = false;  // the tensors will lie in the GPU's own memory: forward() is planned for that, and takes others too
  // The memory of K and V of every forward() that lie in the GPU's own memory (cudaMalloc) is not given back before ~Attention() has
  // returned: then other GPUs of the host may read them there, while forward() runs, and need not wait until they have been copied. What is
  // in them may change between two calls.
  bool share_keys = false;
  int threads = 0;       // of CPU compute; 0: all CPUs this process may run on
  double timeout = 300;  // seconds without any message before forward() gives up; 0: never
  // The lists of the pattern's block_mask terms, one for each distinct name in the order of Pattern::block_masks(); shared with the caller.
  // From lists in memory: pattern/block_mask.hpp.
  std::vector<std::shared_ptr<const pattern::BlockMaskSource>> block_masks;
};

// Rows × heads × head_dim, the last dimension dense. Row r, head h starts at data + r·row_stride + h·head_stride elements; strides of 0
// mean dense rows [heads][head_dim].
struct ConstTensor {
  const void* data = nullptr;
  int64_t row_stride = 0, head_stride = 0;
};
struct Tensor {
  void* data = nullptr;
  int64_t row_stride = 0, head_stride = 0;
};

class Attention {
 public:
  // Collective over `communicator`, which is duplicated and stays the caller's. Every rank passes the same arguments (checked), except
  // `threads`, `memory` (the least of all ranks counts) and `block_masks`, whose lists must be the same but are not compared.
  // Without `documents` all tokens are one document. Throws Error, the same on all ranks: code `usage` for a pattern that makes no sense, a
  // shape that is not supported, documents that do not end at shape.tokens, too little memory, arguments that differ between ranks;
  // `input` for block masks that do not fit; `device` when `device` is cuda and a rank has no GPU of its own.
  Attention(MPI_Comm communicator, const Shape& shape, const std::string& pattern, AttentionOptions options = {});
  Attention(MPI_Comm communicator, const Shape& shape, const std::string& pattern, const Documents& documents,
            AttentionOptions options = {});
  ~Attention();  // collective; before MPI_Finalize
  Attention(Attention&&) noexcept;

  // Token ranges this rank owns, ascending: its local rows are those of the first range, then those of the next.
  const Intervals& tokens() const;
  int64_t local_rows() const;

  // Collective; returns when o and lse are written. q [local_rows][heads][head_dim], k and v [local_rows][kv_heads][head_dim] of the
  // shape's type; o [local_rows][heads][head_dim] of the output type; lse [local_rows][heads], natural logarithm, may be null. Rows that
  // may look at nothing get o = 0, lse = −∞. All memory is the caller's, with any alignment; o and lse overlap no input; no tensor is kept
  // (but share_keys). Where a rank computes on a GPU, tensors may lie
  //   in that GPU's memory (cudaMalloc), without gaps: Q is read, and O and LSE are written, where they lie, if aligned to 16 bytes. What
  //     makes them must be over when forward() is called;
  //   in pinned memory (cudaHostAlloc, cudaHostRegister) or that of another GPU, without gaps: they are copied straight;
  //   anywhere else in the host's memory: through buffers, which is slower.
  // In a GPU's memory tensors with gaps are refused: Error(usage), the same on all ranks.
  // CPUs use tensors without gaps where they lie too, and take none in a GPU's memory. Memory that is computed in stays with the object,
  // for the next time. A failure on one rank alone (lost connection) ends the job with MPI_Abort.
  void forward(ConstTensor q, ConstTensor k, ConstTensor v, Tensor o, float* lse = nullptr);

  // Key and value bytes that this rank received in the last forward(), and those its rows need from other ranks: equal when memory
  // suffices.
  int64_t bytes_received() const;
  int64_t bytes_needed() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longspan
