// Jobs that are killed: everything ends, somebody says who, and --continue gives the bits of a job that nobody disturbed.
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "job_folder.hpp"

namespace longspan::job::testing {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr int kRanks = 4;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// Long enough to be hit in its middle on a fast machine.
const std::string kShape = std::string("--tokens 16000 --kv-heads 2 --head-dim 64 --heads ") + (LONGSPAN_SLOWDOWN > 1 ? "4" : "8");

// A job of a few seconds in many stripes and steps. Made once: its result is what every other one is compared with.
class Killed : public JobFolder {
 protected:
  // Input and undisturbed result, for all tests.
  static std::string shared(const std::string& name) {
    return (std::filesystem::path(::testing::TempDir()) / ("longspan-job-shared-" + std::to_string(getpid()))).string() + name;
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(shared("")); }
  void SetUp() override {
    if (!undisturbed_.o.empty()) return;
    std::filesystem::create_directories(shared(""));
    const Outcome made = run({LONGSPAN_PROGRAM, "generate", "--output", shared("/c.h5")}, words(kShape + " --seed 7"));
    ASSERT_EQ(made.code, 0) << made.text;
    const Outcome outcome = attend(kRanks, options_for(shared("/undisturbed.h5")));
    ASSERT_EQ(outcome.code, 0) << outcome.text;
    seconds_ = outcome.seconds;
    const nlohmann::json record = record_of(shared("/undisturbed.run.json"));
    ASSERT_GE(record["plan"]["stripes"], 3);
    ASSERT_GE(record["plan"]["steps"], 3 * record["plan"]["stripes"].get<int>());
    undisturbed_ = bits_of(shared("/undisturbed.h5"));
  }
  static std::string options_for(const std::string& output) {
    return "--input " + shared("/c.h5") + " --output " + output + " --pattern causal --memory 4Mi --partition zigzag --threads 1";
  }
  std::string options(const std::string& output) const { return options_for(file(output)); }
  StartedJob start(const std::string& output, const std::string& more = "") const {
    return StartedJob(mpirun(kRanks, "attend " + options(output) + " " + more), folder_);
  }
  // Kills the job when its ledger has rank 0's first stripe, and its own files are left.
  void interrupt(const std::string& output) const {
    StartedJob job = start(output);
    while (job.running() && !first_stripe_is_finished(output)) sleep_for(0.001);
    const std::vector<Rank> ranks = job.ranks();
    ASSERT_FALSE(ranks.empty()) << job.wait(1).text;
    kill(ranks.back().process, SIGKILL);
    ASSERT_GE(job.wait_until_gone(5), 0);
    ASSERT_EQ(io::inspect_result(file(output)).attributes.complete, 0) << "the job was over before it could be killed";
  }
  bool first_stripe_is_finished(const std::string& output) const {
    const std::string path = Ledger::path_of(file(output));
    try {
      return Ledger::exists(path) && Ledger(path, 0).finished().at(0).has_value();
    } catch (const Error&) {
      return false;  // its name is there only a moment
    }
  }
  void copy_job(const std::string& from, const std::string& to) const {
    for (const std::string end : {"", ".ledger"}) fs::copy_file(file(from) + end, file(to) + end, fs::copy_options::overwrite_existing);
  }
  void expect_completes(const std::string& output, const std::string& more = "--continue") const {
    const Outcome outcome = attend(kRanks, options(output) + " " + more);
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    EXPECT_EQ(io::inspect_result(file(output)).attributes.complete, 1);
    EXPECT_TRUE(bits_of(file(output)) == undisturbed_) << outcome.text;
    EXPECT_FALSE(Ledger::exists(Ledger::path_of(file(output))));
  }

  static inline Bits undisturbed_;
  static inline double seconds_ = 0;
};

TEST_F(Killed, AtRandomMoments) {
  const char* wanted = std::getenv("KILLS");
  const int kills = wanted ? std::atoi(wanted) : 6;
  const uint64_t seed = std::random_device{}();
  std::mt19937_64 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  double slowest = 0, sum = 0;
  int killed = 0, jobs = 0, late = 0, slow = 0;
  std::string ended;
  while (killed < kills && late < 10 * kills) {
    ++jobs;
    fs::remove(file("k.h5")), fs::remove(file("k.h5.ledger"));
    // The first run is always to be killed, the ones that go on with it now and then.
    for (bool again = false;; again = true) {
      StartedJob job = start("k.h5", again ? "--continue" : "");
      const bool to_kill = killed < kills && (!again || random() % 3 == 0);
      std::vector<Rank> ranks;
      if (to_kill) {
        sleep_for(std::uniform_real_distribution<>(0, seconds_)(random));
        while (job.running() && (ranks = job.ranks()).empty()) sleep_for(0.001);
      }
      if (ranks.empty() || !job.running()) {
        late += to_kill;
        const Outcome outcome = job.wait(60 * LONGSPAN_SLOWDOWN);
        ASSERT_EQ(outcome.code, 0) << outcome.text;
        break;
      }
      const Rank victim = ranks[random() % ranks.size()];
      const bool started = !job.text().empty();
      kill(victim.process, SIGKILL);
      const double gone = job.wait_until_gone(30);
      const Outcome outcome = job.wait(1);
      ASSERT_GE(gone, 0) << "processes are left 30 s after the kill\n" << outcome.text;
      ASSERT_NE(outcome.code, 0) << outcome.text;
      if (started) {
        ASSERT_THAT(outcome.text, HasSubstr("process rank " + std::to_string(victim.rank)));
        ASSERT_THAT(outcome.text, HasSubstr("signal 9"));
      } else {  // before all ranks have joined MPI, Open MPI 4.1 now and then does not say which one it was
        ASSERT_THAT(outcome.text, HasSubstr("process"));
      }
      slowest = std::max(slowest, gone), sum += gone, ++killed, slow += gone > 5;
      // Whatever is there opens; only the result of a job that was over but for its farewell is whole.
      if (fs::exists(file("k.h5")) && io::inspect_result(file("k.h5")).attributes.complete != 0) {
        ASSERT_TRUE(bits_of(file("k.h5")) == undisturbed_);
      }
    }
    ASSERT_EQ(io::inspect_result(file("k.h5")).attributes.complete, 1);
    ASSERT_TRUE(bits_of(file("k.h5")) == undisturbed_);
    ASSERT_FALSE(fs::exists(file("k.h5.ledger")));
  }
  EXPECT_EQ(killed, kills);
  // Asked for are 5 s for each. Open MPI's own teardown took longer once in some eight runs of this test, on a busy machine.
  EXPECT_LE(slow, 1) << "of " << kills << " kills left processes for more than 5 s";
  EXPECT_EQ(verify(shared("/c.h5"), file("k.h5")).code, 0);
  std::printf("%d kills in %d jobs of %.1f s; the rest was gone after %.2f s on average, %.2f s at most\n", killed, jobs, seconds_,
              sum / killed, slowest);
}

TEST_F(Killed, BeforeAnyStripeIsDone) {
  {
    StartedJob job = start("k.h5");
    while (job.running() && !fs::exists(file("k.h5"))) std::this_thread::yield();
    for (const Rank& rank : job.ranks()) kill(rank.process, SIGKILL);
    ASSERT_GE(job.wait_until_gone(5), 0);
  }
  const Outcome refused = attend(kRanks, options("k.h5"));
  EXPECT_EQ(refused.code, 2) << "only --continue goes on";
  EXPECT_THAT(refused.text, HasSubstr("the output exists and is not complete"));
  EXPECT_THAT(refused.text, HasSubstr("--continue"));
  expect_completes("k.h5");
}

TEST_F(Killed, MpirunItself) {
  StartedJob job = start("k.h5");
  while (job.running() && !first_stripe_is_finished("k.h5")) sleep_for(0.001);
  kill(job.process(), SIGKILL);
  const double gone = job.wait_until_gone(10);
  ASSERT_GE(gone, 0) << "ranks outlive their mpirun";
  EXPECT_EQ(job.wait(1).code, 128 + SIGKILL);
  std::printf("ranks gone %.2f s after mpirun\n", gone);
  expect_completes("k.h5");
}

// The one way to end a job early that is no fault: SIGUSR1, which mpirun passes on.
TEST_F(Killed, StoppedAtASafePoint) {
  {
    StartedJob job = start("k.h5");
    while (job.running() && !first_stripe_is_finished("k.h5")) sleep_for(0.001);
    kill(job.process(), SIGUSR1);
    const Outcome outcome = job.wait(30 * LONGSPAN_SLOWDOWN);
    EXPECT_EQ(outcome.code, 75) << outcome.text;
    EXPECT_EQ(occurrences(outcome.text, "stopped at a safe point"), 1) << outcome.text;
    EXPECT_THAT(outcome.text, HasSubstr("go on with --continue"));
  }
  EXPECT_EQ(io::inspect_result(file("k.h5")).attributes.complete, 0);
  const Outcome outcome = attend(kRanks, options("k.h5") + " --continue");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_TRUE(bits_of(file("k.h5")) == undisturbed_);
  EXPECT_GE(record_of(file("k.run.json"))["result"]["finished_stripes_before"], kRanks);
}

TEST_F(Killed, WhatIsLeftIsCheckedStripeByStripe) {
  ASSERT_NO_FATAL_FAILURE(interrupt("left.h5"));
  EXPECT_EQ(run({LONGSPAN_PROGRAM, "verify", "--input", shared("/c.h5"), "--output", file("left.h5")}, std::vector<std::string>{}).code, 3);

  copy_job("left.h5", "k.h5");
  Outcome outcome = attend(kRanks, options("k.h5") + " --continue");
  EXPECT_THAT(outcome.text, HasSubstr("Going on: "));
  EXPECT_TRUE(bits_of(file("k.h5")) == undisturbed_);
  EXPECT_GE(record_of(file("k.run.json"))["result"]["finished_stripes_before"], 1);

  // One byte of row 0, which is in rank 0's first stripe.
  copy_job("left.h5", "k.h5");
  {
    std::fstream stream(file("k.h5"), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(io::inspect_result(file("k.h5")).o_offset + 5);
    const int byte = stream.peek();
    stream.seekp(stream.tellg());
    stream.put(static_cast<char>(byte ^ 1));
  }
  outcome = attend(kRanks, options("k.h5") + " --continue");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("1 finished stripe does not match its checksum and is computed again"));
  EXPECT_TRUE(bits_of(file("k.h5")) == undisturbed_);

  // A ledger that was cut off, one with a torn record, and none at all.
  copy_job("left.h5", "k.h5");
  fs::resize_file(Ledger::path_of(file("k.h5")), 4096 + 16);
  expect_completes("k.h5");
  copy_job("left.h5", "k.h5");
  {
    std::fstream stream(Ledger::path_of(file("k.h5")), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(4096 + 20);
    stream.write("torn", 4);
  }
  expect_completes("k.h5");
  copy_job("left.h5", "k.h5");
  fs::remove(Ledger::path_of(file("k.h5")));
  expect_completes("k.h5");

  // A ledger whose head is damaged says nothing: only --overwrite helps.
  copy_job("left.h5", "k.h5");
  std::ofstream(Ledger::path_of(file("k.h5")), std::ios::binary) << "rubbish, but more than a head's length of it, over and over again";
  outcome = attend(kRanks, options("k.h5") + " --continue");
  EXPECT_EQ(outcome.code, 7) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("ledger is damaged"));
  expect_completes("k.h5", "--overwrite");

  // Killed between its last two acts: complete, but with a ledger.
  fs::copy_file(file("left.h5.ledger"), file("k.h5.ledger"));
  outcome = attend(kRanks, options("k.h5") + " --continue");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.text, HasSubstr("is complete already"));
  EXPECT_FALSE(fs::exists(file("k.h5.ledger")));
}

TEST_F(Killed, AnotherJobDoesNotGoOn) {
  ASSERT_NO_FATAL_FAILURE(interrupt("k.h5"));
  generate("other.h5", kShape + " --seed 8");
  const std::string base = "--output " + file("k.h5") + " --threads 1 --continue ";
  struct Case {
    int ranks;
    std::string options, what;
  };
  const std::string input = "--input " + shared("/c.h5");
  for (const Case& other : {Case{kRanks, input + " --pattern full", "pattern differs: seen \"full\", expected \"causal\""},
                            Case{kRanks, input + " --pattern causal --scale 0.5", "scale differs: seen 0.5, expected 0.125"},
                            Case{kRanks, input + " --pattern causal --partition contiguous", "partition differs"},
                            Case{kRanks, input + " --pattern causal --memory 5Mi", "memory differs: seen 5242880, expected 4194304"},
                            Case{kRanks, input + " --pattern causal --reproducible", "reproducible differs: seen true, expected false"},
                            Case{kRanks, input + " --pattern causal --output-type float32", "output_type differs"},
                            Case{3, input + " --pattern causal", "ranks differs: seen 3, expected 4"},
                            Case{kRanks, "--input " + file("other.h5") + " --pattern causal", "input differs"}}) {
    const Outcome outcome = attend(other.ranks, base + other.options);
    EXPECT_EQ(outcome.code, 2) << outcome.text;
    EXPECT_EQ(occurrences(outcome.text, "the job to continue is another one: " + other.what), 1) << outcome.text;
  }
  // Partition and memory come from the ledger when nothing is said.
  const Outcome outcome = attend(kRanks, base + input + " --pattern causal");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_TRUE(bits_of(file("k.h5")) == undisturbed_);
}

TEST_F(Killed, WholeOutputsAreKept) {
  fs::copy_file(shared("/undisturbed.h5"), file("undisturbed.h5"));
  const auto before = fs::last_write_time(file("undisturbed.h5"));
  Outcome outcome = attend(kRanks, options("undisturbed.h5"));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("the output exists"));
  EXPECT_THAT(outcome.text, HasSubstr("--overwrite replaces it"));
  outcome = attend(kRanks, options("undisturbed.h5") + " --continue");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.text, HasSubstr("is complete already"));
  outcome = attend(kRanks, "--input " + shared("/c.h5") + " --output " + file("undisturbed.h5") + " --pattern full --continue");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text, HasSubstr("its pattern differs"));
  EXPECT_EQ(fs::last_write_time(file("undisturbed.h5")), before);

  // Something that is no result is nobody's to replace, unless told so.
  std::ofstream(file("notes.h5")) << "my notes";
  for (const std::string more : {"", " --continue"}) {
    outcome = attend(2, options("notes.h5") + more);
    EXPECT_EQ(outcome.code, more.empty() ? 2 : 3) << outcome.text;
    EXPECT_EQ(occurrences(outcome.text, "longspan: "), 1) << outcome.text;
    EXPECT_EQ(fs::file_size(file("notes.h5")), 8u);
  }
  expect_completes("notes.h5", "--overwrite");
}

}  // namespace
}  // namespace longspan::job::testing
