#include "launch/signals.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "longspan/error.hpp"

namespace longspan::launch {
namespace {

int foreign_calls = 0;
void foreign_handler(int) { ++foreign_calls; }

TEST(StopSignals, SetTheFlagAndNameThemselves) {
  for (const auto& [signal, name] : {std::pair{SIGUSR1, "SIGUSR1"}, std::pair{SIGTERM, "SIGTERM"}}) {
    const StopSignals signals;
    EXPECT_FALSE(signals.stop_requested());
    EXPECT_EQ(signals.signal_name(), "");
    ASSERT_EQ(raise(signal), 0);
    EXPECT_TRUE(signals.stop_requested());
    EXPECT_EQ(signals.signal_name(), name);
  }
  const StopSignals again;
  EXPECT_FALSE(again.stop_requested()) << "a new watch starts without the old one's signal";
}

TEST(StopSignals, AreSeenByOtherThreads) {
  const StopSignals signals;
  std::thread other([&] {
    while (!signals.stop_requested()) std::this_thread::yield();
  });
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  other.join();
  EXPECT_TRUE(signals.stop_requested());
}

TEST(StopSignals, PutTheFormerHandlerBack) {
  struct sigaction foreign = {}, before = {};
  foreign.sa_handler = foreign_handler;
  ASSERT_EQ(sigaction(SIGUSR1, &foreign, &before), 0);
  foreign_calls = 0;
  {
    const StopSignals signals;
    raise(SIGUSR1);
    EXPECT_EQ(foreign_calls, 0);
  }
  raise(SIGUSR1);
  EXPECT_EQ(foreign_calls, 1);
  sigaction(SIGUSR1, &before, nullptr);
}

TEST(StopSignals, DoNotBreakOffReads) {
  const StopSignals signals;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pthread_t reader = pthread_self();
  std::thread writer([&] {
    usleep(50000);
    pthread_kill(reader, SIGUSR1);
    usleep(50000);
    const char byte = 'x';
    EXPECT_EQ(write(ends[1], &byte, 1), 1);
  });
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1) << "without EINTR";
  EXPECT_EQ(byte, 'x');
  writer.join();
  EXPECT_TRUE(signals.stop_requested());
  close(ends[0]);
  close(ends[1]);
}

TEST(StopSignals, AreInstalledOnceAtATime) {
  const StopSignals signals;
  EXPECT_THROW(StopSignals(), Error);
  raise(SIGUSR1);
  EXPECT_TRUE(signals.stop_requested()) << "the refused second one has left the first alone";
}

}  // namespace
}  // namespace longspan::launch
