// Rank 1 gives up while the others wait in a barrier that it never enters.
#include "comm/communicator.hpp"

int main(int argc, char** argv) {
  using namespace longspan;
  const comm::Session session(&argc, &argv);
  const comm::Communicator world(MPI_COMM_WORLD);
  if (world.rank() == 1)
    world.abort({.code = ExitCode::io, .what = "cannot write o.h5", .seen = "No space left on device", .mend = "free some space"});
  world.barrier();
  return 0;
}
