// The same job in many ways: ranks, partitions, memory, patterns. Results are right in all of them, and what moves is what was planned.
#include <optional>

#include "job_folder.hpp"

namespace longspan::job::testing {
namespace {

using ::testing::HasSubstr;

const std::string kSample = std::string(LONGSPAN_TEST_DATA) + "/sample.h5";

class Matrix : public JobFolder {
 protected:
  nlohmann::json attended(int ranks, const std::string& output, const std::string& options) const {
    const Outcome outcome =
        attend(ranks, "--input " + kSample + " --output " + file(output) +
                          (options.find("--threads") == std::string::npos ? " --threads 1" : "") + " --overwrite " + options);
    EXPECT_EQ(outcome.code, 0) << ranks << " ranks, " << options << "\n" << outcome.text;
    const nlohmann::json record = record_of(std::filesystem::path(file(output)).replace_extension(".run.json"));
    EXPECT_EQ(record["result"]["kv_bytes_moved"], record["result"]["kv_bytes_planned"]);
    return record;
  }
};

TEST_F(Matrix, PatternsOnAnyNumberOfRanks) {
  const std::vector<std::pair<std::string, std::vector<int>>> runs{{"causal", {1, 2, 3, 4, 7}}, {"full", {3}},          {"bigbird", {4}},
                                                                   {"longformer", {2, 7}},      {"streaming", {3}},     {"strided", {4}},
                                                                   {"dilated-window", {2}},     {"powerattention", {7}}};
  for (const auto& [name, ranks] : runs) {
    for (const int count : ranks) {
      SCOPED_TRACE(name + " on " + std::to_string(count) + " ranks");
      // 2 MiB hold no rank's keys with what else is needed (they are read again); 3 MiB do on three ranks and more.
      const std::string memory = count % 2 == 0 ? "2Mi" : "3Mi";
      const nlohmann::json plan =
          attended(count, "o.h5", "--config " + std::string(LONGSPAN_CONFIGS) + "/" + name + ".ini --memory " + memory)["plan"];
      if (name == "causal" || name == "full") {
        EXPECT_GE(plan["stripes"], 3);
        EXPECT_GE(plan["per_rank"]["summary"]["steps"]["max"], 3);
        EXPECT_EQ(plan["keys_stay"], count >= 3 && memory == "3Mi");
      }
      const Outcome verified = verify(kSample, file("o.h5"));
      EXPECT_EQ(verified.code, 0) << verified.text;
    }
  }
}

// 16,000 tokens on two ranks: 31 MiB of keys and values each, and as much of queries and results. Rows that look at all keys make no
// exception, nor does what is read again.
TEST_F(Matrix, ProcessesKeepToTheirMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory would be measured";
#endif
  if (on_gpus()) GTEST_SKIP() << "--memory is a GPU's then";
  const auto peak_of = [&](int ranks, const std::string& input, const std::string& options) {
    const Outcome outcome = attend(ranks, "--input " + file(input) + " --output " + file("o.h5") + " --threads 1 --overwrite " + options);
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    const nlohmann::json record = record_of(file("o.run.json"));
    return std::pair(record["result"]["peak_memory"]["max"].get<double>() / (1 << 20), record["plan"]["keys_stay"].get<bool>());
  };
  generate("small.h5", "--tokens 10 --heads 8 --head-dim 128");
  generate("large.h5", "--tokens 16000 --heads 8 --head-dim 128");
  for (const std::string pattern : {"'rows(0, 3) | (causal & window(100))'", "'bigbird(64, 3, 1, 1, 0)'"}) {
    const auto [alone, ignored] = peak_of(2, "small.h5", "--pattern " + pattern);
    for (const auto& [mebibytes, stay] : {std::pair{8, false}, {16, false}, {96, true}}) {
      const auto [peak, keys_stay] = peak_of(2, "large.h5", "--memory " + std::to_string(mebibytes) + "Mi --pattern " + pattern);
      EXPECT_EQ(keys_stay, stay);
      EXPECT_LE(peak, alone + mebibytes + 8) << pattern << " with " << mebibytes << " MiB";
      std::printf("%s with %d MiB: %.1f MiB, %.1f of which are the program's own\n", pattern.c_str(), mebibytes, peak, alone);
    }
  }
  // The queries of 3,000 rows (1.5 MiB) go from rank 0 to all others, and it must not keep a copy for each.
  generate("long.h5", "--tokens 132000 --heads 4 --kv-heads 1 --head-dim 64");
  const auto [alone, ignored] = peak_of(7, "small.h5", "--pattern full");
  const auto [peak, keys_stay] = peak_of(7, "long.h5", "--memory 64Mi --pattern 'rows(0, 3000) | window(100)'");
  const nlohmann::json record = record_of(file("o.run.json"));
  const double planned = record["plan"]["per_rank"]["summary"]["memory"]["max"].get<double>() / (1 << 20);
  EXPECT_GT(record["result"]["long_row_bytes_moved"], 0);
  EXPECT_LE(peak, alone + planned + 4);
  std::printf("long rows: %.1f MiB, %.1f planned and %.1f the program's own\n", peak, planned, alone);
}

TEST_F(Matrix, ReproducibleBits) {
  for (const std::string pattern : {"causal", "'longformer(65, 32)'"}) {
    std::optional<Bits> first;
    const auto compare = [&](int ranks, const std::string& more) {
      attended(ranks, "o.h5", "--reproducible --pattern " + pattern + " " + more);
      const Bits bits = bits_of(file("o.h5"));
      if (first) {
        EXPECT_TRUE(bits == *first) << pattern << ", " << ranks << " ranks " << more;
      } else {
        first = bits;
      }
    };
    compare(1, "");
    compare(2, "--memory 4Mi --partition contiguous");
    compare(3, "--partition zigzag --memory 5Mi");
    compare(4, "--partition balanced --threads 2");
    compare(7, "--memory 4Mi");
  }
}

TEST_F(Matrix, DryRunsTouchNothing) {
  const Outcome outcome = attend(3, "--input " + kSample + " --output " + file("o.h5") + " --pattern causal --dry-run");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("Dry run"));
  EXPECT_THAT(outcome.text, HasSubstr("tiles x heads"));
  EXPECT_TRUE(names().empty());
  attended(2, "o.h5", "--pattern 'window(50)'");
  const std::string record = record_of(file("o.run.json")).dump();
  const auto files = names();
  EXPECT_EQ(attend(2, "--input " + kSample + " --output " + file("o.h5") + " --pattern causal --dry-run").code, 2) << "the output exists";
  EXPECT_EQ(attend(2, "--input " + kSample + " --output " + file("o.h5") + " --pattern causal --dry-run --overwrite").code, 0);
  EXPECT_EQ(names(), files);
  EXPECT_EQ(record_of(file("o.run.json")).dump(), record);
  EXPECT_EQ(verify(kSample, file("o.h5")).code, 0);
}

}  // namespace
}  // namespace longspan::job::testing
