// Batch jobs on a real Slurm of three simulated hosts: the scripts of slurm/ as a user would edit them, stopped, requeued, killed,
// cancelled. Runs on the first of the hosts (tests/cluster/slurm).
#include <csignal>
#include <fstream>
#include <thread>

#include "job_folder.hpp"
#include "launch/topology.hpp"

namespace longspan::job::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

std::string contents(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from << " is not in\n" << text;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

class Slurm : public JobFolder {
 protected:
  void SetUp() override {
    // The folder of a user: the scripts of slurm/, who find the program by its name, and a corpus.
    ASSERT_TRUE(std::getenv("SLURM_CONF")) << "run me by tests/cluster/hosts 3 tests/cluster/slurm";
    fs::create_directory_symlink(LONGSPAN_SLURM, file("slurm"));
    generate("corpus.h5", "--tokens 30000 --heads 4 --kv-heads 2 --head-dim 64 --seed 7");
  }
  void TearDown() override {
    shell("scancel --user=root");
    for (int tries = 0; tries < 200 && !shell("squeue --noheader").empty(); ++tries) sleep_for(0.1);
  }

  std::string shell(const std::string& command) const {
    const Outcome outcome = run({"bash", "-c", "cd " + folder_ + " && " + command}, std::vector<std::string>{});
    EXPECT_EQ(outcome.code, 0) << command << "\n" << outcome.text;
    return outcome.text;
  }
  // A script of slurm/ with its three lines edited; memory so small that the job has many stripes.
  void edit(const std::string& script, const std::string& options = "--threads 1 --memory 4Mi", const std::string& before = "") const {
    std::string text = contents(file("slurm/" + script));
    text = replaced(text, "causal & window(4095)", "causal");
    text = replaced(text, "--pattern \"$pattern\"", "--pattern \"$pattern\" " + options);
    text = replaced(text, "source slurm/run", "longspan=" LONGSPAN_PROGRAM "\n" + before + "\nsource slurm/run");
    std::ofstream(file("my.sbatch")) << text;
  }
  static constexpr char kSizes[] = "--nodes=3 --ntasks-per-node=1 --cpus-per-task=1 --mem=500 ";
  // Returns the job's number.
  std::string submit(const std::string& options) const {
    std::string number = shell("sbatch --parsable " + options + " my.sbatch");
    while (!number.empty() && number.back() == '\n') number.pop_back();
    return number;
  }
  std::string log_of(const std::string& job) const { return contents(file("slurm-" + job + ".out")); }
  std::string field(const std::string& job, const std::string& name) const {
    const std::string text = shell("scontrol show job " + job);
    const size_t at = text.find(name + "=");
    if (at == std::string::npos) return "";
    const size_t begin = at + name.size() + 1;
    return text.substr(begin, text.find_first_of(" \n", begin) - begin);
  }
  // Until `condition` holds; false after `seconds`.
  template <typename Condition>
  bool until(Condition condition, double seconds = 60 * LONGSPAN_SLOWDOWN) const {
    for (const auto start = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - start < std::chrono::duration<double>(seconds); sleep_for(0.005))
      if (condition()) return true;
    return false;
  }
  std::string end_of(const std::string& job) const {
    std::string state;
    EXPECT_TRUE(until([&] {
      sleep_for(0.2);
      state = field(job, "JobState");
      return state != "PENDING" && state != "RUNNING" && state != "COMPLETING" && state != "REQUEUED";
    })) << state
        << "\n"
        << log_of(job);
    return state;
  }
  // How many stripes the ledger of `output` names.
  int finished_stripes(const std::string& output) const {
    const std::string path = Ledger::path_of(file(output));
    int finished = 0;
    try {
      for (int rank = 0; rank < 3 && Ledger::exists(path); ++rank)
        for (const auto& stripe : Ledger(path, rank).finished()) finished += stripe.has_value();
    } catch (const Error&) {  // not whole yet, or gone
    }
    return finished;
  }
  bool wait_for_more_than(int stripes, const std::string& output = "corpus_o.h5") const {
    return until([&] { return finished_stripes(output) > stripes; });
  }
  Bits undisturbed() const {
    static Bits bits;
    if (bits.o.empty()) {
      fs::rename(file("my.sbatch"), file("kept"));
      edit("cpu.sbatch");
      const std::string job = submit(kSizes);
      EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
      bits = bits_of(file("corpus_o.h5"));
      fs::remove(file("corpus_o.h5"));
      fs::rename(file("kept"), file("my.sbatch"));
    }
    return bits;
  }
};

TEST_F(Slurm, RequeuedTwiceByForceTheBitsAreThoseOfAnUndisturbedJob) {
  edit("cpu.sbatch");
  const Bits expected = undisturbed();
  const std::string job = submit(kSizes);
  // As Slurm does ahead of the time limit: the script alone is told, stops the ranks, and puts the job back into the queue.
  ASSERT_TRUE(wait_for_more_than(0)) << log_of(job);
  shell("scancel --batch --signal=USR1 " + job);
  ASSERT_TRUE(until([&] { return field(job, "Restarts") == "1" && field(job, "JobState") == "PENDING"; })) << log_of(job);
  const int first = finished_stripes("corpus_o.h5");
  EXPECT_GT(first, 0);
  // By an operator, or for a job of higher priority.
  ASSERT_TRUE(wait_for_more_than(first)) << log_of(job);
  shell("scontrol requeue " + job);
  ASSERT_TRUE(until([&] { return field(job, "Restarts") == "2"; })) << log_of(job);
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);

  const std::string log = log_of(job);
  for (const char* part : {"part 1 of job", "part 2 of job", "part 3 of job", "srun --mpi=pmix"}) EXPECT_THAT(log, HasSubstr(part));
  EXPECT_EQ(occurrences(log, "stopped at a safe point; back into the queue"), 1) << log;
  const nlohmann::json record = record_of(file("corpus_o.run.json"));
  EXPECT_EQ(record["ranks"]["count"], 3);
  EXPECT_EQ(record["ranks"]["hosts"], 3);
  EXPECT_GT(record["result"]["finished_stripes_before"], first);
  EXPECT_TRUE(bits_of(file("corpus_o.h5")) == expected);
  EXPECT_EQ(verify(file("corpus.h5"), file("corpus_o.h5")).code, 0);
}

TEST_F(Slurm, UnderMpirunTheSame) {
  edit("cpu.sbatch", "--threads 1 --memory 4Mi", "launcher=(mpirun)");
  const Bits expected = undisturbed();
  const std::string job = submit(kSizes);
  ASSERT_TRUE(wait_for_more_than(0)) << log_of(job);
  shell("scancel --batch --signal=USR1 " + job);
  ASSERT_TRUE(until([&] { return field(job, "Restarts") == "1"; })) << log_of(job);
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
  EXPECT_THAT(log_of(job), HasSubstr("by mpirun"));
  EXPECT_GT(record_of(file("corpus_o.run.json"))["result"]["finished_stripes_before"], 0);
  EXPECT_EQ(record_of(file("corpus_o.run.json"))["ranks"]["hosts"], 3);
  EXPECT_TRUE(bits_of(file("corpus_o.h5")) == expected);
}

TEST_F(Slurm, AKilledJobFailsAndTheSameScriptGoesOn) {
  edit("cpu.sbatch");
  const Bits expected = undisturbed();
  std::string job = submit(kSizes);
  ASSERT_TRUE(wait_for_more_than(0)) << log_of(job);
  shell("kill -KILL $(pgrep -x longspan | tail -n 1)");
  EXPECT_EQ(end_of(job), "FAILED") << log_of(job);
  EXPECT_EQ(field(job, "Restarts"), "0") << "a fault is for people to look at";
  EXPECT_EQ(io::inspect_result(file("corpus_o.h5")).attributes.complete, 0);
  job = submit(kSizes);
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
  EXPECT_TRUE(bits_of(file("corpus_o.h5")) == expected);
}

TEST_F(Slurm, ACancelledJobStaysCancelledAndCanGoOnLater) {
  edit("cpu.sbatch");
  const Bits expected = undisturbed();
  std::string job = submit(kSizes);
  ASSERT_TRUE(wait_for_more_than(0)) << log_of(job);
  shell("scancel " + job);
  EXPECT_EQ(end_of(job), "CANCELLED") << log_of(job);
  EXPECT_EQ(field(job, "Restarts"), "0");
  EXPECT_THAT(log_of(job), Not(HasSubstr("back into the queue")));
  job = submit(kSizes);
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
  EXPECT_TRUE(bits_of(file("corpus_o.h5")) == expected);
}

TEST_F(Slurm, AnArrayTakesOneCorpusATask) {
  std::ofstream(file("corpora.txt")) << "a.h5\nname with blanks.h5\nmissing.h5\n";
  generate("a.h5", "--tokens 1 --heads 2 --head-dim 64");
  generate("name with blanks.h5", "--documents 300,0,1 --heads 2 --head-dim 64");
  edit("array.sbatch", "");
  const std::string job = submit("--array=1-3%2 --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --mem=500");
  EXPECT_EQ(end_of(job + "_1"), "COMPLETED");
  EXPECT_EQ(end_of(job + "_2"), "COMPLETED");
  EXPECT_EQ(end_of(job + "_3"), "FAILED");
  EXPECT_EQ(field(job + "_3", "ExitCode"), "3:0");
  for (const std::string name : {"a", "name with blanks"}) {
    EXPECT_EQ(
        run({LONGSPAN_PROGRAM, "verify", "--input", file(name + ".h5"), "--output", file(name + "_o.h5")}, std::vector<std::string>{}).code,
        0);
    EXPECT_EQ(record_of(file(name + "_o.run.json"))["ranks"]["count"], 2);
  }
}

TEST_F(Slurm, RanksAndMemoryAreThoseOfTheAllocation) {
  edit("gpu.sbatch", "");
  const std::string job = submit("--nodes=3 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=1 --mem=300");
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
  const nlohmann::json record = record_of(file("corpus_o.run.json"));
  EXPECT_EQ(record["ranks"]["count"], 6);
  EXPECT_EQ(record["ranks"]["hosts"], 3);
  EXPECT_EQ(record["plan"]["memory_per_rank"].get<int64_t>(), launch::memory_share(int64_t{300} << 20, 2));
  for (const nlohmann::json& place : record["ranks"]["map"]) EXPECT_EQ(place["threads"], 1);
}

// What has to be found: a host whose link is slow, and one that sees another folder.
TEST_F(Slurm, TheDoctorNamesTheHostThatIsUnfit) {
  std::ofstream(file("my.sbatch")) << replaced(
      replaced(contents(file("slurm/doctor.sbatch")), "source slurm/run", "longspan=" LONGSPAN_PROGRAM "\nsource slurm/run"),
      "--folder \"$folder\"", "--folder \"$folder\" --threads 1 --disk-bytes 1Mi --tolerance 1e6");
  std::string job = submit(kSizes);
  EXPECT_EQ(end_of(job), "COMPLETED") << log_of(job);
  nlohmann::json record = record_of(file("machine.json"));
  EXPECT_TRUE(record["fit"]);
  EXPECT_EQ(record["machine"]["hosts"], 3);
  EXPECT_TRUE(record["machine"]["links"]["within_host"].is_null());
  EXPECT_GT(record["machine"]["links"]["across_hosts"]["bytes_per_second"]["min"], 0);

  const std::string doctor = std::string("srun --mpi=pmix --nodes=3 --ntasks-per-node=1 ") + LONGSPAN_PROGRAM +
                             " doctor --threads 1 --disk-bytes 1Mi --save machine.json ";
  const auto on_host3 = [&](const std::string& command) { return "\"$CLUSTER_ENTER\" host3 " + command; };
  std::filesystem::create_directory(file("private"));
  shell("nsenter --target \"$(pgrep -f '^slurmd -D -N host3')\" --mount mount -t tmpfs private " + file("private"));
  Outcome outcome = run({"bash", "-c", "cd " + folder_ + " && " + doctor + "--tolerance 1e6 --folder private"}, std::vector<std::string>{});
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("UNFIT files: "));
  EXPECT_THAT(outcome.text, HasSubstr("(rank 2)"));

  if (run({"bash", "-c", on_host3("tc qdisc add dev eth0 root tbf rate 50mbit burst 256kb latency 50ms")}, std::vector<std::string>{})
          .code != 0)
    GTEST_SKIP() << "the rest needs tc with a token bucket filter";
  outcome = run({"bash", "-c", "cd " + folder_ + " && " + doctor + "--tolerance 8 --folder ."}, std::vector<std::string>{});
  EXPECT_EQ(outcome.code, 4) << outcome.text;
  record = record_of(file("machine.json"));
  EXPECT_FALSE(record["fit"]);
  bool found = false;
  for (const nlohmann::json& check : record["checks"]) {
    if (check["name"] != "MPI across hosts, one of a host") continue;
    found = true;
    EXPECT_EQ(check["slowest_host"], "host3");
    EXPECT_EQ(check["verdict"], "unfit");
  }
  EXPECT_TRUE(found) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("Slowest rank: "));
}

}  // namespace
}  // namespace longspan::job::testing
