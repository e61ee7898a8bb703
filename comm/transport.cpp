#include "comm/transport.hpp"

#include <fmt/format.h>

namespace longspan::comm {

std::optional<TransportKind> transport_kind_named(std::string_view name) {
  for (TransportKind kind : {TransportKind::automatic, TransportKind::mpi, TransportKind::nccl, TransportKind::peer})
    if (name_of(kind) == name) return kind;
  return std::nullopt;
}

namespace {

constexpr const char* kOnCpus = "this job computes on CPUs";

// What this rank lacks.
std::vector<Problem> without_nccl(bool has_gpu) {
  std::vector<Problem> problems;
  const auto cannot = [&](const std::string& what, const std::string& seen, const std::string& mend) {
    problems.push_back({.code = ExitCode::device, .what = what, .seen = seen, .from = "option --transport nccl", .mend = mend});
  };
  if (!has_gpu)
    cannot(std::string("NCCL moves keys between GPUs, and ") + kOnCpus, "", "--device cuda, or --transport mpi");
  else if (find_nccl().version.empty())
    cannot("NCCL cannot be used", find_nccl().why_not,
           "put libnccl.so.2 where the loader finds it (LD_LIBRARY_PATH), or take --transport mpi");
  return problems;
}

// Collective over ranks that all have a GPU, or all have none.
std::vector<Problem> without_peer_access(const Communicator& ranks, std::optional<int> gpu_ordinal) {
  const std::string why_not = gpu_ordinal ? why_no_peer_access(ranks, *gpu_ordinal) : kOnCpus;
  if (why_not.empty()) return {};
  return {{.code = ExitCode::device,
           .what = "ranks cannot read the memory of each other's GPUs",
           .seen = why_not,
           .from = "option --transport peer",
           .mend = gpu_ordinal ? "--transport nccl or mpi" : "--device cuda, or --transport mpi"}};
}

}  // namespace

std::unique_ptr<Transport> make_transport(const Communicator& ranks, TransportKind kind, std::optional<int> gpu_ordinal, bool gpu_is_shared,
                                          double timeout) {
  const auto all_can = [&](const std::vector<Problem>& problems) { return ranks.max(problems.empty() ? 0 : 1) == 0; };
  if (kind == TransportKind::nccl) ranks.agree(without_nccl(gpu_ordinal.has_value()));
  if (kind == TransportKind::peer) ranks.agree(without_peer_access(ranks, gpu_ordinal));
  if (!gpu_ordinal) return std::make_unique<MpiTransport>();
  if (kind == TransportKind::mpi || ranks.size() == 1) return staged_transport(*gpu_ordinal);
  const bool automatic = kind == TransportKind::automatic;
  if (kind == TransportKind::peer || (automatic && all_can(without_peer_access(ranks, gpu_ordinal)))) return peer_transport(*gpu_ordinal);
  if (automatic && !(all_can(without_nccl(true)) && ranks.max(gpu_is_shared ? 1 : 0) == 0)) return staged_transport(*gpu_ordinal);
  return nccl_transport(ranks, *gpu_ordinal, timeout);
}

}  // namespace longspan::comm
