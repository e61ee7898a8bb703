// How fast the ranks write a result to a folder, safely, and read it back: the same HDF5 file and calls as a job's output.
#pragma once

#include <cstdint>
#include <string>

#include "comm/communicator.hpp"

namespace longspan::doctor {

struct DiskRate {
  int64_t bytes_per_rank = 0;
  double write_seconds = 0, read_seconds = 0;                    // this rank's; writing includes fsync
  double write_bytes_per_second = 0, read_bytes_per_second = 0;  // of all ranks together, until the last one is done
  std::string problem;  // this rank's: what did not work, or that it read something else than was written; empty when all is well
};
// Each rank writes about `bytes_per_rank` and reads what a rank of another host has written (with one host: another rank), after asking
// the system to forget what it has in memory. The file is gone afterwards. Collective; problems do not end it.
DiskRate disk_rate(const comm::Communicator& ranks, const std::string& folder, int64_t bytes_per_rank);

}  // namespace longspan::doctor
