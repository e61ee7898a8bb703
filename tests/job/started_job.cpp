#include "started_job.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace longspan::job::testing {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string contents(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string environment_of(const std::filesystem::path& process) { return std::string(1, '\0') + contents(process / "environ"); }

constexpr char kMark[] = "STARTED_JOB=";

// The processes with this mark in their environment. One that has ended but was not waited for has no environment any more.
std::vector<pid_t> processes_with(const std::string& mark) {
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto process = static_cast<pid_t>(std::stol(name));
    if (environment_of(entry.path()).find(std::string(1, '\0') + kMark + mark + '\0') != std::string::npos) found.push_back(process);
  }
  return found;
}

// -1: not started by mpirun (mpirun itself).
int rank_of(pid_t process) {
  const std::string environment = environment_of("/proc/" + std::to_string(process));
  const std::string name = std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=";
  const size_t at = environment.find(name);
  return at == std::string::npos ? -1 : std::atoi(environment.c_str() + at + name.size());
}

}  // namespace

std::vector<std::string> words(const std::string& line) {
  std::vector<std::string> found;
  bool inside = false, quoted = false;
  for (const char c : line) {
    if (c == ' ' && !quoted) {
      inside = false;
      continue;
    }
    if (!inside) found.emplace_back();
    inside = true;
    if (c == '\'') {
      quoted = !quoted;
    } else {
      found.back() += c;
    }
  }
  return found;
}

StartedJob::StartedJob(const std::vector<std::string>& command, const std::string& folder, const std::vector<std::string>& environment) {
  static int number = 0;
  mark_ = log_ = folder + "/log." + std::to_string(number++);
  // More ranks than cores, as root in a container, no binding: as launch/mpi-env has it.
  std::vector<std::string> all = {"env",
                                  kMark + mark_,
                                  "OMPI_ALLOW_RUN_AS_ROOT=1",
                                  "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                  "OMPI_MCA_rmaps_base_oversubscribe=1",
                                  "OMPI_MCA_hwloc_base_binding_policy=none",
                                  "OMPI_MCA_mpi_yield_when_idle=1",
                                  "OMPI_MCA_btl_vader_single_copy_mechanism=none"};
  all.insert(all.end(), environment.begin(), environment.end());
  all.insert(all.end(), command.begin(), command.end());
  std::vector<char*> arguments;
  for (std::string& word : all) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  process_ = fork();
  if (process_ < 0) throw std::runtime_error("fork");
  if (process_ == 0) {
    const int out = open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), in = open("/dev/null", O_RDONLY);
    dup2(in, 0), dup2(out, 1), dup2(out, 2);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
}

StartedJob::~StartedJob() {
  if (!ended_) {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  for (const pid_t process : processes_with(mark_)) kill(process, SIGKILL);
}

bool StartedJob::running() {
  if (!ended_ && waitpid(process_, &status_, WNOHANG) == process_) ended_ = true;
  return !ended_;
}

std::string StartedJob::text() const { return contents(log_); }

std::vector<Rank> StartedJob::ranks() const {
  std::vector<Rank> found;
  for (const pid_t process : processes_with(mark_))
    if (const int rank = rank_of(process); rank >= 0) found.push_back({process, rank});
  std::sort(found.begin(), found.end(), [](const Rank& a, const Rank& b) { return a.rank < b.rank; });
  return found;
}

Outcome StartedJob::wait(double seconds) {
  Outcome outcome;
  const Clock::time_point start = Clock::now();
  while (running() && since(start) < seconds) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  if (running()) {
    outcome.timed_out = true;
    for (const pid_t process : processes_with(mark_)) kill(process, SIGKILL);
    waitpid(process_, &status_, 0);
    ended_ = true;
  }
  outcome.seconds = since(start_);
  outcome.code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  outcome.text = text();
  return outcome;
}

double StartedJob::wait_until_gone(double seconds) {
  const Clock::time_point start = Clock::now();
  while (since(start) < seconds) {
    if (!running() && processes_with(mark_).empty()) return since(start);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return -1;
}

std::vector<std::string> mpirun(int ranks, const std::string& arguments) {
  std::vector<std::string> command{LONGSPAN_MPIEXEC, "-n", std::to_string(ranks), LONGSPAN_PROGRAM};
  const std::vector<std::string> more = words(arguments);
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

Outcome run(const std::vector<std::string>& command, const std::string& folder, double seconds,
            const std::vector<std::string>& environment) {
  return StartedJob(command, folder, environment).wait(seconds);
}

int occurrences(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace longspan::job::testing
