// longspan doctor as a user calls it. Times are never judged: the tolerance is enormous.
#include "comm/transport.hpp"
#include "job_folder.hpp"

namespace longspan::job::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class Doctor : public JobFolder {
 protected:
  Outcome doctor(int ranks, const std::string& options) const {
    return run(mpirun(ranks, "doctor --device cpu --disk-bytes 1Mi --threads 1 " + options), folder_, 60 * LONGSPAN_SLOWDOWN);
  }
};

TEST_F(Doctor, AFitHostIsFitAndItsRatesAreSaved) {
  for (const int ranks : {1, 3}) {
    const Outcome outcome = doctor(ranks, "--tolerance 1e6 --folder " + folder_ + " --save " + file("machine.json"));
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    for (const char* line : {"same on all", "attention bfloat16, head_dim 128", "memory read", "disk write, fsynced",
                             "GPUs: not checked; --device cpu", "Fit."})
      EXPECT_THAT(outcome.text, HasSubstr(line));
    EXPECT_EQ(occurrences(outcome.text, "MPI in a host, latency") > 0, ranks > 1);
    EXPECT_THAT(names(), ::testing::ElementsAre("machine.json")) << "what was written to measure the disk is gone";

    const nlohmann::json record = record_of(file("machine.json"));
    EXPECT_TRUE(record["fit"]);
    EXPECT_EQ(record["ranks"].size(), static_cast<size_t>(ranks));
    const nlohmann::json& machine = record["machine"];
    EXPECT_EQ(machine["ranks"], ranks);
    EXPECT_EQ(machine["device"], "cpu");
    ASSERT_EQ(machine["compute"].size(), 6u);
    for (const nlohmann::json& row : machine["compute"]) {
      const double seconds = row["full"]["seconds_per_quarter"]["median"];
      EXPECT_GT(seconds, 0);
      EXPECT_GT(row["partial"]["seconds_per_quarter"]["median"], 0);
      EXPECT_GT(row["flop_per_second"]["median"], 0);
      if (ranks == 1) {
        EXPECT_DOUBLE_EQ(row["flop_per_second"]["median"], 4.0 * 64 * 64 * row["head_dim"].get<int>() / seconds);
      }
    }
    EXPECT_GT(machine["memory"]["read_bytes_per_second"]["min"], 0);
    EXPECT_TRUE(machine["links"]["across_hosts"].is_null());
    EXPECT_EQ(machine["links"]["within_host"].is_null(), ranks == 1);
    if (ranks > 1) {
      EXPECT_GT(machine["links"]["within_host"]["bytes_per_second"]["min"], 0);
      EXPECT_EQ(machine["links"]["within_host"]["sizes"][0]["bytes"], 65536);
    }
    EXPECT_GT(machine["disk"]["write_bytes_per_second"], 0);
    EXPECT_EQ(machine["disk"]["folder"], folder_);
  }
}

TEST_F(Doctor, GpusAndTheWayBetweenThemAreExamined) {
  if (!on_gpus()) GTEST_SKIP() << "LONGSPAN_DEVICE=cuda is not set";
  for (const int ranks : {1, 2}) {
    const Outcome outcome = run(mpirun(ranks, "doctor --share-gpu --disk-bytes 1Mi --threads 1 --tolerance 1e6 --folder " + folder_ +
                                                  " --save " + file("machine.json")),
                                folder_, 120 * LONGSPAN_SLOWDOWN);
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    for (const char* line : {"GPU attention bfloat16, head_dim 128", "GPU memory copy", "host to GPU", "GPU memory free", "Fit."})
      EXPECT_THAT(outcome.text, HasSubstr(line));
    EXPECT_THAT(outcome.text, Not(HasSubstr("not checked")));
    const nlohmann::json machine = record_of(file("machine.json"))["machine"];
    EXPECT_EQ(machine["device"], "cuda");
    ASSERT_EQ(machine["compute"].size(), 6u);
    for (const nlohmann::json& row : machine["compute"]) {
      EXPECT_GT(row["full"]["seconds_per_quarter"]["median"], 0);
      EXPECT_GT(row["partial"]["seconds_per_quarter"]["median"], 0);
    }
    for (const char* rate : {"copy_bytes_per_second", "to_gpu_bytes_per_second", "from_gpu_bytes_per_second", "both_ways_bytes_per_second"})
      EXPECT_GT(machine["gpu_memory"][rate]["min"], 0) << rate;
    EXPECT_EQ(machine["links"]["within_host"].is_null(), ranks == 1);
    if (ranks > 1) {
      EXPECT_GT(machine["links"]["within_host"]["bytes_per_second"]["min"], 0);
      EXPECT_GT(machine["links"]["within_host"]["latency_seconds"]["min"], 0);
    }
    const Outcome plan = run({LONGSPAN_PROGRAM, "plan", "--pattern", "causal", "--tokens", "64Ki", "--ranks", std::to_string(ranks),
                              "--machine", file("machine.json")},
                             folder_, 60 * LONGSPAN_SLOWDOWN);
    EXPECT_EQ(plan.code, 0) << plan.text;
  }
}

// The rest of such a cluster is examined all the same.
TEST_F(Doctor, GpusThatDoNotReachEachOtherAreUnfit) {
  if (!on_gpus()) GTEST_SKIP() << "LONGSPAN_DEVICE=cuda is not set";
  if (!comm::find_nccl().why_not.empty()) GTEST_SKIP() << comm::find_nccl().why_not;
  const Outcome outcome =
      testing::run(mpirun(2, "doctor --share-gpu --transport nccl --disk-bytes 1Mi --threads 1 --tolerance 1e6 --folder " + folder_ +
                                 " --save " + file("machine.json")),
                   folder_, 120 * LONGSPAN_SLOWDOWN, {"NCCL_SOCKET_IFNAME=nothing"});
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  EXPECT_EQ(occurrences(outcome.text, "GPUs to each other: ncclGetUniqueId failed"), 1) << outcome.text;
  for (const char* line : {"GPU memory copy", "disk write, fsynced", "UNFIT"}) EXPECT_THAT(outcome.text, HasSubstr(line));
  const nlohmann::json record = record_of(file("machine.json"));
  EXPECT_FALSE(record["fit"]);
  EXPECT_TRUE(record["machine"]["links"]["within_host"].is_null());
  EXPECT_GT(record["machine"]["gpu_memory"]["copy_bytes_per_second"]["min"], 0);
}

TEST_F(Doctor, AGpuThatIsAskedForAndNotThereIsAnErrorOfTheDevice) {
  if (!kernels::find_gpus().usable.empty()) GTEST_SKIP() << "there is a GPU";
  const Outcome outcome = run(mpirun(2, "doctor --device cuda"), folder_, 60 * LONGSPAN_SLOWDOWN);
  EXPECT_EQ(outcome.code, 5) << outcome.text;
  EXPECT_EQ(occurrences(outcome.text, "no GPU to compute on"), 1) << outcome.text;
}

TEST_F(Doctor, AFolderThatIsNotThereIsUnfit) {
  const Outcome outcome = doctor(2, "--tolerance 1e6 --folder " + file("nowhere") + " --save " + file("machine.json"));
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("UNFIT files: "));
  EXPECT_THAT(outcome.text, HasSubstr("nowhere"));
  EXPECT_THAT(outcome.text, HasSubstr("UNFIT: see above."));
  EXPECT_FALSE(record_of(file("machine.json"))["fit"]);
  EXPECT_TRUE(record_of(file("machine.json"))["machine"]["disk"].is_null());
}

TEST_F(Doctor, TooFewOpenFilesAreUnfit) {
  std::vector<std::string> command = {"bash", "-c", "ulimit -n 65 && exec \"$0\" \"$@\""};
  const std::vector<std::string> more = mpirun(1, "doctor --disk-bytes 1Mi --threads 1 --tolerance 1e6 --folder " + folder_);
  command.insert(command.end(), more.begin(), more.end());
  const Outcome allowed = run(command, folder_, 60 * LONGSPAN_SLOWDOWN);
  EXPECT_EQ(allowed.code, 0) << allowed.text;
  command[2] = "ulimit -n 64 && exec \"$0\" \"$@\"";
  const Outcome outcome = run(command, folder_, 60 * LONGSPAN_SLOWDOWN);
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("ulimit -n 65"));
}

TEST_F(Doctor, ProcessesThatDoNotKnowOfEachOtherAreAnErrorOfTheEnvironment) {
  const Outcome outcome = run({"env", "SLURM_STEP_NUM_TASKS=4", LONGSPAN_PROGRAM, "doctor"}, folder_, 30 * LONGSPAN_SLOWDOWN);
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("srun --mpi=pmix"));
}

}  // namespace
}  // namespace longspan::job::testing
