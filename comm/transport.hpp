// How blocks go between the ranks' pools: chosen once for a job, before its first exchange.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "comm/pool_exchange.hpp"

namespace longspan::comm {

class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string name() const = 0;                      // "MPI", "NCCL 2.28.9"
  virtual bool passes_host_memory() const { return false; }  // messages between GPUs take pinned host memory
  virtual bool reads_from_peers() const { return false; }    // its exchanges do (PoolExchange)
  // Between the pools of all ranks, this rank's at `pool`. Collective to create and destroy; the transport
  // must live longer.
  virtual std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) = 0;
};

// For pools in host memory. Collective only where a pool exchange is made.
class MpiTransport : public Transport {
 public:
  std::string name() const override { return "MPI"; }
  std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) override;
};

// For pools in the memory of a GPU: MPI never sees such an address; messages pass through pinned host memory, as much of it as the
// messages on their way need. Always works, and is what NCCL is tested against.
std::unique_ptr<Transport> staged_transport(int gpu_ordinal);

// NCCL, found when the program runs (libnccl.so.2): its version, or why there is none.
struct NcclFound {
  std::string version;  // "2.28.3"
  std::string why_not;
};
const NcclFound& find_nccl();

// For pools in the memory of GPUs, every rank's its own. Collective; brings NCCL up on all ranks. After `timeout` seconds (0: never) throws
// Error(communication) on this rank, on rank 0 with the ranks that did not come.
std::unique_ptr<Transport> nccl_transport(const Communicator& ranks, int gpu_ordinal, double timeout);

// For pools in the memory of one host's GPUs: each rank copies what it needs out of the others' memory, over NVLink or PCIe. Two ranks may
// share a GPU.
std::unique_ptr<Transport> peer_transport(int gpu_ordinal);
// Why this rank cannot read what others have on their GPUs; empty if it can. Collective: it is tried.
std::string why_no_peer_access(const Communicator& ranks, int gpu_ordinal);

enum class TransportKind : uint8_t { automatic, mpi, nccl, peer };
constexpr std::string_view name_of(TransportKind kind) {
  switch (kind) {
    case TransportKind::automatic:
      return "auto";
    case TransportKind::mpi:
      return "mpi";
    case TransportKind::nccl:
      return "nccl";
    case TransportKind::peer:
      return "peer";
  }
  return "?";
}
std::optional<TransportKind> transport_kind_named(std::string_view name);

// Collective. `gpu_ordinal` absent: pools in host memory. `automatic` between GPUs: peer access where all ranks are on one host and have
// it; NCCL where all ranks have it and none shares its GPU (NCCL refuses that); else MPI. `nccl` or `peer` where it cannot be had is
// Error(device), the same on all ranks.
std::unique_ptr<Transport> make_transport(const Communicator& ranks, TransportKind kind, std::optional<int> gpu_ordinal, bool gpu_is_shared,
                                          double timeout);

}  // namespace longspan::comm
