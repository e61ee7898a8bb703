#include "launch/gpu_choice.hpp"

#include <gtest/gtest.h>

namespace longspan::launch {
namespace {

TEST(GpuChoice, RanksThatWouldShareAGpuAreNamed) {
  EXPECT_FALSE(shared_gpu({"node1 H200 0000:3b:00", "node1 H200 0000:af:00", "node2 H200 0000:3b:00"}));
  const auto problem = shared_gpu({"node1 H200 0000:3b:00", "node1 H200 0000:af:00", "node1 H200 0000:3b:00"});
  ASSERT_TRUE(problem);
  EXPECT_EQ(problem->code, ExitCode::device);
  EXPECT_NE(problem->what.find("ranks 0, 2"), std::string::npos) << problem->what;
  EXPECT_EQ(problem->seen, "node1 H200 0000:3b:00");
  EXPECT_NE(problem->mend.find("--share-gpu"), std::string::npos);
}

TEST(GpuChoice, AllRanksChooseAlike) {
  const comm::Communicator world(MPI_COMM_WORLD);
  EXPECT_FALSE(choose_gpu(world, DeviceKind::cpu, false).gpu);
  const bool any = world.max(kernels::find_gpus().usable.empty() ? 1 : 0) == 0;
  const GpuChoice own = choose_gpu(world, DeviceKind::automatic, false), shared = choose_gpu(world, DeviceKind::automatic, true);
  EXPECT_EQ(world.sum(own.gpu ? 1 : 0) % world.size(), 0) << "GPUs for all or for none";
  EXPECT_EQ(world.sum(shared.gpu ? 1 : 0), any ? world.size() : 0);
  if (any) {
    EXPECT_GT(shared.free_memory, 0);
    EXPECT_EQ(own.gpu.has_value(), own.remark.empty());
    return;
  }
  try {
    choose_gpu(world, DeviceKind::cuda, true);
    ADD_FAILURE() << "there is no GPU";
  } catch (const comm::AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::device);
  }
}

}  // namespace
}  // namespace longspan::launch
