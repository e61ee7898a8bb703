// Memory of the other GPUs of a host, as this process sees it (CUDA IPC). For peer_exchange.cpp alone.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/pool_exchange.hpp"
#include "kernels/cuda/peer_copies.hpp"
#include "kernels/cuda/runtime.hpp"
#include "longspan/error.hpp"

namespace longspan::comm::peer_memory {

namespace cuda = kernels::cuda;

struct CloseHandle {
  void operator()(std::byte* memory) const { cudaIpcCloseMemHandle(memory); }
};

// A piece of memory of each other rank.
class PeerMemory {
 public:
  // Collective; `memory`: where a piece of device memory begins, null on a rank that has none. Throws Error(device) on a rank that cannot
  // reach another's, once all ranks have been here.
  PeerMemory(const Communicator& ranks, std::byte* memory) : base_(static_cast<size_t>(ranks.size())) {
    cudaIpcMemHandle_t mine;
    const cudaError_t has_handle = memory == nullptr ? cudaErrorInvalidValue : cudaIpcGetMemHandle(&mine, memory);
    std::vector<std::byte> bytes(has_handle == cudaSuccess ? sizeof mine : 0);
    if (!bytes.empty()) std::memcpy(bytes.data(), &mine, sizeof mine);
    std::vector<Communicator::Letter> letters;
    for (int rank = 0; rank < ranks.size(); ++rank)
      if (rank != ranks.rank()) letters.push_back({rank, bytes});
    letters = ranks.sparse_all_to_all(letters);
    cuda::check(has_handle, "cudaIpcGetMemHandle");
    for (const Communicator::Letter& letter : letters) {
      if (letter.bytes.empty())
        throw Error({.code = ExitCode::device,
                     .what = fmt::format("rank {} cannot show its memory to others", letter.rank),
                     .from = fmt::format("rank {}", ranks.rank()),
                     .mend = "see its own error; --transport nccl or mpi does without peer access"});
      cudaIpcMemHandle_t theirs;
      std::memcpy(&theirs, letter.bytes.data(), sizeof theirs);
      void* base = nullptr;
      cuda::check(cudaIpcOpenMemHandle(&base, theirs, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
      base_[static_cast<size_t>(letter.rank)].reset(static_cast<std::byte*>(base));
    }
  }
  const std::byte* of(int rank) const { return base_[static_cast<size_t>(rank)].get(); }

 private:
  std::vector<std::unique_ptr<std::byte, CloseHandle>> base_;  // by rank; null: this one
};

// Where a rank's arrays of rows lie (PoolExchange::RowArrays), as others find them.
struct RowsThere {
  struct Place {
    cudaIpcMemHandle_t memory;  // of an allocation,
    int64_t at;                 // so many bytes into it
  };
  Place first, second;
  int64_t rows;  // 0: not at all
};

// Without rows where others cannot open the memory of which these are, such as that of cudaMallocAsync.
inline RowsThere rows_to_show(const PoolExchange::RowArrays& arrays) {
  RowsThere there{};
  for (const auto& [from, place] : {std::pair(arrays.first, &there.first), std::pair(arrays.second, &there.second)}) {
    const cuda::Allocation allocation = cuda::allocation_of(from);
    if (allocation.bytes == 0 || cudaIpcGetMemHandle(&place->memory, allocation.base) != cudaSuccess) {
      cudaGetLastError();
      return {};
    }
    place->at = from - allocation.base;
  }
  there.rows = arrays.rows;
  return there;
}

// Others' rows. What was opened once stays open until this goes.
class OpenedRows {
 public:
  // Throws Error(device).
  cuda::PeerRows of(int home, const RowsThere& there) { return {opened(home, there.first), opened(home, there.second), there.rows}; }

 private:
  const std::byte* opened(int home, const RowsThere::Place& place) {
    std::string name(sizeof place.memory, '\0');
    std::memcpy(name.data(), &place.memory, sizeof place.memory);
    auto& base = bases_[name];
    if (!base) {
      void* memory = nullptr;
      if (cudaIpcOpenMemHandle(&memory, place.memory, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess)
        throw Error({.code = ExitCode::device,
                     .what = fmt::format("memory of rank {} from which keys or values are read cannot be opened", home),
                     .seen = cudaGetErrorString(cudaGetLastError()),
                     .from = "cudaIpcOpenMemHandle",
                     .mend = "see that it is not given back while keys are shared, or do not share them (share_keys, --rows-in device)"});
      base.reset(static_cast<std::byte*>(memory));
    }
    return base.get() + place.at;
  }
  std::map<std::string, std::unique_ptr<std::byte, CloseHandle>> bases_;  // by handle
};

}  // namespace longspan::comm::peer_memory
