#include "launch/signals.hpp"

#include <atomic>
#include <cerrno>
#include <system_error>

#include "longspan/error.hpp"

namespace longspan::launch {

namespace {

// A handler may touch only lock-free atomics.
std::atomic<int> received_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);
std::atomic<bool> installed{false};

void remember(int signal) { received_signal.store(signal, std::memory_order_relaxed); }

void install(int signal, const struct sigaction& action, struct sigaction* former) {
  if (sigaction(signal, &action, former) != 0)
    internal_error("sigaction failed: " + std::error_code(errno, std::generic_category()).message());
}

}  // namespace

StopSignals::StopSignals() {
  if (installed.exchange(true)) internal_error("two StopSignals at a time");
  received_signal.store(0);
  struct sigaction action = {};
  action.sa_handler = remember;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in progress go on: the job stops at its own points only
  install(SIGUSR1, action, &former_user1_);
  install(SIGTERM, action, &former_terminate_);
}

StopSignals::~StopSignals() {
  sigaction(SIGUSR1, &former_user1_, nullptr);
  sigaction(SIGTERM, &former_terminate_, nullptr);
  installed.store(false);
}

bool StopSignals::stop_requested() const { return received_signal.load(std::memory_order_relaxed) != 0; }

std::string StopSignals::signal_name() const {
  const int signal = received_signal.load(std::memory_order_relaxed);
  return signal == 0 ? "" : signal == SIGUSR1 ? "SIGUSR1" : "SIGTERM";
}

}  // namespace longspan::launch
