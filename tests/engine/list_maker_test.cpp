#include "engine/list_maker.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

namespace longspan::engine {
namespace {

// Seven stripes with lists of 10 bytes; they are known by the stripe in their first step's first tile.
class ListMakerTest : public ::testing::TestWithParam<int> {
 protected:
  ListMakerTest() {
    plan_.stripes.resize(7);
    for (plan::Stripe& stripe : plan_.stripes) stripe.list_bytes = 10;
  }
  void room_for(int64_t stripes) { bytes_ = stripes * 10; }
  ListMaker maker(ListMaker::Kept* kept = nullptr) {
    const auto make = [this](size_t stripe, kernels::cpu::ThreadPool* threads) {
      EXPECT_EQ(threads != nullptr, GetParam() > 1);
      if (stripe == fail_at_) throw std::runtime_error("no lists");
      StripeLists lists;
      lists.steps.resize(1);
      lists.steps[0].tiles = {kernels::Tile::full_run(static_cast<int32_t>(stripe), 1)};
      ++made_;
      return lists;
    };
    return ListMaker(plan_, bytes_, GetParam(), make, kept);
  }
  static int stripe_of(const StripeLists& lists) { return lists.steps.at(0).tiles.at(0).key; }
  static void wait(std::future<void>& future) { future.get(); }
  void settle(size_t made) {  // until so many have been made, and a while to make one too many
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (made_ < made && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

  plan::RankPlan plan_;
  int64_t bytes_ = 0;
  std::atomic<size_t> made_ = 0;
  size_t fail_at_ = 99;
};

TEST_P(ListMakerTest, EachStripesComeOnceAndInOrder) {
  for (int64_t room : {0, 1, 2, 3, 100}) {
    room_for(room);
    made_ = 0;
    ListMaker lists = maker();
    for (int stripe = 0; stripe < 7; ++stripe) {
      EXPECT_EQ(stripe_of(*lists.take(wait)), stripe);
      if (stripe % 2 == 0) lists.make_ahead();
      const StripeLists* next = lists.next();
      const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (next == nullptr && stripe < 6 && std::chrono::steady_clock::now() < limit) next = lists.next();  // they are on their way
      ASSERT_EQ(next != nullptr, stripe < 6);
      if (next != nullptr) {
        EXPECT_EQ(stripe_of(*next), stripe + 1);
      }
    }
    EXPECT_EQ(made_, 7);
    EXPECT_FALSE(lists.make_ahead());
  }
}

TEST_P(ListMakerTest, NoMoreAreThereThanThereIsRoomFor) {
  room_for(3);
  ListMaker lists = maker();
  while (lists.make_ahead()) continue;
  settle(3);
  EXPECT_EQ(made_, 3);
  lists.take(wait);  // in use: two others
  while (lists.make_ahead()) continue;
  settle(3);
  EXPECT_EQ(made_, 3);
  lists.take(wait);
  while (lists.make_ahead()) continue;
  settle(4);
  EXPECT_EQ(made_, 4);
}

TEST_P(ListMakerTest, SomeStripesAheadAreEnough) {
  room_for(100);
  ListMaker lists = maker();
  while (lists.make_ahead()) continue;
  settle(plan::kListsAhead);
  EXPECT_EQ(made_, plan::kListsAhead);
  lists.take(wait);
  while (lists.make_ahead()) continue;
  settle(plan::kListsAhead + 1);
  EXPECT_EQ(made_, plan::kListsAhead + 1);
}

TEST_P(ListMakerTest, ThoseThatAreKeptAreNotMadeAgain) {
  for (int64_t room : {14, 13}) {  // for all, or not
    room_for(room);
    made_ = 0;
    ListMaker::Kept kept;
    for (int run = 0; run < 3; ++run) {
      ListMaker lists = maker(&kept);
      if (run == 1) lists.make_ahead();
      for (size_t stripe = 0; stripe < 7; ++stripe) {
        EXPECT_EQ(stripe_of(*lists.take(wait)), stripe);
        // What was shown is kept too, even if the run ends there.
        if (const StripeLists* next = lists.next(); next != nullptr && room == 14) {
          EXPECT_EQ(kept.at(stripe + 1).get(), next);
        }
      }
      EXPECT_EQ(lists.next(), nullptr);
    }
    EXPECT_EQ(made_, room == 14 ? 7 : 21);
  }
}

TEST_P(ListMakerTest, AFailureReachesWhoTakesThem) {
  room_for(100);
  fail_at_ = 1;
  ListMaker lists = maker();
  EXPECT_EQ(stripe_of(*lists.take(wait)), 0);
  EXPECT_THROW(lists.take(wait), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Threads, ListMakerTest, ::testing::Values(1, 3));

}  // namespace
}  // namespace longspan::engine
