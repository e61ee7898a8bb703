#include <gtest/gtest.h>

#include <random>

#include "comm/communicator.hpp"

namespace longspan::comm {
namespace {

using Letters = std::vector<Communicator::Letter>;

// What `sender` writes to `receiver` as its letter number `which`: every byte depends on all of them.
std::vector<std::byte> content(int round, int sender, int receiver, int which, size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((static_cast<size_t>(round * 31 + sender * 7 + receiver * 3 + which) + i * 13) & 0xff);
  return bytes;
}

// Who writes how much to whom in `round`, the same on every rank: sizes[sender][receiver] are the sizes of the letters.
std::vector<std::vector<std::vector<size_t>>> mail_of(int round, int ranks) {
  std::mt19937 random(static_cast<unsigned>(round));
  static constexpr size_t kSizes[] = {0, 1, 7, 8, 9, 16, 100, 10000};
  std::vector mail(static_cast<size_t>(ranks), std::vector<std::vector<size_t>>(static_cast<size_t>(ranks)));
  const unsigned density = round % 5;  // from nobody writes to most write
  for (auto& row : mail)
    for (auto& letters : row)
      if (random() % 5 < density)
        for (unsigned n = 1 + random() % 2; n > 0; --n) letters.push_back(kSizes[random() % std::size(kSizes)]);
  return mail;
}

void exchange_random_mail(const Communicator& world, int rounds) {
  const auto self = static_cast<size_t>(world.rank());
  for (int round = 0; round < rounds; ++round) {
    const auto mail = mail_of(round, world.size());
    Letters out;
    for (int to = world.size() - 1; to >= 0; --to)  // the order of receivers does not matter
      for (size_t n = 0; n < mail[self][static_cast<size_t>(to)].size(); ++n)
        out.push_back({to, content(round, world.rank(), to, static_cast<int>(n), mail[self][static_cast<size_t>(to)][n])});
    const Letters in = world.sparse_all_to_all(out);
    size_t next = 0;
    for (int from = 0; from < world.size(); ++from) {
      const auto& sizes = mail[static_cast<size_t>(from)][self];
      for (size_t n = 0; n < sizes.size(); ++n, ++next) {
        ASSERT_LT(next, in.size()) << "round " << round;
        EXPECT_EQ(in[next].rank, from) << "round " << round;
        EXPECT_TRUE(in[next].bytes == content(round, from, world.rank(), static_cast<int>(n), sizes[n])) << "round " << round;
      }
    }
    EXPECT_EQ(next, in.size()) << "round " << round;
  }
}

TEST(SparseAllToAll, DeliversRandomMailFiftyTimesInARow) { exchange_random_mail(Communicator(MPI_COMM_WORLD), 50); }

// 8 bytes a piece: letters of 7, 8, 9 and 16 bytes end in, at and after a piece.
TEST(SparseAllToAll, DeliversLettersInPieces) { exchange_random_mail(Communicator(MPI_COMM_WORLD, 8), 20); }

TEST(SparseAllToAll, NobodyWrites) {
  const Communicator world(MPI_COMM_WORLD);
  for (int round = 0; round < 10; ++round) EXPECT_TRUE(world.sparse_all_to_all({}).empty());
}

TEST(SparseAllToAll, EverybodyWritesToOneAndToItself) {
  const Communicator world(MPI_COMM_WORLD);
  const Letters in = world.sparse_all_to_all({{0, content(0, world.rank(), 0, 0, 5)}, {world.rank(), content(1, 0, 0, 0, 3)}});
  if (world.rank() != 0) {
    ASSERT_EQ(in.size(), 1u);
    EXPECT_EQ(in[0].rank, world.rank());
    EXPECT_EQ(in[0].bytes, content(1, 0, 0, 0, 3));
    return;
  }
  ASSERT_EQ(in.size(), static_cast<size_t>(world.size()) + 1);
  EXPECT_EQ(in[0].rank, 0);
  EXPECT_EQ(in[1].bytes, content(1, 0, 0, 0, 3));
  for (size_t i = 2; i < in.size(); ++i) EXPECT_EQ(in[i].rank, static_cast<int>(i) - 1);
}

// Calls in a row without any barrier, each with another content: a fast rank's next letter must not be taken for this call's.
TEST(SparseAllToAll, CallsInARowDoNotMix) {
  const Communicator world(MPI_COMM_WORLD);
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  for (int round = 0; round < 200; ++round) {
    const Letters in = world.sparse_all_to_all({{next, content(round, world.rank(), next, 0, 4)}});
    ASSERT_EQ(in.size(), 1u) << "round " << round;
    EXPECT_EQ(in[0].rank, previous);
    EXPECT_EQ(in[0].bytes, content(round, previous, world.rank(), 0, 4)) << "round " << round;
  }
}

}  // namespace
}  // namespace longspan::comm
