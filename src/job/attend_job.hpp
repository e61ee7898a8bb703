// An attention job from file to file: corpus -> plan -> engine -> result, with a ledger of finished stripes so that a killed job goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "engine/engine.hpp"
#include "io/corpus.hpp"
#include "io/result.hpp"
#include "pattern/pattern.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::job {

struct AttendRequest {
  io::CorpusPaths input;
  std::string output;
  pattern::Pattern pattern;
  std::optional<double> scale;                   // absent: 1/√head_dim
  std::optional<int64_t> memory;                 // bytes per rank; absent: `default_memory`, or what the ledger says
  std::optional<plan::PartitionKind> partition;  // absent: automatic, or what the ledger says
  std::optional<ElementType> output_type;        // absent: the input's
  int64_t default_memory = 0;
  int64_t step_bytes = 0;      // as plan::Options
  std::string device = "cpu";  // its kind: pinned in the ledger
  plan::ExchangeKind exchange = plan::ExchangeKind::automatic;
  bool reproducible = false;
  bool go_on = false;  // --continue
  bool overwrite = false;
  bool dry_run = false;  // plans, but touches no output
  double timeout = 0;    // seconds; 0: never
  std::string build;     // version, commit and kind of the program: pinned in the ledger
  std::string version;   // for the result's attributes
};

class AttendJob {
 public:
  // Collective: opens and checks the input, plans on all ranks, creates or reopens the output. Throws Error, the same on all ranks.
  AttendJob(const comm::Communicator& ranks, AttendRequest request);
  ~AttendJob();

  const io::CorpusLayout& corpus() const;
  const pattern::BoundPattern& pattern() const;
  const plan::Shared& shared() const;
  const plan::RankPlan& plan() const;
  int stripes() const;          // of own rows, on the rank with most
  int64_t total_steps() const;  // of all stripes
  double scale() const;
  ElementType output_type() const;
  bool already_complete() const;                    // --continue found nothing left to do
  int64_t finished_stripes() const;                 // of all ranks, found by --continue and checked against their checksums
  const std::vector<std::string>& remarks() const;  // what a user should know, rank 0: stripes that did not match their checksum, …

  // Collective: computes on `device`, of the request's kind, and moves keys through `transport`; writes, marks the output complete and
  // removes the ledger. A failure on one rank ends the job through Communicator::abort; an exchange that moved other bytes than planned is
  // an internal error on all ranks. When `stop` says yes on any rank, all of them end with ExitCode::stopped after one and the same stripe,
  // soon and for --continue.
  engine::Record run(kernels::Device& device, comm::Transport& transport,
                     const std::function<void(int64_t stripe, int64_t stripes)>& progress, const std::function<bool()>& stop = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longspan::job
