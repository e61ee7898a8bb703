#include "job/ledger.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace longspan::job {
namespace {

using nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class LedgerTest : public ::testing::Test {
 protected:
  LedgerTest() {
    std::string name = (std::filesystem::temp_directory_path() / "longspan-ledger-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp");
    folder_ = name, path_ = Ledger::path_of(folder_ + "/o.h5");
  }
  ~LedgerTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string bytes() const {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  void set_bytes(const std::string& bytes) const { std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes; }
  std::vector<Problem> problems(int64_t rank = 0) const {
    try {
      Ledger ledger(path_, rank);
    } catch (const Error& error) {
      return error.problems();
    }
    return {};
  }

  std::string folder_, path_;
  const ordered_json head_ = {{"input", {{"name", "c.h5"}, {"bytes", 7983912}}}, {"pattern", "causal"}, {"scale", 0.125}, {"ranks", 3}};
};

TEST_F(LedgerTest, records_are_found_again_per_rank) {
  EXPECT_FALSE(Ledger::exists(path_));
  Ledger::create(path_, head_, 3, 200);  // 200 records: two pages a rank
  EXPECT_TRUE(Ledger::exists(path_));
  EXPECT_EQ(std::filesystem::path(path_).filename(), "o.h5.ledger");
  EXPECT_EQ(std::filesystem::file_size(path_), 4096u * (1 + 3 * 2));
  {
    Ledger zero(path_, 0), one(path_, 1), two(path_, 2);
    EXPECT_EQ(one.head(), head_);
    EXPECT_EQ(one.ranks(), 3);
    EXPECT_EQ(one.stripes(), 200);
    zero.record(0, 10), one.record(199, 11), one.record(5, 12), two.record(0, 13), two.record(0, 14);
  }
  for (int64_t rank = 0; rank < 3; ++rank) {
    const auto finished = Ledger(path_, rank).finished();
    ASSERT_EQ(finished.size(), 200u);
    for (size_t i = 0; i < finished.size(); ++i) {
      std::optional<uint64_t> expected;
      if (rank == 0 && i == 0) expected = 10;
      if (rank == 1 && i == 199) expected = 11;
      if (rank == 1 && i == 5) expected = 12;
      if (rank == 2 && i == 0) expected = 14;  // written again: the later one counts
      EXPECT_EQ(finished[i], expected) << rank << " " << i;
    }
  }
  Ledger::create(path_, head_, 3, 200);  // anew: nothing is finished
  for (const auto& stripe : Ledger(path_, 1).finished()) EXPECT_FALSE(stripe.has_value());
  Ledger::remove(path_);
  EXPECT_FALSE(Ledger::exists(path_));
  EXPECT_NO_THROW(Ledger::remove(path_));
}

TEST_F(LedgerTest, torn_at_every_byte_of_the_last_record) {
  Ledger::create(path_, head_, 2, 128);  // exactly one page a rank: the last record ends the file
  {
    Ledger ledger(path_, 1);
    for (int64_t stripe = 0; stripe < 128; ++stripe) ledger.record(stripe, 1000 + static_cast<uint64_t>(stripe));
  }
  const std::string whole = bytes();
  ASSERT_EQ(whole.size(), 4096u * 3);
  for (size_t kept = 0; kept < 32; ++kept) {
    set_bytes(whole.substr(0, whole.size() - 32 + kept));
    const auto finished = Ledger(path_, 1).finished();
    ASSERT_EQ(finished.size(), 128u);
    EXPECT_EQ(finished[126], 1126u) << kept;
    EXPECT_FALSE(finished[127].has_value()) << kept;
    // Torn in place: the rest is what was there before, zeros.
    set_bytes(whole.substr(0, whole.size() - 32 + kept) + std::string(32 - kept, '\0'));
    EXPECT_FALSE(Ledger(path_, 1).finished()[127].has_value()) << kept;
  }
  set_bytes(whole.substr(0, whole.size() - 20));
  Ledger ledger(path_, 1);
  ledger.record(127, 5);  // and can be written anew
  EXPECT_EQ(ledger.finished()[127], 5u);
}

TEST_F(LedgerTest, any_changed_bit_of_a_record_undoes_it) {
  Ledger::create(path_, head_, 1, 3);
  Ledger(path_, 0).record(1, 77);
  const std::string whole = bytes();
  for (size_t bit = 0; bit < 256; ++bit) {
    std::string changed = whole;
    changed[4096 + 32 + bit / 8] = static_cast<char>(changed[4096 + 32 + bit / 8] ^ (1 << bit % 8));
    set_bytes(changed);
    EXPECT_FALSE(Ledger(path_, 0).finished()[1].has_value()) << bit;
  }
  // A record at another stripe's place, or of another rank, does not count either.
  std::string moved = whole;
  moved.replace(4096 + 64, 32, whole, 4096 + 32, 32);
  set_bytes(moved);
  EXPECT_EQ(Ledger(path_, 0).finished()[1], 77u);
  EXPECT_FALSE(Ledger(path_, 0).finished()[2].has_value());
}

TEST_F(LedgerTest, damaged_heads) {
  Ledger::create(path_, head_, 2, 3);
  const std::string whole = bytes();
  const auto expect_damaged = [&](const std::string& changed, const std::string& word) {
    set_bytes(changed);
    const auto found = problems();
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].code, ExitCode::io);
    EXPECT_THAT(found[0].text(),
                AllOf(HasSubstr("ledger is damaged"), HasSubstr(word), HasSubstr("use --overwrite to start anew"), HasSubstr(path_)));
  };
  for (size_t i = 0; i < 48 + head_.dump(1).size(); ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ 4);
    expect_damaged(changed, i < 8 ? "no ledger" : "checksum");
  }
  expect_damaged("", "0 bytes");
  expect_damaged(whole.substr(0, 47), "47 bytes");
  expect_damaged(whole.substr(0, 60), "ends inside the head");
  expect_damaged(std::string(9000, 'x'), "no ledger");
}

TEST_F(LedgerTest, missing_unwritable_and_other_ranks) {
  ASSERT_EQ(problems().size(), 1u);
  EXPECT_THAT(problems()[0].text(), HasSubstr("ledger does not exist"));
  EXPECT_EQ(problems()[0].code, ExitCode::io);
  Ledger::create(path_, head_, 2, 3);
  ASSERT_EQ(problems(2).size(), 1u);
  EXPECT_EQ(problems(2)[0].code, ExitCode::usage);
  EXPECT_THAT(problems(2)[0].text(), AllOf(HasSubstr("another number of ranks"), HasSubstr("2 ranks")));
  try {
    Ledger::create(folder_ + "/none/o.h5.ledger", head_, 1, 1);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::io);
    EXPECT_THAT(error.what(), HasSubstr("folder does not exist"));
  }
  EXPECT_THROW(Ledger(path_, 0).record(3, 0), Error);
}

TEST_F(LedgerTest, long_heads_and_no_stripes) {
  ordered_json head = head_;
  head["pattern"] = std::string(100'000, 'x');
  Ledger::create(path_, head, 2, 0);
  EXPECT_EQ(Ledger(path_, 1).head(), head);
  EXPECT_TRUE(Ledger(path_, 1).finished().empty());
}

TEST_F(LedgerTest, ranks_write_at_once) {
  Ledger::create(path_, head_, 4, 60);
  {
    std::vector<std::jthread> ranks;
    for (int64_t rank = 0; rank < 4; ++rank) {
      ranks.emplace_back([this, rank] {
        Ledger ledger(path_, rank);
        for (int64_t stripe = 0; stripe < 60; ++stripe) ledger.record(stripe, static_cast<uint64_t>(100 * rank + stripe));
      });
    }
  }
  for (int64_t rank = 0; rank < 4; ++rank) {
    const auto finished = Ledger(path_, rank).finished();
    for (size_t stripe = 0; stripe < 60; ++stripe) EXPECT_EQ(finished[stripe], static_cast<uint64_t>(100 * rank) + stripe);
  }
}

TEST_F(LedgerTest, differences_name_every_key_with_both_values) {
  EXPECT_TRUE(differences(head_, head_, path_).empty());
  ordered_json job = head_;
  job["input"]["bytes"] = 5;
  job["pattern"] = "full";
  job.erase("scale");
  job["threads"] = 8;
  const auto problems = differences(head_, job, path_);
  ASSERT_EQ(problems.size(), 4u);
  EXPECT_THAT(problems[0].text(),
              AllOf(HasSubstr("input.bytes differs"), HasSubstr("seen 5"), HasSubstr("expected 7983912"), HasSubstr(path_)));
  EXPECT_THAT(problems[1].text(), AllOf(HasSubstr("pattern differs"), HasSubstr("\"full\""), HasSubstr("\"causal\"")));
  EXPECT_THAT(problems[2].text(), AllOf(HasSubstr("scale differs"), HasSubstr("seen nothing"), HasSubstr("0.125")));
  EXPECT_THAT(problems[3].text(), AllOf(HasSubstr("threads differs"), HasSubstr("seen 8"), HasSubstr("expected nothing")));
  for (const Problem& problem : problems) EXPECT_EQ(problem.code, ExitCode::usage);
}

TEST(ChecksumTest, pieces_do_not_matter) {
  std::string bytes(100'003, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i + i / 7);
  Checksum whole, pieces;
  EXPECT_EQ(whole.value(), 0x2d06800538d394c2u);  // XXH3's published value of no bytes
  whole.add(bytes.data(), bytes.size());
  for (size_t at = 0, length = 0; at < bytes.size(); at += length, length = 1 + length * 2 % 977)
    pieces.add(bytes.data() + at, std::min(length, bytes.size() - at));
  EXPECT_EQ(whole.value(), pieces.value());
  bytes[50'000] = static_cast<char>(bytes[50'000] ^ 1);
  pieces.reset();
  pieces.add(bytes.data(), bytes.size());
  EXPECT_NE(whole.value(), pieces.value());
}

}  // namespace
}  // namespace longspan::job
