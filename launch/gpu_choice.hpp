// Which GPU a rank computes on: one rank, one GPU, by the rank's number on its host.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "kernels/gpus.hpp"
#include "longspan/device_kind.hpp"

namespace longspan::launch {

struct GpuChoice {
  std::optional<kernels::Gpu> gpu;  // absent: this job computes on CPUs
  int sharers = 1;                  // ranks on this GPU
  int64_t free_memory = 0;          // bytes of it that nobody uses, before any rank of the job has taken some
  std::string remark;               // what a user should know of the choice, the same on all ranks; may be empty
};

// Collective. `cuda`: Error(device), the same on all ranks, where a rank has no GPU, or two have the same one and `share` is not set.
// `automatic`: GPUs where every rank has one of its own (or shares it), else CPUs for all.
GpuChoice choose_gpu(const comm::Communicator& ranks, DeviceKind kind, bool share);

// Ranks that would compute on the same GPU: places[r] names host and GPU of rank r. For tests.
//   "node1 0000:3b:00", "node1 0000:af:00", "node1 0000:3b:00"  ->  ranks 0, 2 on the first
std::optional<Problem> shared_gpu(const std::vector<std::string>& places);

}  // namespace longspan::launch
