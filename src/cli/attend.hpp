// longspan attend: its options as the job takes them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/options.hpp"
#include "comm/transport.hpp"
#include "io/corpus.hpp"
#include "longspan/device_kind.hpp"
#include "longspan/element_type.hpp"
#include "pattern/pattern.hpp"
#include "plan/options.hpp"
#include "report/log.hpp"

namespace longspan::cli {

struct AttendOptions {
  io::CorpusPaths input;
  std::string output;
  pattern::Pattern pattern;
  std::optional<double> scale;                   // absent: 1/√head_dim
  std::optional<int64_t> memory;                 // bytes per rank; absent: 80 % of what is free, shared by the node's ranks
  std::optional<int> threads;                    // absent: the CPUs this rank may run on
  bool bind = true;                              // to cores, where the launcher has not
  std::optional<plan::PartitionKind> partition;  // absent: automatic, or what --continue finds
  std::optional<ElementType> output_type;        // absent: the input's
  DeviceKind device = DeviceKind::automatic;
  bool share_gpu = false;
  comm::TransportKind transport = comm::TransportKind::automatic;
  plan::ExchangeKind exchange = plan::ExchangeKind::automatic;
  int64_t host_memory = 0;  // bytes of pinned buffers
  bool reproducible = false, go_on = false, overwrite = false, dry_run = false;
  std::string record;  // file of the run record; "-": standard output
  report::Level log_level = report::Level::info;
  double timeout = 0;  // seconds; 0: never
};

// Throws Error(usage) with all problems of options that do not fit together, the pattern's among them.
AttendOptions attend_options(const Settings& settings);

}  // namespace longspan::cli
