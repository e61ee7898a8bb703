#include "comm/communicator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <stdexcept>

namespace longspan::comm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const Problem kBadWindow{
    .code = ExitCode::usage, .what = "window is negative", .seen = "-3", .expected = "0 or more", .from = "--pattern", .mend = "use 0"};
const Problem kMissing{.code = ExitCode::input, .what = "cannot open x.h5"};
const Problem kNoMemory{.code = ExitCode::environment, .what = "out of memory\nin two lines; \"quoted\""};

// The error that `body` ends in on this rank; nothing when it returns.
std::optional<Error> error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

Problem on(Problem problem, const std::string& ranks) {
  problem.what += " on " + ranks;
  return problem;
}

// Ranks must not only throw: all must throw the same.
void expect_same_everywhere(const Communicator& world, const std::string& text) {
  EXPECT_EQ(world.broadcast(text), text) << "rank " << world.rank();
}

TEST(Ranks, AreDescribedInRuns) {
  EXPECT_EQ(describe_ranks({3}), "rank 3");
  EXPECT_EQ(describe_ranks({2, 3, 4, 5, 9}), "ranks 2-5, 9");
  EXPECT_EQ(describe_ranks({0, 2}), "ranks 0, 2");
  std::vector<int> odd;
  for (int r = 1; r < 1000; r += 2) odd.push_back(r);
  EXPECT_THAT(describe_ranks(odd), testing::AllOf(testing::StartsWith("ranks 1, 3, 5"), testing::EndsWith(", 31 and 484 more")));
}

TEST(Check, NamesTheCallAndMpisText) {
  EXPECT_FALSE(error_of([] { check(MPI_SUCCESS, "MPI_Barrier"); }));
  const auto error = error_of([] { check(MPI_ERR_TRUNCATE, "MPI_Recv"); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::communication);
  EXPECT_THAT(error->what(), HasSubstr("MPI_Recv failed"));
  EXPECT_THAT(error->what(), HasSubstr("MPI_ERR_TRUNCATE"));
  EXPECT_THAT(error->what(), HasSubstr("(rank "));
}

TEST(Communicator, ReturnsErrorsInsteadOfEndingTheJob) {
  const Communicator world(MPI_COMM_WORLD);
  int value = 0;
  const auto error = error_of([&] { check(MPI_Send(&value, 1, MPI_INT, world.size(), 0, world.handle()), "MPI_Send"); });
  ASSERT_TRUE(error);
  EXPECT_THAT(error->what(), HasSubstr("MPI_ERR_RANK"));
}

TEST(Communicator, KnowsRanksAndHosts) {
  const Communicator world(MPI_COMM_WORLD);
  EXPECT_EQ(world.sum(1), world.size());
  EXPECT_EQ(world.max(world.rank()), world.size() - 1);
  EXPECT_EQ(world.hosts(), 1);  // the tests run on one
  EXPECT_EQ(world.local_size(), world.size());
  EXPECT_EQ(world.local_rank(), world.rank());
  EXPECT_FALSE(world.host().empty());
  expect_same_everywhere(world, world.host());
  EXPECT_THAT(library_version(), testing::MatchesRegex("[^,\n]*[0-9][^,\n]*"));
}

TEST(Communicator, Reduces) {
  const Communicator world(MPI_COMM_WORLD, 16);  // spans of more than two values go in pieces
  const int64_t n = world.size(), r = world.rank(), large = int64_t{1} << 40;
  EXPECT_EQ(world.sum(large + r), large * n + n * (n - 1) / 2);
  EXPECT_EQ(world.max(-large - r), -large);
  EXPECT_EQ(world.min(large - r), large - (n - 1));
  std::array<int64_t, 5> values = {r, -r, large, 7 * r, 0};
  world.max(values);
  EXPECT_THAT(values, ElementsAre(n - 1, 0, large, 7 * (n - 1), 0));
  values = {1, r, large, -1, 0};
  world.sum(values);
  EXPECT_THAT(values, ElementsAre(n, n * (n - 1) / 2, large * n, -n, 0));
  std::vector<int64_t> none;
  world.sum(none);
}

TEST(Communicator, BroadcastsAndGathers) {
  for (const int64_t piece : {int64_t{1}, int64_t{16}, kPieceBytes}) {
    const Communicator world(MPI_COMM_WORLD, piece);
    for (int root = 0; root < world.size(); ++root) {
      // Sizes around a piece, an empty one among them.
      for (const size_t size : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{1000}}) {
        const std::string text(size, static_cast<char>('a' + root));
        EXPECT_EQ(world.broadcast(world.rank() == root ? text : "something else", root), text);
      }
      const auto text_of = [](int r) { return std::string(static_cast<size_t>(r) * 7, static_cast<char>('a' + r)); };
      const std::vector<std::string> texts = world.gather(text_of(world.rank()), root);
      if (world.rank() != root) {
        EXPECT_TRUE(texts.empty());
        continue;
      }
      EXPECT_EQ(texts.size(), static_cast<size_t>(world.size()));
      for (size_t r = 0; r < texts.size(); ++r) EXPECT_EQ(texts[r], text_of(static_cast<int>(r)));
    }
    const std::vector<double> halves = world.all_gather(world.rank() + 0.5);
    const std::vector<int64_t> squares = world.all_gather(int64_t{world.rank()} * world.rank());
    for (int64_t r = 0; r < world.size(); ++r) {
      EXPECT_EQ(halves[static_cast<size_t>(r)], static_cast<double>(r) + 0.5);
      EXPECT_EQ(squares[static_cast<size_t>(r)], r * r);
    }
  }
}

TEST(Agree, IsSilentWhenNobodyFoundAnything) {
  const Communicator world(MPI_COMM_WORLD);
  EXPECT_FALSE(error_of([&] { world.agree({}); }));
  int calls = 0;
  EXPECT_FALSE(error_of([&] { world.agreed([&] { ++calls; }); }));
  EXPECT_EQ(calls, 1);
}

TEST(Agree, OneRanksProblemIsEverybodysError) {
  const Communicator world(MPI_COMM_WORLD);
  for (int culprit = 0; culprit < world.size(); ++culprit) {
    const auto error = error_of([&] { world.agree(world.rank() == culprit ? std::vector{kBadWindow, kMissing} : std::vector<Problem>{}); });
    ASSERT_TRUE(error);
    const std::string who = "rank " + std::to_string(culprit);
    if (world.size() == 1)
      EXPECT_THAT(error->problems(), ElementsAre(kBadWindow, kMissing));
    else
      EXPECT_THAT(error->problems(), ElementsAre(on(kBadWindow, who), on(kMissing, who)));
    EXPECT_EQ(error->code(), ExitCode::usage);
    expect_same_everywhere(world, error->what());
  }
}

TEST(Agree, AProblemThatAllSeeIsReportedOnceWithoutRanks) {
  const Communicator world(MPI_COMM_WORLD);
  const auto error = error_of([&] { world.agree({kNoMemory, kMissing, kNoMemory}); });
  ASSERT_TRUE(error);
  EXPECT_THAT(error->problems(), ElementsAre(kNoMemory, kMissing));
  EXPECT_EQ(error->code(), ExitCode::environment);
}

TEST(Agree, DistinctProblemsComeInRankOrder) {
  const Communicator world(MPI_COMM_WORLD, 64);  // the gathering goes in pieces
  if (world.size() < 3) GTEST_SKIP() << "needs 3 ranks, has " << world.size();
  // rank 0 nothing; rank 1 its own and `missing`; the others `missing` and `bad window`.
  const Problem own{.code = ExitCode::io, .what = "only rank 1 saw it", .seen = "this"};
  const auto error = error_of([&] {
    world.agree(world.rank() == 0   ? std::vector<Problem>{}
                : world.rank() == 1 ? std::vector{own, kMissing}
                                    : std::vector{kMissing, kBadWindow});
  });
  ASSERT_TRUE(error);
  const std::string last = std::to_string(world.size() - 1);
  EXPECT_THAT(error->problems(), ElementsAre(on(own, "rank 1"), on(kMissing, "ranks 1-" + last),
                                             on(kBadWindow, world.size() == 3 ? "rank 2" : "ranks 2-" + last)));
  EXPECT_EQ(error->code(), ExitCode::io);
  expect_same_everywhere(world, error->what());
}

TEST(Agree, OnlyTheRootLooks) {
  const Communicator world(MPI_COMM_WORLD);
  int calls = 0;
  EXPECT_FALSE(error_of([&] { world.on_root([&] { ++calls; }); }));
  EXPECT_EQ(calls, world.rank() == 0 ? 1 : 0);
  const auto error = error_of([&] { world.on_root([&] { throw Error(std::vector{kMissing, kBadWindow}); }); });
  ASSERT_TRUE(error);
  EXPECT_THAT(error->problems(), ElementsAre(kMissing, kBadWindow)) << "no word of ranks: the others did not look";
}

TEST(Agree, CatchesEveryKindOfException) {
  const Communicator world(MPI_COMM_WORLD);
  const bool last = world.rank() == world.size() - 1;
  auto error = error_of([&] {
    world.agreed([&] {
      if (last) throw Error(kMissing);
    });
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::input);
  error = error_of([&] {
    world.agreed([&] {
      if (last) throw std::bad_alloc();
    });
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::environment);
  EXPECT_THAT(error->what(), HasSubstr("out of memory"));
  error = error_of([&] {
    world.agreed([&] {
      if (last) throw std::runtime_error("surprise");
    });
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::internal);
  EXPECT_THAT(error->what(), HasSubstr("surprise"));
  error = error_of([&] {
    world.agreed([&] {
      if (last) throw 42;
    });
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ExitCode::internal);
  // An agreed error that passes an outer agreement keeps its words.
  error = error_of([&] { world.agreed([&] { world.agree(last ? std::vector{kMissing} : std::vector<Problem>{}); }); });
  ASSERT_TRUE(error);
  EXPECT_THAT(error->problems(), ElementsAre(world.size() == 1 ? kMissing : on(kMissing, "rank " + std::to_string(world.size() - 1))));
}

TEST(Communicator, IsNotFreedWhileAnExceptionUnwinds) {
  // One rank leaves by an exception, the others wait for nobody: were the destructor collective here, this would hang.
  const Communicator world(MPI_COMM_WORLD);
  const Communicator* kept = new Communicator(MPI_COMM_WORLD);
  const MPI_Comm handle = kept->handle();
  try {
    const std::unique_ptr<const Communicator> owner(kept);
    throw std::runtime_error("on every rank, so that the test can clean up");
  } catch (const std::runtime_error&) {
  }
  int size = 0;
  MPI_Comm again = handle;
  EXPECT_EQ(MPI_Comm_size(again, &size), MPI_SUCCESS);
  EXPECT_EQ(size, world.size());
  EXPECT_EQ(MPI_Comm_free(&again), MPI_SUCCESS);
}

TEST(Session, LeavesAHostProgramsMpiAlone) {
  { const Session inner(nullptr, nullptr); }
  int finalized = 1;
  MPI_Finalized(&finalized);
  EXPECT_EQ(finalized, 0);
}

}  // namespace
}  // namespace longspan::comm
