#include "cli/bench_launch.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>

#include "cli/effective.hpp"
#include "cli/subject.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"
#include "launch/gpu_choice.hpp"
#include "launch/topology.hpp"
#include "report/format.hpp"
#include "report/record.hpp"

namespace longspan::cli {

bench::Job bench_job(const Settings& settings, const pattern::Pattern& pattern) {
  Subject subject = subject_from(settings, pattern);
  bench::Job job{.pattern = pattern,
                 .shape = subject.shape,
                 .documents = std::move(subject.documents),
                 .sources = std::move(subject.sources),
                 .output_type = subject.shape.type,
                 .partition = plan::partition_kind_named(settings.text("partition")).value(),
                 .exchange = plan::exchange_kind_named(settings.text("exchange")).value(),
                 .memory = settings.maybe_integer("memory"),
                 .timeout = settings.real("timeout")};
  return job;
}

std::optional<io::CorpusLayout> bench_corpus(const comm::Communicator& ranks, const Settings& settings) {
  if (!settings.has("input")) return std::nullopt;
  std::string layout;
  ranks.on_root([&] { layout = io::inspect_corpus(corpus_paths(settings)).to_json(); });
  return io::CorpusLayout::from_json(ranks.broadcast(layout));
}

bench::JobRows bench_rows(const bench::PreparedJob& job, const std::optional<io::CorpusLayout>& corpus, kernels::Device& device,
                          bench::RowsIn where) {
  const bench::Job& what = job.job();
  if (!corpus) return bench::synthetic_rows(what.shape, what.output_type, size_of(job.tokens()), device, where)->of(job.tokens());
  const auto held = std::make_shared<bench::HeldRows>(io::CorpusReader(*corpus), job.tokens(), device);
  if (where == bench::RowsIn::host) return {held, std::make_shared<bench::Discard>()};
  const auto on_device = std::make_shared<bench::DeviceRows>(what.shape, what.output_type, device);
  on_device->fill(job.tokens(), *held);
  return on_device->as(job.tokens());
}

BenchPlace bench_place(const comm::Communicator& ranks, const Settings& settings) {
  // What one run gives back the next one takes. Else each run maps its buffers anew, and what pages it gets decides: a light pattern took
  // from 1 to 3 times as long from run to run.
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 256 << 20);
  BenchPlace place;
  const launch::Share share = launch::share_of_host(ranks);
  const launch::GpuChoice choice =
      launch::choose_gpu(ranks, device_kind_named(settings.text("device")).value(), settings.flag("share-gpu"));
  place.threads = static_cast<int>(settings.maybe_integer("threads").value_or(share.threads));
  if (choice.gpu) place.gpu = choice.gpu->ordinal;
  place.gpu_is_shared = choice.sharers > 1;
  place.kind = choice.gpu ? "cuda" : "cpu";
  place.identity = choice.gpu ? fmt::format("cuda {}.{}", choice.gpu->major, choice.gpu->minor) : "cpu";
  place.memory = choice.gpu ? launch::memory_share(choice.free_memory, choice.sharers) : share.memory;
  place.host_memory = settings.command().find("host-memory") ? settings.integer("host-memory") : kernels::GpuOptions().host_bytes;
  ranks.agreed([&] {
    if (choice.gpu)
      place.device = kernels::open_gpu(*choice.gpu, {.host_bytes = place.host_memory});
    else
      place.device = std::make_unique<kernels::cpu::CpuDevice>(place.threads);
  });
  place.text = place.device->name();
  if (!choice.gpu) place.text += fmt::format(", {} thread{} each", place.threads, place.threads == 1 ? "" : "s");
  return place;
}

std::unique_ptr<comm::Transport> bench_transport(const comm::Communicator& ranks, const Settings& settings, const BenchPlace& place) {
  return comm::make_transport(ranks, comm::transport_kind_named(settings.text("transport")).value(), place.gpu, place.gpu_is_shared,
                              settings.real("timeout"));
}

void check_bench(const comm::Communicator& ranks, const Settings& settings) {
  std::vector<Problem> problems;
  if (const auto lonely = launch::lonely_rank(ranks.size())) problems.push_back(*lonely);
  ranks.agree(problems);
  ranks.on_root([&] {
    for (const char* option : {"json", "svg"}) {
      if (!settings.command().find(option) || !settings.has(option)) continue;
      const std::string file = settings.text(option);
      if (file == "-" || std::filesystem::exists(file)) continue;
      const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
      if (access(folder.c_str(), W_OK | X_OK) == 0) continue;
      throw Error({.code = ExitCode::io,
                   .what = "the file cannot be written",
                   .seen = fmt::format("{} for folder {}", std::strerror(errno), folder.string()),
                   .from = fmt::format("{}, option --{}", file, option),
                   .mend = "name a folder that exists and may be written to"});
    }
  });
}

nlohmann::ordered_json bench_record(const Settings& settings, const Context& context, const BenchPlace& place, const Shape& shape,
                                    int64_t documents) {
  nlohmann::ordered_json record = report::new_record(settings.command().name);
  record["command_line"] = context.command_line;
  record["options"] = settings_json(settings);
  record["ranks"] = {{"count", context.ranks->size()}, {"hosts", context.ranks->hosts()}};
  record["device"] = {{"kind", place.kind}, {"name", place.device->name()}, {"threads", place.threads}};
  record["shape"] = {{"tokens", shape.tokens},     {"documents", documents},     {"heads", shape.heads},
                     {"kv_heads", shape.kv_heads}, {"head_dim", shape.head_dim}, {"type", name_of(shape.type)}};
  return record;
}

std::string shape_text(const Shape& shape, int64_t documents) {
  return fmt::format("{} tokens in {} document{}, {} heads, {} KV heads, head_dim {}, {}", report::count_text(shape.tokens),
                     report::count_text(documents), documents == 1 ? "" : "s", shape.heads, shape.kv_heads, shape.head_dim,
                     name_of(shape.type));
}

}  // namespace longspan::cli
