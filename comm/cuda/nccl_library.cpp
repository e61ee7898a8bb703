#include "comm/cuda/nccl_library.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include "comm/transport.hpp"

namespace longspan::comm {

namespace {

std::string version_text(int version) { return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100); }

template <typename Function>
bool find(void* library, const char* name, Function& function, std::string& why_not) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) why_not = fmt::format("libnccl.so.2 has no {}", name);
  return function != nullptr;
}

NcclLibrary load() {
  NcclLibrary loaded;
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    loaded.why_not = dlerror();
    return loaded;
  }
  decltype(&ncclGetVersion) get_version = nullptr;
  const bool complete = find(library, "ncclGetVersion", get_version, loaded.why_not) &&
                        find(library, "ncclGetUniqueId", loaded.get_unique_id, loaded.why_not) &&
                        find(library, "ncclCommInitRankConfig", loaded.comm_init, loaded.why_not) &&
                        find(library, "ncclCommGetAsyncError", loaded.comm_get_async_error, loaded.why_not) &&
                        find(library, "ncclCommFinalize", loaded.comm_finalize, loaded.why_not) &&
                        find(library, "ncclCommDestroy", loaded.comm_destroy, loaded.why_not) &&
                        find(library, "ncclCommAbort", loaded.comm_abort, loaded.why_not) &&
                        find(library, "ncclGroupStart", loaded.group_start, loaded.why_not) &&
                        find(library, "ncclGroupEnd", loaded.group_end, loaded.why_not) &&
                        find(library, "ncclSend", loaded.send, loaded.why_not) &&
                        find(library, "ncclRecv", loaded.receive, loaded.why_not) &&
                        find(library, "ncclGetErrorString", loaded.error_string, loaded.why_not) &&
                        find(library, "ncclGetLastError", loaded.last_error, loaded.why_not);
  int version = 0;
  if (!complete || get_version(&version) != ncclSuccess) return loaded;
  // What init is told of (ncclConfig_t) grows with the minor version.
  if (version / 100 < NCCL_VERSION_CODE / 100)
    loaded.why_not = fmt::format("libnccl.so.2 is {}, older than {} that this program was built with", version_text(version),
                                 version_text(NCCL_VERSION_CODE));
  else
    loaded.version = version_text(version);
  return loaded;
}

}  // namespace

const NcclLibrary& nccl() {
  static const NcclLibrary library = load();
  return library;
}

void check_nccl(ncclResult_t result, const char* call) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* detail = nccl().last_error(nullptr);
  throw Error({.code = ExitCode::communication,
               .what = fmt::format("{} failed", call),
               .seen = fmt::format("{}{}{}", nccl().error_string(result), detail != nullptr && *detail != 0 ? ": " : "",
                                   detail != nullptr ? detail : ""),
               .from = "NCCL " + nccl().version,
               .mend = "NCCL_DEBUG=INFO tells more; --transport mpi does without NCCL"});
}

const NcclFound& find_nccl() {
  static const NcclFound found{nccl().version, nccl().why_not};
  return found;
}

}  // namespace longspan::comm
