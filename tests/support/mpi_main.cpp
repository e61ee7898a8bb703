// main() of the tests that run under mpirun: every rank runs every test in the same order; rank 0 prints, the others speak up only
// about failures; one rank's failure fails the run.
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>

#include "comm/communicator.hpp"

namespace {

class FailuresOnly : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOnly(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s:%d\n%s\n", rank_, result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.message());
  }

 private:
  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  longspan::comm::Session session(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  const longspan::comm::Communicator world(MPI_COMM_WORLD);
  if (world.rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly(world.rank()));
  }
  return world.max(RUN_ALL_TESTS()) == 0 ? 0 : 1;
}
