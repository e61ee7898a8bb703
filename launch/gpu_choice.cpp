#include "launch/gpu_choice.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace longspan::launch {

std::optional<Problem> shared_gpu(const std::vector<std::string>& places) {
  std::map<std::string, std::vector<int>> ranks;
  for (size_t r = 0; r < places.size(); ++r) ranks[places[r]].push_back(static_cast<int>(r));
  for (const auto& [place, sharing] : ranks) {
    if (sharing.size() == 1) continue;
    return Problem{.code = ExitCode::device,
                   .what = fmt::format("{} would share a GPU", comm::describe_ranks(sharing)),
                   .seen = place,
                   .expected = "a GPU for each rank of a host",
                   .from = "option --device cuda",
                   .mend = "start as many ranks per host as it has GPUs, or say --share-gpu"};
  }
  return std::nullopt;
}

GpuChoice choose_gpu(const comm::Communicator& ranks, DeviceKind kind, bool share) {
  GpuChoice choice;
  if (kind == DeviceKind::cpu) return choice;
  // Before the first call of CUDA: the streams of a process share so many queues of the device, 8 unless said otherwise, and in a queue one
  // waits behind the other. A step behind an exchange that waits for other ranks would lose what computing beside it gains. Processes that
  // share a GPU keep the default.
  if (!share) setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  const kernels::Gpus gpus = kernels::find_gpus();
  std::vector<Problem> problems;
  if (gpus.usable.empty()) {
    problems.push_back({.code = ExitCode::device,
                        .what = "no GPU to compute on",
                        .seen = gpus.why_none,
                        .from = fmt::format("option --device {}", name_of(DeviceKind::cuda)),
                        .mend = "start the job where nvidia-smi lists a GPU, or take --device cpu"});
  }
  if (const std::vector<int64_t> without = ranks.all_gather(static_cast<int64_t>(problems.size()));
      kind == DeviceKind::automatic && std::count(without.begin(), without.end(), 1) > 0) {
    std::vector<int> who;
    for (size_t rank = 0; rank < without.size(); ++rank)
      if (without[rank] > 0) who.push_back(static_cast<int>(rank));
    if (who.size() < without.size())
      choice.remark = fmt::format("no GPU for {}, unlike others; the job computes on CPUs", comm::describe_ranks(who));
    return choice;
  }
  ranks.agree(problems);

  const kernels::Gpu& gpu = gpus.usable[static_cast<size_t>(ranks.local_rank()) % gpus.usable.size()];
  const std::vector<std::string> places = ranks.gather(fmt::format("{} {} {}", ranks.host(), gpu.name, gpu.id));
  std::optional<Problem> problem;
  std::string sharers;  // of each rank, for all ranks to read
  if (ranks.rank() == 0) {
    if (!share) problem = shared_gpu(places);
    for (const std::string& place : places) sharers += fmt::format("{} ", std::count(places.begin(), places.end(), place));
  }
  if (kind == DeviceKind::automatic && ranks.max(int64_t{problem ? 1 : 0}) > 0) {
    choice.remark = ranks.broadcast(problem ? problem->what + " (" + problem->seen + "); the job computes on CPUs. " + problem->mend : "");
    return choice;
  }
  ranks.agree(problem ? std::vector<Problem>{*problem} : std::vector<Problem>{});
  sharers = ranks.broadcast(sharers);
  const char* at = sharers.c_str();
  for (int r = 0; r <= ranks.rank(); ++r) {
    char* end = nullptr;
    choice.sharers = static_cast<int>(std::strtol(at, &end, 10));
    at = end;
  }
  ranks.agreed([&] { kernels::free_memory(gpu); });  // makes the context, which takes memory itself
  ranks.agreed([&] { choice.free_memory = kernels::free_memory(gpu); });
  choice.gpu = gpu;
  return choice;
}

}  // namespace longspan::launch
