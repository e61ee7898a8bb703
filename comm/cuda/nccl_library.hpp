// NCCL as this program finds it when it runs: a job on CPUs, or on a host without NCCL, must start without it. Compiled against nccl.h.
#pragma once

#include <nccl.h>

#include <string>

#include "longspan/error.hpp"

namespace longspan::comm {

struct NcclLibrary {
  std::string version, why_not;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommFinalize) comm_finalize = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
};

// Loaded at the first call.
const NcclLibrary& nccl();

// Throws Error(communication) with NCCL's own text unless the call is done or going on in the background.
void check_nccl(ncclResult_t result, const char* call);

}  // namespace longspan::comm
