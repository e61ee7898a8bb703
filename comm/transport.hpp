// How blocks go between the ranks' pools: chosen once for a job, before its first exchange.
#pragma once

#include <memory>
#include <string>

#include "comm/pool_exchange.hpp"

namespace longspan::comm {

class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string name() const = 0;  // "MPI", "NCCL 2.28.9"
  // Between the pools of all ranks, this rank's at `pool`. Collective to create and destroy.
  virtual std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) = 0;
};

// For pools in host memory.
class MpiTransport : public Transport {
 public:
  std::string name() const override { return "MPI"; }
  std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) override;
};

}  // namespace longspan::comm
