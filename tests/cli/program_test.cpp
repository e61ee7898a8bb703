// The program as a user runs it: texts, exit codes, files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/corpus.hpp"
#include "io/result.hpp"

namespace {

using testing::HasSubstr;
using testing::Not;

struct Outcome {
  int code = -1;
  std::string text;  // stdout and stderr
};

Outcome shell(const std::string& command) {
  Outcome outcome;
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return outcome;
  std::array<char, 4096> buffer;
  for (size_t size; (size = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) outcome.text.append(buffer.data(), size);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

Outcome run_program(const std::string& arguments, const std::string& environment = "") {
  return shell("env " + environment + " " + std::string(LONGSPAN_PROGRAM) + " " + arguments);
}

Outcome mpirun(int ranks, const std::string& arguments) {
  return shell(
      "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 "
      "OMPI_MCA_hwloc_base_binding_policy=none "
      "OMPI_MCA_mpi_yield_when_idle=1 " +
      std::string(LONGSPAN_MPIEXEC) + " -n " + std::to_string(ranks) + " " + LONGSPAN_PROGRAM + " " + arguments);
}

class Program : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "longspan_program_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  std::string folder_;
};

int occurrences(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST_F(Program, HelpAndVersionNeedNothing) {
  Outcome outcome = run_program("--help");
  EXPECT_EQ(outcome.code, 0);
  for (const char* command : {"attend", "verify", "inspect pattern", "inspect file", "plan", "generate"}) {
    EXPECT_THAT(outcome.text, HasSubstr(command));
    const Outcome help = run_program(std::string(command) + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_THAT(help.text, HasSubstr("--config FILE")) << command;
    EXPECT_THAT(help.text, HasSubstr("key ")) << command;
  }
  outcome = run_program("--version");
  EXPECT_EQ(outcome.code, 0);
  for (const char* what : {"longspan", "git commit", "compiler", "MPI", "HDF5", "CUDA", "NCCL"}) EXPECT_THAT(outcome.text, HasSubstr(what));
  EXPECT_THAT(outcome.text, HasSubstr("found"));
}

TEST_F(Program, NoCommandIsAUsageError) {
  EXPECT_EQ(run_program("").code, 2);
  Outcome outcome = run_program("atend --input x");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.text, "longspan: error: unknown command atend; did you mean attend? see longspan --help\n");
  outcome = run_program("inspect patterns");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("expected one of inspect pattern, inspect file"));
  EXPECT_EQ(run_program("inspect").code, 2);
  EXPECT_THAT(run_program("--verson").text, HasSubstr("did you mean --version?"));
}

TEST_F(Program, UsageErrorsComeOncePerProblem) {
  const Outcome outcome = run_program("verify --inputs a --rows 0", "LONGSPAN_MEMROY=1");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(occurrences(outcome.text, "longspan: error: "), 5) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("did you mean --input?"));
  EXPECT_THAT(outcome.text, HasSubstr("did you mean LONGSPAN_MEMORY?"));
  const Outcome ranks = mpirun(3, "generate --output " + file("c.h5") + " --tokens 5 --heds 2");
  EXPECT_EQ(ranks.code, 2);
  EXPECT_EQ(occurrences(ranks.text, "unknown option --heds"), 1) << ranks.text;
  EXPECT_EQ(occurrences(mpirun(2, "plan --rnks 3").text, "did you mean --ranks?"), 1);
}

TEST_F(Program, PatternErrorsPointAtTheCharacter) {
  const Outcome outcome = run_program("inspect pattern 'causal & wndow(3)' --tokens 100");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("causal & wndow(3)\n"));
  EXPECT_THAT(outcome.text, HasSubstr("^"));
  EXPECT_THAT(outcome.text, HasSubstr("window"));
}

TEST_F(Program, InspectPatternCountsAndDraws) {
  const Outcome outcome = run_program("inspect pattern 'streaming(4, 100)' --documents 1000,24,0,7 --heads 2 --svg " + file("map.svg") +
                                      " --json " + file("p.json"));
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("causal & (sink(4) | window(99, 0))"));
  EXPECT_THAT(outcome.text, HasSubstr("1,031 in 4 documents"));
  std::ifstream stream(file("p.json"));
  const auto json = nlohmann::json::parse(stream);
  // 1000 tokens: all up to query 103, then 100 and the 4 sinks; 24 and 7 tokens are all within the window.
  EXPECT_EQ(json["groups"][0]["allowed_pairs"], 104 * 105 / 2 + (1000 - 104) * 104 + 24 * 25 / 2 + 7 * 8 / 2);
  EXPECT_EQ(json["groups"][0]["heads"], (std::vector<int>{0, 1}));
  EXPECT_EQ(json["groups"][0]["keys_per_query"]["max"], 104);
  std::ifstream svg(file("map.svg"));
  std::stringstream text;
  text << svg.rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("<svg"));
}

TEST_F(Program, JsonToStandardOutputIsAllThereIs) {
  const Outcome outcome = run_program("inspect pattern causal --tokens 300 --json");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(nlohmann::json::parse(outcome.text)["groups"][0]["allowed_pairs"], 300 * 301 / 2);
}

// Not tokens², not ranks², not all ranks' tiles: one rank's plan of a cluster's job is small. (How long it takes is told, not asserted.)
TEST_F(Program, OneRankPlansAClustersJobInLittleMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory would be measured";
#endif
  for (const char* pattern : {"causal & window(4095)", "causal & strided(4096)", "bigbird", "longformer(513, 64)", "causal"}) {
    for (const char* ranks : {"64", "10240"}) {
      for (const char* memory : {"64Gi", "700Mi"}) {
        std::fflush(stdout);  // else the child has these lines to write, too
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
          if (!std::freopen("/dev/null", "w", stdout)) _exit(126);
          execl(LONGSPAN_PROGRAM, "longspan", "plan", "--pattern", pattern, "--tokens", "12582912", "--heads", "32", "--kv-heads", "8",
                "--head-dim", "128", "--ranks", ranks, "--rank", "17", "--memory", memory, nullptr);
          _exit(127);
        }
        int status = 0;
        rusage usage{};
        ASSERT_EQ(wait4(child, &status, 0, &usage), child);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << pattern << " on " << ranks;
        EXPECT_LE(usage.ru_maxrss, 100'000) << "kilobytes, " << pattern << " on " << ranks << " ranks, " << memory;
        const auto seconds = [](const timeval& time) {
          return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
        };
        std::printf("%s on %s ranks of %s: %.2f s, %ld MB\n", pattern, ranks, memory, seconds(usage.ru_utime) + seconds(usage.ru_stime),
                    usage.ru_maxrss / 1000);
      }
    }
  }
}

TEST_F(Program, InspectFileOfTheSample) {
  const Outcome outcome = run_program(std::string("inspect file ") + LONGSPAN_SAMPLE);
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("4,154 tokens, 9 query heads on 3 key/value heads, head_dim 64, bfloat16"));
  EXPECT_THAT(outcome.text, HasSubstr("4: shortest 0"));
  const Outcome missing = run_program("inspect file " + file("none.h5"));
  EXPECT_EQ(missing.code, 3);
  EXPECT_THAT(missing.text, HasSubstr(file("none.h5")));
}

TEST_F(Program, GenerateIsTheSameForAnyNumberOfRanks) {
  const std::string options = " --tokens 1001 --heads 4 --kv-heads 2 --head-dim 24 --type float16 --seed 5 --documents lognormal:100,1";
  ASSERT_EQ(run_program("generate --output " + file("one.h5") + options).code, 0);
  const Outcome three = mpirun(3, "generate --output " + file("three.h5") + options);
  ASSERT_EQ(three.code, 0) << three.text;
  const Outcome difference = shell("h5diff -v " + file("one.h5") + " " + file("three.h5"));
  if (difference.code == 127) GTEST_SKIP() << "no h5diff here";
  EXPECT_EQ(difference.code, 0) << difference.text;
  EXPECT_THAT(run_program("inspect file " + file("three.h5")).text,
              HasSubstr("1,001 tokens, 4 query heads on 2 key/value heads, head_dim 24, float16"));
  const Outcome again = run_program("generate --output " + file("one.h5") + options);
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.text, HasSubstr("output exists already"));
  EXPECT_EQ(run_program("generate --overwrite --output " + file("one.h5") + options).code, 0);
}

TEST_F(Program, GenerateNamesProblems) {
  const Outcome outcome = run_program("generate --output " + file("x.h5") + " --heads 4 --kv-heads 3 --head-dim 12");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("option --tokens is missing"));
  EXPECT_THAT(outcome.text, HasSubstr("key/value heads do not divide the query heads: seen 3, expected a divisor of 4"));
  EXPECT_THAT(outcome.text, HasSubstr("head_dim is no multiple of 8: seen 12"));
  EXPECT_EQ(run_program("generate --output /nowhere/x.h5 --tokens 5 --heads 1").code, 7);
}

TEST_F(Program, VerifyRefusesFilesThatDoNotBelongTogether) {
  const Outcome outcome = run_program(std::string("verify --input ") + LONGSPAN_SAMPLE + " --output " + file("none.h5"));
  EXPECT_THAT(outcome.text, HasSubstr(file("none.h5")));
  EXPECT_NE(outcome.code, 0);
  EXPECT_NE(outcome.code, 1) << "1 means: looked, and found errors too large";
}

// A result that is known without computing attention: under window(0) every token sees itself alone, so O = V and LSE = scale·q·k.
TEST_F(Program, VerifyJudgesAResult) {
  using namespace longspan;
  constexpr int kHeads = 2, kDim = 8, kTokens = 50;
  const std::string input = file("c.h5"), output = file("o.h5");
  ASSERT_EQ(run_program("generate --output " + input + " --tokens 50 --heads 2 --head-dim 8 --type float32").code, 0);
  const io::CorpusLayout layout = io::inspect_corpus({.file = input});
  const io::CorpusReader reader(layout);
  std::vector<float> q(kTokens * kHeads * kDim), k(q.size()), v(q.size()), lse(kTokens * kHeads);
  reader.read_q(0, kTokens, reinterpret_cast<std::byte*>(q.data()));
  reader.read_k(0, kTokens, 0, kHeads, reinterpret_cast<std::byte*>(k.data()));
  reader.read_v(0, kTokens, 0, kHeads, reinterpret_cast<std::byte*>(v.data()));
  for (size_t row = 0; row < lse.size(); ++row) {
    double dot = 0;
    for (size_t d = 0; d < kDim; ++d) dot += double{q[row * kDim + d]} * k[row * kDim + d];
    lse[row] = static_cast<float>(0.5 * dot);
  }
  io::ResultAttributes attributes{.longspan_version = "test",
                                  .pattern = "window(0, 0)",
                                  .scale = 0.5,
                                  .input_name = input,
                                  .input_bytes = layout.file_bytes,
                                  .input_modified_ns = layout.modified_ns};
  const auto write = [&](int64_t tokens, bool complete) {
    std::filesystem::remove(output);
    const io::ResultLayout result = io::create_result(output, tokens, kHeads, kDim, ElementType::float32, attributes);
    {
      io::ResultFile writer(result, io::ResultFile::Access::write);
      writer.write(0, tokens, reinterpret_cast<const std::byte*>(v.data()), lse.data());
      writer.sync();
    }
    if (complete) io::mark_complete(output);
  };
  const std::string command = "verify --input " + input + " --output " + output;

  write(kTokens, false);
  Outcome outcome = run_program(command);
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, HasSubstr("not complete"));
  EXPECT_THAT(run_program("inspect file " + output).text, HasSubstr("--continue"));

  write(kTokens, true);
  outcome = run_program(command + " --json " + file("v.json"));
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("every error is within its bound"));
  EXPECT_THAT(outcome.text, Not(HasSubstr("warning")));
  std::ifstream stream(file("v.json"));
  const auto json = nlohmann::json::parse(stream);
  EXPECT_EQ(json["passed"], true);
  EXPECT_EQ(json["rows"], 50);
  EXPECT_EQ(json["pairs"], 50 * kHeads);
  EXPECT_EQ(json["options"]["rows"]["from"], "default");
  EXPECT_EQ(mpirun(2, command).code, 0);

  attributes.input_modified_ns += 1;
  write(kTokens, true);
  outcome = run_program(command);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.text, HasSubstr("warning"));

  v[3] += 1;
  write(kTokens, true);
  outcome = run_program(command + " --rows 10");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.text, HasSubstr("token 0, head 0"));
  EXPECT_THAT(outcome.text, HasSubstr("FAILED"));

  write(kTokens - 1, true);
  outcome = run_program(command);
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, HasSubstr("output and input differ in tokens: seen 49, expected 50"));
}

TEST_F(Program, ConfigurationFilesGiveThePattern) {
  const Outcome outcome = run_program(std::string("inspect pattern --tokens 20k --heads 8 --config ") + LONGSPAN_CONFIGS + "/longnet.ini");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("dilated_segment(8192, 4, 3)"));
  std::ofstream(file("bad.ini")) << "[inspect pattern]\ntokns = 5\n";
  const Outcome bad = run_program("inspect pattern causal --config " + file("bad.ini"));
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.text, HasSubstr("unknown key tokns (" + file("bad.ini") + ":2); did you mean tokens?"));
}

// A machine file as doctor writes it, in short.
std::string machine_of(double full_quarter) {
  const auto spread = [](double value) {
    return nlohmann::json{{"min", 0.9 * value}, {"median", value}, {"max", 1.25 * value}, {"rank_of_worst", 3}};
  };
  const nlohmann::json row = {{"type", "bfloat16"},
                              {"head_dim", 128},
                              {"full", {{"seconds_per_quarter", spread(full_quarter)}}},
                              {"partial", {{"seconds_per_quarter", spread(1.5 * full_quarter)}}}};
  const nlohmann::json link = {{"latency_seconds", spread(1e-5)}, {"bytes_per_second", spread(1e9)}};
  return nlohmann::json{{"machine",
                         {{"ranks", 8},
                          {"hosts", 2},
                          {"ranks_per_host", 4},
                          {"target", "AVX2"},
                          {"threads", 2},
                          {"compute", nlohmann::json::array({row})},
                          {"row_seconds_per_state", nullptr},
                          {"memory", {{"copy_bytes_per_second", spread(1e10)}}},
                          {"links", {{"within_host", link}, {"across_hosts", link}}},
                          {"disk", {{"read_bytes_per_second", 2e9}, {"write_bytes_per_second", 1e9}}}}}}
      .dump();
}

TEST_F(Program, PlanPredictsTimesFromAMachine) {
  std::ofstream(file("m.json")) << machine_of(40e-6);
  std::ofstream(file("slow.json")) << machine_of(80e-6);
  const std::string command = "plan --pattern 'causal & window(4095)' --tokens 1Mi --heads 8 --kv-heads 2 ";
  const auto predict = [&](const std::string& options, const std::string& machine) {
    const Outcome outcome = run_program(command + options + " --machine " + file(machine) + " --json=" + file("p.json"));
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    EXPECT_THAT(outcome.text, HasSubstr("exposed exchange"));
    EXPECT_THAT(outcome.text, HasSubstr("8 ranks on 2 hosts, AVX2, 2 threads each"));
    return nlohmann::json::parse(std::ifstream(file("p.json")))["prediction"];
  };
  const nlohmann::json few = predict("--ranks 4", "m.json"), many = predict("--ranks 64", "m.json"),
                       slow = predict("--ranks 64", "slow.json");
  EXPECT_GT(few["seconds"], many["seconds"]);
  EXPECT_GT(slow["seconds"], many["seconds"]);
  EXPECT_GT(many["worst_rates_seconds"], many["seconds"]);
  EXPECT_GE(many["exposed"], 0);
  for (const char* key : {"step_seconds", "imbalance", "memory", "tokens_per_second", "flop_per_second_per_rank"})
    EXPECT_GT(many[key], 0) << key;
  for (const char* section : {"load", "plan", "exchange", "attend", "rows", "file"}) EXPECT_TRUE(many["sections"].contains(section));
  // 10,240 ranks: blocks hardly suffice, and still there is an answer.
  EXPECT_GT(predict("--ranks 10240 --ranks-per-host 8", "m.json")["seconds"], 0);
  EXPECT_GT(predict("--ranks 64 --rank 5", "m.json")["seconds"], 0);
  // A GPU's keys, queries and results go by the rates between it and the host, not by the host's memory: 256 bytes of K, of V, of Q and
  // of results (and 4 of LSE) for each of 2^20 rows, at 1 GB/s. One stripe after the other; the keys and queries of the first one first.
  nlohmann::json gpu = nlohmann::json::parse(machine_of(40e-9));
  gpu["machine"]["device"] = "cuda";
  gpu["machine"]["row_seconds_per_state"] = 0.0;
  gpu["machine"]["gpu_memory"] = {{"copy_bytes_per_second", 2e12}, {"to_gpu_bytes_per_second", 1e9}, {"from_gpu_bytes_per_second", 1e9}};
  gpu["machine"]["disk"] = nullptr;
  std::ofstream(file("gpu.json")) << gpu.dump();
  const Outcome on_gpu = run_program("plan --pattern 'window(0)' --tokens 1Mi --heads 1 --ranks 1 --machine " + file("gpu.json") +
                                     " --json=" + file("p.json"));
  EXPECT_EQ(on_gpu.code, 0) << on_gpu.text;
  const nlohmann::json moved = nlohmann::json::parse(std::ifstream(file("p.json")))["prediction"]["sections"];
  const double seconds = 1.048576e-3 * 256;  // of 2^20 rows of 256 bytes
  EXPECT_NEAR(moved["load"]["slowest"], 2 * seconds, 0.01 * seconds) << moved;
  EXPECT_NEAR(moved["rows"]["slowest"], (2 + 4.0 / 256) * seconds, 0.05 * seconds) << moved;
  // Where rows lie on the GPU, keys may stay there: older files do not say so.
  gpu["machine"]["key_row_bytes_per_second"] = 4e9;
  std::ofstream(file("rows.json")) << gpu.dump();
  const Outcome in_rows = run_program("plan --pattern 'window(0)' --tokens 1Mi --heads 1 --ranks 1 --machine " + file("rows.json") +
                                      " --json=" + file("p.json"));
  EXPECT_EQ(in_rows.code, 0) << in_rows.text;
  EXPECT_NEAR(nlohmann::json::parse(std::ifstream(file("p.json")))["prediction"]["sections"]["load"]["slowest"], 2 * seconds / 4,
              0.01 * seconds);
  // A partial tile may cost something for itself; older files do not say so. Of a window of 64 every row block but the first has two.
  nlohmann::json of_tiles = nlohmann::json::parse(machine_of(40e-6));
  of_tiles["machine"]["compute"][0]["partial"]["seconds_per_tile"] = 1e-3;
  std::ofstream(file("tiles.json")) << of_tiles.dump();
  const auto attend_seconds = [&](const std::string& machine) {
    const Outcome outcome = run_program("plan --pattern 'causal & window(63)' --tokens 128Ki --heads 4 --ranks 1 --machine " +
                                        file(machine) + " --json=" + file("p.json"));
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    return nlohmann::json::parse(std::ifstream(file("p.json")))["prediction"]["sections"]["attend"]["mean"].get<double>();
  };
  EXPECT_NEAR(attend_seconds("tiles.json") - attend_seconds("m.json"), 4 * (2 * 1024 - 1) * 1e-3, 0.01);
  // Another head_dim is scaled, and that is told.
  const Outcome scaled = run_program("plan --pattern causal --tokens 64Ki --head-dim 64 --ranks 2 --machine " + file("m.json"));
  EXPECT_EQ(scaled.code, 0) << scaled.text;
  EXPECT_THAT(scaled.text, HasSubstr("compute rates are those of head_dim 128, scaled to 64"));
}

TEST_F(Program, AMachineThatTellsNothingIsRefused) {
  const std::string command = "plan --pattern causal --tokens 1Ki --ranks 2 --machine ";
  EXPECT_EQ(run_program(command + file("none.json")).code, 7);
  std::ofstream(file("text.json")) << "fast";
  EXPECT_EQ(run_program(command + file("text.json")).code, 3);
  std::ofstream(file("empty.json")) << "{}";
  Outcome outcome = run_program(command + file("empty.json"));
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, HasSubstr("longspan doctor --save"));
  std::ofstream(file("m.json")) << machine_of(40e-6);
  outcome = run_program(command + file("m.json") + " --type float32");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.text, HasSubstr("the machine was not measured for float32"));
  std::string wrong = machine_of(40e-6);
  wrong.replace(wrong.find("1000000000.0"), 12, "\"very fast\"");
  std::ofstream(file("wrong.json")) << wrong;
  EXPECT_EQ(run_program(command + file("wrong.json")).code, 3);
  EXPECT_EQ(run_program("plan --pattern causal --tokens 1Ki --ranks 2 --ranks-per-host 4").code, 2);
}

TEST_F(Program, BenchKernelComparesWithThePeak) {
  const Outcome outcome =
      run_program("bench kernel --device cpu --tokens 512 --heads 4 --kv-heads 2 --iterations 2 --threads 2 --json=" + file("k.json"));
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  for (const char* name : {"full", "causal", "window", "bigbird", "of peak", "float16"}) EXPECT_THAT(outcome.text, HasSubstr(name));
  const nlohmann::json record = nlohmann::json::parse(std::ifstream(file("k.json")));
  ASSERT_EQ(record["measures"].size(), 3u * 2 * 4);
  for (const nlohmann::json& measure : record["measures"]) {
    EXPECT_EQ(measure["seconds"].size(), 2u);
    ASSERT_EQ(measure["peak_flop_per_second"].size(), 3u);
    EXPECT_GT(measure["peak_flop_per_second"][0], 0);
    EXPECT_GT(measure["flop_per_second"], 0);
    EXPECT_FALSE(measure["kernel"].get<std::string>().empty());
  }
  // 8 × 8 squares of 64 × 64; causal leaves 36 of them.
  EXPECT_EQ(record["measures"][0]["flop"], 4.0 * 64 * 512 * 512 * 4);
  EXPECT_EQ(record["measures"][1]["flop"], 4.0 * 64 * 64 * 64 * 36 * 4);
  EXPECT_EQ(run_program("bench kernel --tokens 100").code, 2);
}

TEST_F(Program, ResultsNameTheKernelThatComputedThem) {
  for (const std::string type : {"float32", "bfloat16", "float16"}) {
    const std::string input = file(type + ".h5"), output = file(type + "_o.h5"), record_file = file(type + ".json");
    ASSERT_EQ(run_program("generate --output " + input + " --tokens 700 --heads 2 --head-dim 64 --type " + type).code, 0);
    const Outcome outcome =
        run_program("attend --pattern causal --device cpu --input " + input + " --output " + output + " --json=" + record_file);
    ASSERT_EQ(outcome.code, 0) << outcome.text;
    const nlohmann::json record = nlohmann::json::parse(std::ifstream(record_file));
    EXPECT_EQ(longspan::io::inspect_result(output).attributes.device, "cpu " + record["device"]["kernel"].get<std::string>());
    const Outcome verdict = run_program("verify --rows 700 --input " + input + " --output " + output);
    EXPECT_EQ(verdict.code, 0) << verdict.text;
  }
}

TEST_F(Program, BenchExchangeTellsWhatMoves) {
  const Outcome outcome = mpirun(3, "bench exchange --tokens 3000 --heads 2 --head-dim 16 --iterations 2 --json=" + file("x.json"));
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  for (const char* name : {"window", "strided", "random 1 %", "causal", "of link", "pack"}) EXPECT_THAT(outcome.text, HasSubstr(name));
  const nlohmann::json record = nlohmann::json::parse(std::ifstream(file("x.json")));
  EXPECT_EQ(record["command"], "bench exchange");
  ASSERT_EQ(record["results"].size(), 4u);
  for (const nlohmann::json& result : record["results"]) {
    EXPECT_EQ(result["bytes_moved"], result["bytes_planned"]);
    EXPECT_EQ(result["bytes_moved"], result["bytes_lower_bound"]);
    EXPECT_EQ(result["ranks"].size(), 3u);
    EXPECT_EQ(result["seconds"].size(), 2u);
    for (const char* key : {"pattern", "partition", "bytes_ring", "message_bytes", "median_seconds", "contiguous_seconds", "link_seconds",
                            "bytes_per_second", "of_link", "pack_share", "link", "bytes_between_hosts_planned", "network_bytes"})
      EXPECT_TRUE(result.contains(key)) << key;
  }
  // One pattern, rows of a file; alone, nothing moves.
  const Outcome sample =
      run_program(std::string("bench exchange --pattern 'causal & window(99)' --iterations 1 --input ") + LONGSPAN_SAMPLE);
  EXPECT_EQ(sample.code, 0) << sample.text;
  EXPECT_THAT(sample.text, HasSubstr("9 heads, 3 KV heads"));
  EXPECT_EQ(run_program("bench exchange --documents 100,50 --iterations 1 --head-dim 16").code, 0);
  const Outcome small = mpirun(2, "bench exchange --memory 1Mi --tokens 64Ki");
  EXPECT_EQ(small.code, 2);
  EXPECT_EQ(occurrences(small.text, "too little memory"), 1) << small.text;
  EXPECT_THAT(run_program("bench exchagne").text, HasSubstr("expected one of bench kernel, bench exchange, bench scaleout, bench job"));
}

TEST_F(Program, BenchScaleoutTellsHowAJobScales) {
  const std::string command =
      "bench scaleout --pattern 'causal & window(255)' --heads 2 --head-dim 16 --iterations 2 --probe-time 2ms --json=" + file("s.json");
  const Outcome outcome = mpirun(3, command + " --documents 2000,0,1500 --svg " + file("s.svg"));
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  for (const char* name : {"strong", "weak", "both", "efficiency", "exposed", "over bound", "predicted"})
    EXPECT_THAT(outcome.text, HasSubstr(name));
  const nlohmann::json record = nlohmann::json::parse(std::ifstream(file("s.json")));
  EXPECT_EQ(record["command"], "bench scaleout");
  ASSERT_EQ(record["results"].size(), 5u);  // strong 1, 2; both 3; weak 1, 2
  for (const nlohmann::json& result : record["results"]) {
    for (const char* key : {"mode", "ranks", "hosts", "tokens", "seconds", "tokens_per_second", "flop_per_second_per_rank", "efficiency",
                            "ceiling", "efficiency_of_ceiling", "exposed", "imbalance", "moved_over_lower_bound", "sections", "predicted",
                            "prediction_error", "machine"})
      EXPECT_TRUE(result.contains(key)) << key;
    EXPECT_EQ(result["kv_bytes_moved"], result["kv_bytes_planned"]);
    EXPECT_EQ(result["kv_bytes_moved"], result["kv_bytes_lower_bound"]);
    EXPECT_GT(result["predicted"]["seconds"], 0);
    EXPECT_EQ(result["tokens"], result["mode"] == "weak" ? 3500 / 3 * result["ranks"].get<int>() : 3500);
  }
  std::ifstream svg(file("s.svg"));
  EXPECT_THAT((std::string{std::istreambuf_iterator<char>(svg), {}}), testing::AllOf(HasSubstr("strong, predicted"), HasSubstr("</svg>")));
  // Its rates are a machine for plan.
  const Outcome plan = run_program("plan --pattern causal --tokens 64Ki --head-dim 16 --ranks 100 --machine " + file("s.json"));
  EXPECT_EQ(plan.code, 0) << plan.text;
  EXPECT_THAT(plan.text, HasSubstr("3 ranks on 1 host"));
  // A given corpus, strong only.
  const Outcome sample =
      mpirun(2, std::string("bench scaleout --pattern 'causal & window(99)' --mode strong --iterations 1 --probe-time 2ms "
                            "--input ") +
                    LONGSPAN_SAMPLE);
  EXPECT_EQ(sample.code, 0) << sample.text;
  EXPECT_THAT(sample.text, Not(HasSubstr("weak  ")));
  EXPECT_EQ(mpirun(2, "bench scaleout --pattern causal --tokens 1").code, 2);
}

TEST_F(Program, BenchJobComparesAJobWithItsDiskAndKernel) {
  const std::string command =
      "bench job --device cpu --pattern 'causal & window(255)' --iterations 2 --probe-time 2ms --disk-bytes 64Ki --folder " + file("") +
      " --json=" + file("j.json") + " --input ";
  const Outcome outcome = mpirun(2, command + LONGSPAN_SAMPLE);
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("the kernel alone"));
  const nlohmann::json record = nlohmann::json::parse(std::ifstream(file("j.json")));
  EXPECT_EQ(record["command"], "bench job");
  EXPECT_EQ(record["runs"].size(), 2u);
  for (const nlohmann::json& run : record["runs"])
    for (const char* key : {"seconds", "disk_read_bytes_per_second", "disk_write_bytes_per_second"}) EXPECT_GT(run[key], 0) << key;
  // 4,154 tokens of 9 heads, 3 KV heads, head_dim 64, bfloat16; O and one float32 a row and head.
  EXPECT_EQ(record["result"]["bytes_read"], 4154 * (9 + 2 * 3) * 64 * 2);
  EXPECT_EQ(record["result"]["bytes_written"], 4154 * 9 * (64 * 2 + 4));
  for (const char* key : {"median_seconds", "disk_seconds", "kernel_seconds", "over_bound"}) EXPECT_GT(record["result"][key], 0) << key;
  for (const auto& entry : std::filesystem::directory_iterator(file("")))
    EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr("longspan-bench"))) << "left behind";
  EXPECT_EQ(mpirun(2, command + file("none.h5")).code, 3);
  EXPECT_EQ(mpirun(2, std::string("bench job --pattern causal --folder /nowhere --input ") + LONGSPAN_SAMPLE).code, 7);
}

}  // namespace
