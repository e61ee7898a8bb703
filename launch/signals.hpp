// Stopping at a safe point: SIGUSR1 (mpirun passes it on; `#SBATCH --signal=USR1@120`) and SIGTERM (srun, scancel, requeue) only set a
// flag, which a job looks at between stripes. The flag is this process's alone: ranks may see a signal at different times, so agree on it
// (Communicator::max of stop_requested) before acting on it, then leave with ExitCode::stopped.
#pragma once

#include <csignal>
#include <string>

namespace longspan::launch {

// Catches both signals from construction to destruction, then puts the former handlers back. At most one at a time per process.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // True once a signal has come since construction. Safe from any thread, costs one load.
  bool stop_requested() const;
  // "SIGUSR1" or "SIGTERM", the latest one; empty when none came.
  std::string signal_name() const;

 private:
  struct sigaction former_user1_ = {};
  struct sigaction former_terminate_ = {};
};

}  // namespace longspan::launch
