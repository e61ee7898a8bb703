#include "comm/transport.hpp"

#include <fmt/format.h>

namespace longspan::comm {

std::optional<TransportKind> transport_kind_named(std::string_view name) {
  for (TransportKind kind : {TransportKind::automatic, TransportKind::mpi, TransportKind::nccl})
    if (name_of(kind) == name) return kind;
  return std::nullopt;
}

std::unique_ptr<Transport> make_transport(const Communicator& ranks, TransportKind kind, std::optional<int> gpu_ordinal, bool gpu_is_shared,
                                          double timeout) {
  std::vector<Problem> problems;
  const auto cannot = [&](const std::string& what, const std::string& seen, const std::string& mend) {
    problems.push_back({.code = ExitCode::device, .what = what, .seen = seen, .from = "option --transport nccl", .mend = mend});
  };
  if (!gpu_ordinal)
    cannot("NCCL moves keys between GPUs, and this job computes on CPUs", "", "--device cuda, or --transport mpi");
  else if (find_nccl().version.empty())
    cannot("NCCL cannot be used", find_nccl().why_not,
           "put libnccl.so.2 where the loader finds it (LD_LIBRARY_PATH), or take --transport mpi");
  if (kind == TransportKind::nccl) ranks.agree(problems);
  const bool all_have_it = kind == TransportKind::nccl || ranks.max(problems.empty() && !gpu_is_shared ? 0 : 1) == 0;
  if (!gpu_ordinal) return std::make_unique<MpiTransport>();
  if (kind == TransportKind::mpi || ranks.size() == 1 || !all_have_it) return staged_transport(*gpu_ordinal);
  return nccl_transport(ranks, *gpu_ordinal, timeout);
}

}  // namespace longspan::comm
