// Whatever is wrong is said once, with a code of its own, on any number of ranks, and no file is left that looks like a result.
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <regex>

#include "../io/fixture.hpp"
#include "job_folder.hpp"

namespace longspan::job::testing {
namespace {

using io::testing::Corpus;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kSample = std::string(LONGSPAN_TEST_DATA) + "/sample.h5";

class BadInput : public JobFolder {
 protected:
  // One message with these words, this code, nothing new in the folder.
  void expect_refused(const Outcome& outcome, int code, const std::vector<std::string>& words, int messages = 1) const {
    EXPECT_FALSE(outcome.timed_out) << outcome.text;
    EXPECT_EQ(outcome.code, code) << outcome.text;
    EXPECT_EQ(occurrences(outcome.text, "longspan: "), messages) << outcome.text;
    for (const std::string& word : words) EXPECT_THAT(outcome.text, HasSubstr(word));
  }
  Outcome attend_bad(const std::string& arguments) const { return attend(2, arguments, 30 * LONGSPAN_SLOWDOWN); }
  // Starting mpirun is mostly waiting: some jobs run at a time, and are judged when they have ended.
  void expect_bad(const std::string& arguments, int code, const std::vector<std::string>& words) {
    cases_.push_back({arguments, code, words, std::make_unique<StartedJob>(mpirun(2, "attend " + arguments), folder_)});
    if (cases_.size() >= 4) judge_first();
  }
  void judge_first() {
    const Case& first = cases_.front();
    SCOPED_TRACE(first.arguments);
    expect_refused(first.job->wait(30 * LONGSPAN_SLOWDOWN), first.code, first.words);
    cases_.pop_front();
  }
  void judge() {
    while (!cases_.empty()) judge_first();
    for (const std::string& name : names()) EXPECT_FALSE(name.starts_with("o.")) << name << " was left behind";
  }
  void TearDown() override { judge(); }
  std::string to(const std::string& input) const { return "--input " + input + " --output " + file("o.h5") + " "; }
  struct Case {
    std::string arguments;
    int code;
    std::vector<std::string> words;
    std::unique_ptr<StartedJob> job;
  };
  std::deque<Case> cases_;

  // A file made by `make`, attended.
  void expect_bad_file(const std::string& name, const std::function<void(hid_t)>& make, const std::vector<std::string>& words,
                       const std::string& pattern = "causal") {
    {
      const io::Section section;
      const io::FileHandle made = io::testing::new_file(file(name));
      make(made.get());
    }
    expect_bad(to(file(name)) + "--pattern '" + pattern + "'", 3, words);
  }
};

TEST_F(BadInput, FilesThatAreNotThereOrNotWhole) {
  Corpus().write(file("good.h5"));
  expect_bad(to(file("god.h5")) + "--pattern causal", 3, {"input file does not exist", file("god.h5"), "did you mean good.h5?"});
  expect_bad(to(folder_) + "--pattern causal", 3, {"not a regular file", "seen a folder"});
  io::testing::write_text(file("text.h5"), "Once upon a time there was a file that was no HDF5 file.");
  expect_bad(to(file("text.h5")) + "--pattern causal", 3, {"is not an HDF5 file", "without HDF5's signature"});
  io::testing::write_text(file("empty.h5"), "");
  expect_bad(to(file("empty.h5")) + "--pattern causal", 3, {"is not an HDF5 file", "an empty file"});
  fs::copy_file(file("good.h5"), file("cut.h5"));
  fs::resize_file(file("cut.h5"), fs::file_size(file("cut.h5")) * 2 / 3);
  expect_bad(to(file("cut.h5")) + "--pattern causal", 3, {"truncated"});
  fs::copy_file(file("good.h5"), file("damaged.h5"));
  std::fstream(file("damaged.h5"), std::ios::in | std::ios::out | std::ios::binary).seekp(60).write("################################", 32);
  expect_bad(to(file("damaged.h5")) + "--pattern causal", 3, {"damaged.h5"});
}

TEST_F(BadInput, DatasetsThatDoNotFit) {
  const Corpus good;
  const auto type = io::hdf5_type(good.shape.type);
  const auto put = [&](hid_t to, const char* path, std::vector<hsize_t> dims) {
    io::testing::put(to, path, type.get(), dims, type.get(), nullptr);
  };
  expect_bad_file("missing.h5",
                  [&](hid_t to) {
                    put(to, "/q", {10, 2, 8}), put(to, "/K", {10, 2, 8}), put(to, "/v", {10, 2, 8});
                  },
                  {"dataset /k is missing", "did you mean /K?"});
  expect_bad_file("rank.h5",
                  [&](hid_t to) {
                    put(to, "/q", {1, 10, 2, 8}), put(to, "/k", {10, 2, 8}), put(to, "/v", {10, 2, 8});
                  },
                  {"dataset /q has the wrong number of dimensions", "[1, 10, 2, 8]", "[tokens, heads, head_dim]"});
  expect_bad_file("type.h5",
                  [&](hid_t to) {
                    io::testing::put(to, "/q", H5T_IEEE_F64LE, {10, 2, 8}, H5T_IEEE_F64LE, nullptr);
                    put(to, "/k", {10, 2, 8}), put(to, "/v", {10, 2, 8});
                  },
                  {"dataset /q has the wrong type", "float64", "bfloat16"});
  expect_bad_file("shapes.h5",
                  [&](hid_t to) {
                    put(to, "/q", {10, 2, 8}), put(to, "/k", {10, 2, 16}), put(to, "/v", {10, 2, 8});
                  },
                  {"dataset /k has the wrong shape", "[10, 2, 16]", "[10, kv_heads, 8]"});
  expect_bad_file("values.h5",
                  [&](hid_t to) {
                    put(to, "/q", {10, 4, 8}), put(to, "/k", {10, 2, 8}), put(to, "/v", {10, 1, 8});
                  },
                  {"datasets /k and /v differ in shape"});
  expect_bad_file("heads.h5",
                  [&](hid_t to) {
                    put(to, "/q", {10, 3, 8}), put(to, "/k", {10, 2, 8}), put(to, "/v", {10, 2, 8});
                  },
                  {"query heads are no multiple of KV heads", "3 and 2"});
  expect_bad_file("dim.h5",
                  [&](hid_t to) {
                    put(to, "/q", {10, 3, 12}), put(to, "/k", {10, 3, 12}), put(to, "/v", {10, 3, 12});
                  },
                  {"head_dim of /q is not supported", "12"});
}

TEST_F(BadInput, DocumentOffsets) {
  const Corpus good;
  const auto with = [&](std::vector<int64_t> offsets) {
    return [&good, offsets](hid_t to) {
      good.put_tensors(to);
      io::testing::put_integers(to, "/document_offsets", offsets);
    };
  };
  expect_bad_file("descend.h5", with({0, 200, 100, 301}), {"ascend", ":/document_offsets"});
  expect_bad_file("end.h5", with({0, 100, 300}), {"document offsets do not end at the number of tokens", "seen 300, expected 301"});
  expect_bad_file("begin.h5", with({1, 100, 301}), {":/document_offsets"});
}

TEST_F(BadInput, BlockMasks) {
  const Corpus good;
  expect_bad_file(
      "none.h5", [&](hid_t to) { good.put_tensors(to); }, {"mine"}, "block_mask(\"mine\", 64)");
  // 301 tokens in blocks of 64: 5 rows. indptr must end at the number of entries, indices lie in 0…4.
  const auto with = [&](std::vector<int64_t> indptr, std::vector<int64_t> indices, int64_t block) {
    return [&good, indptr, indices, block](hid_t to) {
      good.put_tensors(to);
      io::testing::put_integers(to, "/block_masks/mine/indptr", indptr);
      io::testing::put_integers(to, "/block_masks/mine/indices", indices, {}, H5T_STD_I32LE);
      const io::GroupHandle group(H5Gopen2(to, "/block_masks/mine", H5P_DEFAULT));
      const io::SpaceHandle scalar(H5Screate(H5S_SCALAR));
      const hid_t attribute = H5Acreate2(group.get(), "block", H5T_STD_I64LE, scalar.get(), H5P_DEFAULT, H5P_DEFAULT);
      H5Awrite(attribute, H5T_NATIVE_INT64, &block);
      H5Aclose(attribute);
    };
  };
  expect_bad_file("block.h5", with({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, 32), {"block", "32", "64"}, "block_mask(\"mine\", 64)");
  expect_bad_file("rows.h5", with({0, 1, 2, 3, 5}, {0, 1, 2, 3, 4}, 64), {"indptr"}, "block_mask(\"mine\", 64)");
  expect_bad_file("index.h5", with({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 5}, 64), {"index out of range", "seen 5"}, "block_mask(\"mine\", 64)");
}

TEST_F(BadInput, Patterns) {
  expect_bad(to(kSample) + "--pattern 'causal & wndow(3)'", 2, {"causal & wndow(3)\n", "^", "window"});
  expect_bad(to(kSample) + "--pattern 'causal &'", 2, {"^"});
  expect_bad(to(kSample) + "--pattern '0-5: causal; 5-8: full'", 2, {"head 5"});
  expect_bad(to(kSample) + "--pattern '0-6: causal'", 2, {"head"});
  expect_bad(to(kSample) + "--pattern 'strided(0)'", 2, {"strided"});
}

TEST_F(BadInput, OptionsKeysAndVariables) {
  expect_bad(to(kSample) + "--pattern causal --scal 3", 2, {"unknown option --scal", "did you mean --scale?"});
  expect_bad(to(kSample) + "--pattern causal --memory lots", 2, {"--memory"});
  expect_bad(to(kSample), 2, {"--pattern"});
  io::testing::write_text(file("x.ini"), "[attend]\npatern = causal\n");
  expect_bad(to(kSample) + "--pattern causal --config " + file("x.ini"), 2,
             {"unknown key patern", file("x.ini") + ":2", "did you mean pattern?"});
  const Outcome outcome =
      testing::run(mpirun(2, "attend " + to(kSample) + "--pattern causal"), folder_, 30 * LONGSPAN_SLOWDOWN, {"LONGSPAN_MEMROY=8Gi"});
  expect_refused(outcome, 2, {"LONGSPAN_MEMROY", "did you mean LONGSPAN_MEMORY?"});
  expect_bad("--input " + kSample + " --output " + kSample + " --pattern causal", 2, {"output is the input file"});
}

TEST_F(BadInput, TooLittleMemoryNamesWhatWouldDo) {
  generate("c.h5", "--tokens 3000 --heads 8 --kv-heads 4 --head-dim 128 --type float32");
  const std::string job = to(file("c.h5")) + "--pattern causal --threads 1";
  const Outcome outcome = attend_bad(job + " --memory 1Mi");
  expect_refused(outcome, 2, {"too little memory for any plan", "--memory"});
  EXPECT_EQ(names(), std::vector<std::string>{"c.h5"});
  std::smatch found;
  ASSERT_TRUE(std::regex_search(outcome.text, found, std::regex("--memory ([0-9]+)Mi would do"))) << outcome.text;
  const int enough = std::stoi(found[1]);
  expect_bad(job + " --memory " + std::to_string(enough - 1) + "Mi", 2, {"too little memory"});
  judge();
  const Outcome done = attend_bad(job + " --memory " + std::to_string(enough) + "Mi");
  EXPECT_EQ(done.code, 0) << done.text;
  EXPECT_EQ(verify(file("c.h5"), file("o.h5")).code, 0);
  fs::remove(file("o.h5")), fs::remove(file("o.run.json"));
}

TEST_F(BadInput, Folders) {
  expect_bad("--input " + kSample + " --output " + file("none/o.h5") + " --pattern causal", 7,
             {"output folder does not exist", "mkdir -p"});
  expect_bad("--input " + kSample + " --output " + file("none/o.h5") + " --pattern causal --dry-run", 7, {"output folder does not exist"});
  fs::create_directory(file("folder.h5"));
  expect_bad("--input " + kSample + " --output " + file("folder.h5") + " --pattern causal --overwrite", 7, {"output file is a folder"});
  expect_bad(to(kSample) + "--pattern causal --json=" + file("none/r.json"), 7, {"run record cannot be written", "none/r.json"});
}

// To root every file may be read and written: then the job runs as nobody.
TEST_F(BadInput, Permissions) {
  std::vector<std::string> as_nobody;
  if (geteuid() == 0) {
    as_nobody = {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"};
    if (run(as_nobody, {LONGSPAN_PROGRAM, "inspect", "file", kSample}).code != 0)
      GTEST_SKIP() << "nobody cannot run the program here (setpriv, folders)";
  }
  const auto attend_as_nobody = [&](const std::string& arguments) {
    std::vector<std::string> command = as_nobody;
    for (const std::string& word : mpirun(2, "attend " + arguments)) command.push_back(word);
    return testing::run(command, folder_, 30 * LONGSPAN_SLOWDOWN, {"HOME=/tmp"});
  };
  Corpus().write(file("secret.h5"));
  fs::permissions(folder_, fs::perms(0755));
  fs::permissions(file("secret.h5"), fs::perms::none);
  expect_refused(attend_as_nobody(to(file("secret.h5")) + "--pattern causal"), 3, {"input file may not be read", "errno 13"});
  fs::permissions(folder_, fs::perms(0555));
  expect_refused(attend_as_nobody(to(kSample) + "--pattern causal"), 7, {"output folder is not writable"});
  fs::permissions(folder_, fs::perms(0755));
  EXPECT_EQ(names(), std::vector<std::string>{"secret.h5"});
}

TEST_F(BadInput, DiskFull) {
  const std::string disk = file("disk");
  fs::create_directory(disk);
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=1m") != 0)
    GTEST_SKIP() << "no small disk may be mounted here: " << std::strerror(errno);
  const Outcome outcome = attend_bad("--input " + kSample + " --output " + disk + "/o.h5 --pattern causal");
  const Outcome dry = attend_bad("--input " + kSample + " --output " + disk + "/o.h5 --pattern causal --dry-run");
  const bool empty = fs::is_empty(disk);
  EXPECT_EQ(umount(disk.c_str()), 0);
  for (const Outcome& full : {outcome, dry}) expect_refused(full, 7, {"disk full: needs ", " MiB, free 1.0 MiB", disk});
  EXPECT_TRUE(empty) << "a part of a result is left on the disk";
}

TEST_F(BadInput, RanksThatDiffer) {
  const auto two = [&](std::vector<std::string> first, const std::vector<std::string>& second) {
    first.insert(first.begin(), {LONGSPAN_MPIEXEC, "-n", "1"});
    first.insert(first.end(), {":", "-n", "1"});
    first.insert(first.end(), second.begin(), second.end());
    return testing::run(first, folder_, 30 * LONGSPAN_SLOWDOWN);
  };
  const auto job = [&](const std::string& pattern, std::vector<std::string> before = {}, const std::string& program = LONGSPAN_PROGRAM) {
    const std::vector<std::string> rest = words("attend " + to(kSample) + "--pattern '" + pattern + "'");
    before.push_back(program);
    before.insert(before.end(), rest.begin(), rest.end());
    return before;
  };
  expect_refused(two(job("causal"), job("full")), 2,
                 {"ranks differ in program or options on rank 1", "--pattern full", "--pattern causal"});
  expect_refused(two(job("causal"), job("causal", {"env", "LONGSPAN_SCALE=0.5"})), 2,
                 {"ranks differ in program or options", "--scale 0.5"});
  // An unknown option on one rank only.
  std::vector<std::string> wrong = job("causal");
  wrong.push_back("--overwrit");
  expect_refused(two(job("causal"), wrong), 2, {"--overwrit on rank 1", "did you mean --overwrite?"});
  // Another build: a copy of the program with another commit in it.
  const Outcome version = run({LONGSPAN_PROGRAM, "--version"}, std::vector<std::string>{});
  std::smatch commit;
  ASSERT_TRUE(std::regex_search(version.text, commit, std::regex("git commit +([0-9a-z]+)"))) << version.text;
  std::string binary = io::testing::read_text(LONGSPAN_PROGRAM);
  const size_t at = binary.find(commit[1].str().substr(0, 8));  // a short text may lie in the code, eight bytes at a time
  if (at == std::string::npos) GTEST_SKIP() << "the commit is not to be found in the program";
  binary[at] = binary[at] == '0' ? '1' : '0';
  io::testing::write_text(file("other"), binary);
  fs::permissions(file("other"), fs::perms(0755));
  expect_refused(two(job("causal"), job("causal", {}, file("other"))), 2, {"ranks differ in program or options on rank 1", "git commit"});
  EXPECT_EQ(names(), std::vector<std::string>{"other"});
}

// What a job asks of GPUs and does not get.
TEST_F(BadInput, Devices) {
  expect_bad(to(kSample) + "--pattern causal --device cpu --transport nccl", 5, {"NCCL", "--device cuda"});
  expect_bad(to(kSample) + "--pattern causal --device cpu --transport peer", 5, {"--transport peer", "computes on CPUs", "--device cuda"});
  if (kernels::find_gpus().usable.empty()) {
    expect_bad(to(kSample) + "--pattern causal --device cuda", 5, {"no GPU to compute on", kernels::find_gpus().why_none, "--device cpu"});
  } else if (kernels::find_gpus().usable.size() == 1) {
    expect_bad(to(kSample) + "--pattern causal --device cuda", 5, {"ranks 0-1 would share a GPU", "--share-gpu"});
  }
  expect_bad(to(kSample) + "--pattern causal --device gpu", 2, {"--device", "auto, cpu, cuda"});
}

}  // namespace
}  // namespace longspan::job::testing
