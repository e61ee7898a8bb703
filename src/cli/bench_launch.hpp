// What the benchmarks of jobs have in common: the job of their options, and what it runs on.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "bench/prepared_job.hpp"
#include "bench/rows.hpp"
#include "cli/commands.hpp"
#include "cli/options.hpp"
#include "comm/transport.hpp"
#include "io/corpus.hpp"
#include "kernels/device.hpp"

namespace longspan::cli {

// The job of --pattern, --tokens … or --input, --memory, --partition, --exchange, --timeout. Throws Error(usage or input) with all
// problems.
bench::Job bench_job(const Settings& settings, const pattern::Pattern& pattern);

// This rank's rows of --input (or nothing is given and they are synthetic) in memory of the host that `device`, which outlives them, copies
// from fastest, or in the device's own.
bench::JobRows bench_rows(const bench::PreparedJob& job, const std::optional<io::CorpusLayout>& corpus, kernels::Device& device,
                          bench::RowsIn where);
// Collective: the layout of --input, looked at by one rank.
std::optional<io::CorpusLayout> bench_corpus(const comm::Communicator& ranks, const Settings& settings);

struct BenchPlace {
  std::unique_ptr<kernels::Device> device;
  std::optional<int> gpu;  // its ordinal
  bool gpu_is_shared = false;
  int threads = 1;          // of this rank
  std::string kind;         // "cpu", "cuda"
  std::string identity;     // as job::AttendRequest::device has it: "cpu", "cuda 9.0"
  int64_t memory = 0;       // bytes that a rank's job may take unless --memory says otherwise
  int64_t host_memory = 0;  // pinned: --host-memory where the command has it, else what a GPU takes by itself
  std::string text;         // "AVX3_ZEN4, 2 threads each"
};
// Collective: of --device, --share-gpu, --threads. Throws AgreedError.
BenchPlace bench_place(const comm::Communicator& ranks, const Settings& settings);
// Collective over `ranks`, which may be some of the job's.
std::unique_ptr<comm::Transport> bench_transport(const comm::Communicator& ranks, const Settings& settings, const BenchPlace& place);

// Refuses a launch in which every process believes to be alone, and a JSON or SVG file that cannot be written. Collective.
void check_bench(const comm::Communicator& ranks, const Settings& settings);

// What the record of a benchmark of several ranks begins with: command, options, ranks, device, shape.
nlohmann::ordered_json bench_record(const Settings& settings, const Context& context, const BenchPlace& place, const Shape& shape,
                                    int64_t documents);

// "131,072 tokens in 1 document, 8 heads, 8 KV heads, head_dim 128, bfloat16"
std::string shape_text(const Shape& shape, int64_t documents);

}  // namespace longspan::cli
