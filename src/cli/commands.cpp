#include "cli/commands.hpp"

#include <algorithm>

namespace longspan::cli {

namespace {

// Options that several commands share, so that they read alike everywhere.
const Option kJson{.name = "json",
                   .kind = Kind::json,
                   .value = "FILE",
                   .help =
                       "also write the result as JSON to FILE (a name in .json, or --json=FILE for any); alone or with -, to standard "
                       "output instead of the text"};
const Option kPattern{
    .name = "pattern", .value = "TEXT", .help = "which query may look at which key, e.g. \"causal & window(4095)\"", .required = true};
const Option kTokens{.name = "tokens",
                     .kind = Kind::integer,
                     .value = "N",
                     .help = "tokens of the sequence, e.g. 12Mi",
                     .least = 1,
                     .most = int64_t{1} << 50,
                     .when_absent = "sum of --documents"};
const Option kHeads{
    .name = "heads", .kind = Kind::integer, .value = "N", .fallback = "1", .help = "query heads", .least = 1, .most = 1 << 20};
const Option kKvHeads{.name = "kv-heads",
                      .kind = Kind::integer,
                      .value = "N",
                      .help = "key/value heads; must divide the query heads",
                      .least = 1,
                      .most = 1 << 20,
                      .when_absent = "as many as query heads"};
const Option kHeadDim{.name = "head-dim",
                      .kind = Kind::integer,
                      .value = "N",
                      .fallback = "128",
                      .help = "elements per head, a multiple of 8",
                      .least = 8,
                      .most = 256};
const Option kType{.name = "type",
                   .kind = Kind::choice,
                   .value = "TYPE",
                   .fallback = "bfloat16",
                   .help = "element type",
                   .choices = {"float32", "float16", "bfloat16"}};
const Option kDocuments{.name = "documents",
                        .value = "LENGTHS",
                        .help = "document lengths 1000,24,0,7, or fixed:LENGTH, or lognormal:MEAN,SIGMA (of --tokens tokens)",
                        .when_absent = "one document"};
const Option kMemory{.name = "memory",
                     .kind = Kind::bytes,
                     .value = "SIZE",
                     .help = "what the plan may use per rank, e.g. 8Gi; of the GPU's memory where it computes on one",
                     .least = 1 << 20,
                     .when_absent = "80 % of what is free, shared by the ranks of a node"};
const Option kPartition{.name = "partition",
                        .kind = Kind::choice,
                        .value = "NAME",
                        .fallback = "auto",
                        .help = "how query blocks go to ranks",
                        .choices = {"auto", "contiguous", "zigzag", "balanced"}};
const Option kExchange{.name = "exchange",
                       .kind = Kind::choice,
                       .value = "NAME",
                       .fallback = "auto",
                       .help =
                           "how keys come from other hosts: flat, to each rank by itself; node, once to a host, whose ranks pass them on; "
                           "auto is node where that saves a fifth of the bytes between hosts",
                       .choices = {"auto", "flat", "node"}};
const Option kReproducible{.name = "reproducible",
                           .kind = Kind::flag,
                           .help = "the same bits for any number of ranks: every row takes its keys in ascending order"};
const Option kThreads{.name = "threads",
                      .kind = Kind::integer,
                      .value = "N",
                      .help = "compute threads per rank",
                      .least = 1,
                      .most = 4096,
                      .when_absent = "the CPUs this rank may run on"};
const Option kDevice{.name = "device",
                     .kind = Kind::choice,
                     .value = "KIND",
                     .fallback = "auto",
                     .help = "what computes: auto takes GPUs where every rank has one of its own",
                     .choices = {"auto", "cpu", "cuda"}};
const Option kShareGpu{.name = "share-gpu", .kind = Kind::flag, .help = "several ranks of a host may compute on one GPU"};
const Option kTransport{
    .name = "transport",
    .kind = Kind::choice,
    .value = "NAME",
    .fallback = "auto",
    .help = "how keys go between ranks: auto is peer access between one host's GPUs, else NCCL where it is there, else MPI",
    .choices = {"auto", "mpi", "nccl", "peer"}};
const Option kHostMemory{.name = "host-memory",
                         .kind = Kind::bytes,
                         .value = "SIZE",
                         .fallback = "128Mi",
                         .help = "pinned host memory of a GPU rank: buffers on the way of rows to and from the GPU",
                         .least = 1 << 20,
                         .most = int64_t{1} << 40};
const Option kBind{.name = "bind",
                   .kind = Kind::choice,
                   .value = "WHAT",
                   .fallback = "cores",
                   .help = "cores: ranks of a host that the launcher has not bound get a part of its cores each; none: leave them",
                   .choices = {"cores", "none"}};
const Option kOverwrite{.name = "overwrite", .kind = Kind::flag, .help = "replace an existing output file"};

Option required(Option option) {
  option.required = true;
  option.fallback.clear();
  option.when_absent.clear();
  return option;
}
Option optional(Option option, const std::string& when_absent) {
  option.required = false;
  option.fallback.clear();
  option.when_absent = when_absent;
  return option;
}
Option input(const std::string& help, bool needed) { return {.name = "input", .value = "FILE.h5", .help = help, .required = needed}; }

std::vector<Option> path_options(bool block_masks) {
  std::vector<Option> paths{{.name = "q-path", .value = "PATH", .fallback = "/q", .help = "dataset of the queries"},
                            {.name = "k-path", .value = "PATH", .fallback = "/k", .help = "dataset of the keys"},
                            {.name = "v-path", .value = "PATH", .fallback = "/v", .help = "dataset of the values"},
                            {.name = "offsets-path",
                             .value = "PATH",
                             .fallback = "/document_offsets",
                             .help = "dataset of the document offsets; may be absent in the file"}};
  if (block_masks)
    paths.push_back({.name = "masks-path", .value = "PATH", .fallback = "/block_masks", .help = "group of the lists of block_mask terms"});
  return paths;
}

std::vector<Option> joined(std::vector<Option> first, const std::vector<Option>& more) {
  first.insert(first.end(), more.begin(), more.end());
  return first;
}

std::vector<Command> make_commands() {
  const std::vector<Option> paths = path_options(true);
  Command attend{
      .name = "attend",
      .summary = "compute attention under a pattern, from an HDF5 file to an HDF5 file, on all ranks of mpirun",
      .usage = "--input C.h5 --output O.h5 --pattern \"...\" [options]",
      .options = {input("file with Q, K, V", true),
                  {.name = "output", .value = "FILE.h5", .help = "file for O and LSE", .required = true},
                  kPattern,
                  {.name = "scale", .kind = Kind::real, .value = "X", .help = "factor of the scores", .when_absent = "1/sqrt(head_dim)"},
                  kMemory,
                  kHostMemory,
                  kThreads,
                  kDevice,
                  kShareGpu,
                  kTransport,
                  kExchange,
                  kBind,
                  kPartition,
                  {.name = "output-type",
                   .kind = Kind::choice,
                   .value = "TYPE",
                   .help = "element type of O",
                   .choices = {"float32", "float16", "bfloat16"},
                   .when_absent = "that of the input"},
                  kReproducible,
                  {.name = "continue",
                   .kind = Kind::flag,
                   .help = "go on with an output that a stopped or killed job has left; start fresh where there is none"},
                  kOverwrite,
                  {.name = "dry-run", .kind = Kind::flag, .help = "check everything, print the plan and the memory, compute nothing"},
                  {.name = "json",
                   .kind = Kind::json,
                   .value = "FILE",
                   .help = "the run record as JSON, to FILE (a name in .json, or --json=FILE for any); alone or with -, to standard output",
                   .when_absent = "OUTPUT with .run.json for .h5"},
                  {.name = "log-level",
                   .kind = Kind::choice,
                   .value = "LEVEL",
                   .fallback = "info",
                   .help = "what is printed",
                   .choices = {"error", "warning", "info", "debug"}},
                  {.name = "timeout",
                   .kind = Kind::duration,
                   .value = "TIME",
                   .fallback = "10min",
                   .help = "break off when ranks wait that long for a message"}},
      .more = "Queries, keys and values are shared out over the ranks; each receives only the key/value blocks that its rows look at.",
      .collective = true};
  attend.options = joined(attend.options, paths);

  Command plan{.name = "plan",
               .summary = "show what each rank would do, hold, send and receive; needs neither data nor mpirun",
               .usage = "--pattern \"...\" (--tokens N --heads H ... | --input C.h5) --ranks P [options]",
               .options = {kPattern,
                           optional(kTokens, "sum of --documents, or the input's"),
                           optional(kHeads, "1, or the input's"),
                           kKvHeads,
                           optional(kHeadDim, "128, or the input's"),
                           optional(kType, "bfloat16, or the input's"),
                           {.name = "ranks",
                            .kind = Kind::integer,
                            .value = "P",
                            .help = "ranks to plan for",
                            .required = true,
                            .least = 1,
                            .most = 1 << 24},
                           {.name = "rank",
                            .kind = Kind::integer,
                            .value = "R",
                            .help = "show this rank only",
                            .least = 0,
                            .most = 1 << 24,
                            .when_absent = "all, or 64 sampled ones"},
                           input("take shape and documents from this file", false),
                           kDocuments,
                           optional(kMemory, "no limit"),
                           kPartition,
                           kExchange,
                           kReproducible,
                           {.name = "machine",
                            .value = "FILE.json",
                            .help = "predict times from the rates in this file, which longspan doctor --save or bench scaleout wrote",
                            .when_absent = "no times"},
                           {.name = "ranks-per-host",
                            .kind = Kind::integer,
                            .value = "N",
                            .help = "ranks that share a host",
                            .least = 1,
                            .most = 1 << 20,
                            .when_absent = "as where the rates were measured"},
                           kJson}};
  plan.options = joined(plan.options, paths);

  Command verify{.name = "verify",
                 .summary = "recompute sampled rows of every head in double precision and compare; exit code 0 or 1",
                 .usage = "--input C.h5 --output O.h5 [--rows 256 --seed 0]",
                 .options = {input("the file that was attended", true),
                             {.name = "output", .value = "FILE.h5", .help = "the file with O and LSE", .required = true},
                             {.name = "rows",
                              .kind = Kind::integer,
                              .value = "N",
                              .fallback = "256",
                              .help = "rows of every head: first, last, at document borders, the rest random",
                              .least = 1},
                             {.name = "seed", .kind = Kind::integer, .value = "N", .fallback = "0", .help = "of the random rows"},
                             kThreads,
                             kJson},
                 .more =
                     "Pattern and scale come from the attributes of the output. Only the keys that the sampled rows look at are read, in "
                     "pieces of at most 64 MiB."};
  verify.options = joined(verify.options, paths);

  Command pattern{.name = "inspect pattern",
                  .summary = "count what a pattern allows, exactly, and draw its block map",
                  .usage = "\"...\" (--tokens N | --documents 1000,24,0,7 | --input C.h5) [--heads H] [--svg F]",
                  .options = {kPattern,
                              optional(kTokens, "sum of --documents, or the input's"),
                              kDocuments,
                              optional(kHeads, "1, or the input's"),
                              kKvHeads,
                              input("take shape, documents and the lists of block_mask terms from this file", false),
                              {.name = "svg", .value = "FILE", .help = "draw the block map to FILE", .when_absent = "none"},
                              kThreads,
                              kJson},
                  .bare = "pattern"};
  pattern.options = joined(pattern.options, paths);

  Command file{.name = "inspect file",
               .summary = "show what an input or output file holds",
               .usage = "X.h5 [--json]",
               .options = {input("a file with Q, K, V, or with O and LSE", true), kJson},
               .bare = "input"};
  file.options = joined(file.options, path_options(false));

  const Command generate{.name = "generate",
                         .summary = "write a synthetic input file: normal random numbers, the same for any number of ranks",
                         .usage = "--output C.h5 --tokens N --heads H [options]",
                         .options = {{.name = "output", .value = "FILE.h5", .help = "the file to write", .required = true},
                                     kTokens,
                                     required(kHeads),
                                     kKvHeads,
                                     kHeadDim,
                                     kType,
                                     {.name = "seed",
                                      .kind = Kind::integer,
                                      .value = "N",
                                      .fallback = "0",
                                      .help = "equal seeds give equal elements, whatever the other sizes"},
                                     kDocuments,
                                     kThreads,
                                     kOverwrite},
                         .more =
                             "Every element is a standard normal number that depends on the seed, the dataset, the token, the head and its "
                             "place in the head alone.",
                         .collective = true};
  const Command doctor{
      .name = "doctor",
      .summary = "check ranks, hosts, GPUs, links and disk before a big job, on all ranks of mpirun or srun; exit code 0 or 4",
      .usage = "[--folder DIR --save machine.json]",
      .options =
          {{.name = "folder", .value = "DIR", .fallback = ".", .help = "where the output of the job will be"},
           {.name = "disk-bytes",
            .kind = Kind::bytes,
            .value = "SIZE",
            .fallback = "64Mi",
            .help = "what each rank writes there and reads back",
            .least = 4096,
            .most = int64_t{1} << 40},
           {.name = "tolerance",
            .kind = Kind::real,
            .value = "X",
            .fallback = "2",
            .help = "a rank is unfit when it is so many times slower than the median one (latency: 5 times as many)"},
           {.name = "save", .value = "FILE", .help = "write the measured rates as JSON, for plan --machine", .when_absent = "not written"},
           kDevice,
           kShareGpu,
           kTransport,
           kThreads,
           kBind},
      .more =
          "Compares the program, clocks, system limits, attention and memory rates, free memory, MPI within and across hosts, the "
          "folder's disk, and where a job would compute on GPUs: theirs, the way to them, and NCCL between them. Unfit are also: clocks 1 "
          "s apart, less than 256 MiB of memory a rank, less than 20 MB/s of disk in all, a folder "
          "that is not the same on all hosts.",
      .collective = true};
  // What both benchmarks of several ranks take: the job, and what it runs on.
  const Option kIterations{.name = "iterations",
                           .kind = Kind::integer,
                           .value = "N",
                           .fallback = "5",
                           .help = "measured times, after one that does not count",
                           .least = 1,
                           .most = 1 << 20};
  const Option kTimeout{.name = "timeout",
                        .kind = Kind::duration,
                        .value = "TIME",
                        .fallback = "10min",
                        .help = "break off when ranks wait that long for a message"};
  const Option kProbeTime{.name = "probe-time",
                          .kind = Kind::duration,
                          .value = "TIME",
                          .fallback = "150ms",
                          .help = "about how long each of the small jobs takes that measure the rates of the cost model"};
  const auto with_default = [](Option option, const std::string& value) {
    option.fallback = value;
    option.when_absent.clear();
    return option;
  };
  const std::vector<Option> place{optional(kMemory, "what the plan needs at its fastest"),
                                  kThreads,
                                  kDevice,
                                  kShareGpu,
                                  kTransport,
                                  kPartition,
                                  kExchange,
                                  kTimeout,
                                  kJson};
  Command exchange{
      .name = "bench exchange",
      .summary = "move the keys of a job without its compute, and compare with the link's own speed",
      .usage = "[--pattern \"...\"] [--tokens N --heads H ... | --input C.h5] [options]",
      .options = {optional(kPattern, "window, strided, random blocks at 1 %, and causal"), with_default(kTokens, "64Ki"),
                  with_default(kHeads, "8"), kKvHeads, kHeadDim, kType, input("take shape and documents (and rows) from this file", false),
                  kDocuments, with_default(kIterations, "20")},
      .more = "Rows are synthetic unless --input is given. Nothing is attended; queries and states of long rows stay where they are.",
      .collective = true};
  exchange.options = joined(joined(exchange.options, place), paths);

  Command kernel{
      .name = "bench kernel",
      .summary = "measure the attention kernel of a CPU or a GPU against the peak of its arithmetic",
      .usage = "[--tokens N --heads H] [--type T] [--head-dim D] [--pattern \"...\"] [options]",
      .options = {optional(kPattern, "full, causal, a window of 1,024, and bigbird"), with_default(kTokens, "8Ki"),
                  with_default(kHeads, "8"), kKvHeads, optional(kHeadDim, "64 and 128"), optional(kType, "all"),
                  with_default(kIterations, "5"), kThreads, kDevice, kJson},
      .more =
          "GFLOP/s count 4 * head_dim for each pair of query and key in 64x64 squares with an allowed pair. The peak is that of a "
          "loop of multiply-adds out of registers (float32, or bfloat16 dot products where the kernel uses them), on all threads "
          "at once, or of cuBLAS' product of two 8192 x 8192 matrices on a GPU, before the first time and after each; a share of it is "
          "the median over the times."};

  Command scaleout{
      .name = "bench scaleout",
      .summary = "run a job on 1, 2, 4, ... of the ranks of this launch: scaling, and the cost model beside it",
      .usage = "--pattern \"...\" (--tokens N --heads H ... | --input C.h5) [--svg F.svg] [options]",
      .options = {kPattern,
                  optional(kTokens, "sum of --documents, or the input's"),
                  optional(kHeads, "1, or the input's"),
                  kKvHeads,
                  optional(kHeadDim, "128, or the input's"),
                  optional(kType, "bfloat16, or the input's"),
                  input("take shape, documents and rows from this file; they are held in memory", false),
                  kDocuments,
                  {.name = "mode",
                   .kind = Kind::choice,
                   .value = "MODE",
                   .fallback = "both",
                   .help = "strong: all tokens on any number of ranks; weak: on P of N ranks, P/N of the tokens",
                   .choices = {"strong", "weak", "both"}},
                  {.name = "rows-in",
                   .kind = Kind::choice,
                   .value = "WHERE",
                   .fallback = "host",
                   .help = "host: a GPU copies Q, K and V from pinned memory, and the results back; device: all of them lie in "
                           "its own memory, and are used in place; shared: and GPUs of the host that have peer access read each "
                           "other's K and V there",
                   .choices = {"host", "device", "shared"}},
                  kIterations,
                  kProbeTime,
                  kHostMemory,
                  {.name = "svg", .value = "FILE", .help = "draw the curves to FILE", .when_absent = "none"}},
      .more = "The ranks that have no part in a run sleep. --json writes what plan --machine takes.",
      .collective = true};
  scaleout.options = joined(joined(scaleout.options, place), paths);

  Command whole_job{
      .name = "bench job",
      .summary = "run a job from file to file, and compare with what its disk and its kernel allow",
      .usage = "--input C.h5 --pattern \"...\" [--folder DIR] [options]",
      .options = {input("file with Q, K, V", true),
                  kPattern,
                  {.name = "folder", .value = "DIR", .fallback = ".", .help = "where the output is written, and removed again"},
                  {.name = "iterations", .kind = Kind::integer, .value = "N", .fallback = "3", .help = "runs", .least = 1, .most = 1 << 20},
                  {.name = "disk-bytes",
                   .kind = Kind::bytes,
                   .value = "SIZE",
                   .fallback = "256Mi",
                   .help = "what each rank writes to the folder and reads back after a run, to measure the disk",
                   .least = 4096,
                   .most = int64_t{1} << 40},
                  kProbeTime,
                  kHostMemory},
      .more =
          "Before each run the system is asked to forget what it has of the input in memory. After it the disk is measured, and "
          "the kernel by small jobs, so that both see the same moods of the machine.",
      .collective = true};
  whole_job.options = joined(joined(whole_job.options, place), paths);
  for (Option& option : whole_job.options)
    if (option.name == "memory") option = kMemory;
  return {attend, verify, pattern, file, plan, generate, doctor, kernel, exchange, scaleout, whole_job};
}

}  // namespace

const std::vector<Command>& commands() {
  static const std::vector<Command> all = make_commands();
  return all;
}

const Command& command_named(const std::string& name) {
  const auto found = std::find_if(commands().begin(), commands().end(), [&](const Command& c) { return c.name == name; });
  if (found == commands().end()) internal_error("no command " + name);
  return *found;
}

}  // namespace longspan::cli
