#include "launch/binding.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace longspan::launch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Cpus = std::vector<int>;

TEST(SplitCores, IntoEqualContiguousParts) {
  const std::vector<Cpus> cores{{0, 4}, {1, 5}, {2, 6}, {3, 7}};  // siblings of a core are often numbered so
  EXPECT_THAT(split_cores(cores, 1), ElementsAre(Cpus{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_THAT(split_cores(cores, 2), ElementsAre(Cpus{0, 1, 4, 5}, Cpus{2, 3, 6, 7}));
  EXPECT_THAT(split_cores(cores, 3), ElementsAre(Cpus{0, 4}, Cpus{1, 5}, Cpus{2, 3, 6, 7}));
  EXPECT_THAT(split_cores(cores, 4), ElementsAre(Cpus{0, 4}, Cpus{1, 5}, Cpus{2, 6}, Cpus{3, 7}));
}

TEST(SplitCores, CpusWhenCoresAreFewAndNothingWhenCpusAreTooFew) {
  const std::vector<Cpus> cores{{0, 2}, {1, 3}};
  EXPECT_THAT(split_cores(cores, 3), ElementsAre(Cpus{0}, Cpus{2}, Cpus{1, 3}));
  EXPECT_THAT(split_cores(cores, 4), ElementsAre(Cpus{0}, Cpus{2}, Cpus{1}, Cpus{3}));
  EXPECT_TRUE(split_cores(cores, 5).empty());
  EXPECT_TRUE(split_cores({}, 1).empty());
  EXPECT_TRUE(split_cores(cores, 0).empty());
}

TEST(PartsNear, EachRankGetsOneNearItsDeviceOrNextToSuch) {
  const std::vector<Cpus> parts{{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  const Cpus none, low{0, 1, 2, 3}, high{4, 5, 6, 7}, third{4, 5}, all{0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_THAT(parts_near(parts, {none, none, none, none}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(parts_near(parts, {all, all, all, all}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(parts_near(parts, {high, high, low, low}), ElementsAre(2, 3, 0, 1));
  EXPECT_THAT(parts_near(parts, {none, none, low, high}), ElementsAre(1, 3, 0, 2)) << "those without a device choose last";
  EXPECT_THAT(parts_near(parts, {third, third, low, low}), ElementsAre(2, 1, 0, 3)) << "next to the third one";
  EXPECT_THAT(parts_near({{0, 1, 2}, {3, 4}}, {{1, 2, 3, 4}, {0, 1, 2, 3, 4}}), ElementsAre(1, 0)) << "a share, not a number";
  EXPECT_THAT(parts_near(parts, {{99}, {99}, none, none}), ElementsAre(0, 1, 2, 3)) << "CPUs that are in no part";
}

TEST(MachineOfHwloc, CoresAndNumaNodes) {
  const Machine machine("numa:2 core:2 pu:2");  // CPUs 0-7
  EXPECT_EQ(machine.cpus(), 8);
  EXPECT_THAT(machine.cores({0, 1, 2, 5, 6}), ElementsAre(Cpus{0, 1}, Cpus{2}, Cpus{5}, Cpus{6}));
  EXPECT_THAT(machine.numa_nodes({0, 3}), ElementsAre(0));
  EXPECT_THAT(machine.numa_nodes({3, 4}), ElementsAre(0, 1));
  EXPECT_THAT(machine.cores({6, 99}), ElementsAre(Cpus{6}, Cpus{99})) << "a CPU that hwloc does not know is a core of its own";
}

TEST(MachineOfHwloc, ThatCannotBeReadIsFlat) {
  const Machine machine("nonsense");
  EXPECT_THAT(machine.cores({0, 1}), ElementsAre(Cpus{0}, Cpus{1}));
  EXPECT_THAT(machine.numa_nodes({0, 1}), ElementsAre(0));
  EXPECT_FALSE(machine.bind({0}));
}

TEST(MachineOfHwloc, ThisOne) {
  const Machine machine;
  EXPECT_GE(machine.cpus(), static_cast<int>(available_cpus().size()));
  Cpus all;
  for (const Cpus& core : machine.cores(available_cpus())) all.insert(all.end(), core.begin(), core.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, available_cpus());
}

TEST(ListText, IsThatOfTaskset) {
  EXPECT_EQ(list_text({}), "");
  EXPECT_EQ(list_text({7}), "7");
  EXPECT_EQ(list_text({0, 1}), "0-1");
  EXPECT_EQ(list_text({0, 1, 2, 3, 8, 10, 11}), "0-3,8,10-11");
}

Place place(const std::string& host, const Cpus& cpus, int node, Bound bound, const std::string& device = "") {
  return {.host = host, .cpus = cpus, .numa_nodes = {node}, .threads = static_cast<int>(cpus.size()), .bound = bound, .device = device};
}

TEST(MapText, OneLineAHost) {
  EXPECT_EQ(
      map_text({place("a", {0, 1}, 0, Bound::by_longspan), place("a", {2, 3}, 1, Bound::by_longspan), place("b", {0}, 0, Bound::no)}, 2),
      "  a: ranks 0-1, 2 threads each, bound by longspan to CPUs 0-1 | 2-3, NUMA node 0 | 1\n"
      "  b: rank 2, 1 thread, not bound: CPUs 0, NUMA node 0\n");
}

TEST(MapText, JoinsHostsThatAreAlike) {
  std::vector<Place> places;
  for (const char* host : {"n1", "n2", "n3"})
    for (int gpu = 0; gpu < 2; ++gpu) places.push_back(place(host, {gpu}, 0, Bound::by_launcher, "GPU " + std::to_string(gpu)));
  EXPECT_EQ(
      map_text(places),
      "n1 … n3 (3 hosts): ranks 0-5, 2 on each host, 1 thread each, bound by the launcher to CPUs 0 | 1, NUMA node 0, GPU 0 | GPU 1\n");
}

TEST(MapText, EndsAfterSixteenLines) {
  std::vector<Place> places;
  for (int host = 0; host < 20; ++host) places.push_back(place("h" + std::to_string(host), {host}, 0, Bound::no));
  const std::string text = map_text(places);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 17);
  EXPECT_THAT(text, HasSubstr("… and 4 more hosts\n"));
  EXPECT_EQ(map_text({}), "");
}

Allotment allotment_of(const std::map<std::string, std::string>& environment) {
  return slurm_allotment([&](const char* name) -> std::optional<std::string> {
    const auto entry = environment.find(name);
    return entry == environment.end() ? std::nullopt : std::optional(entry->second);
  });
}

TEST(SlurmAllotment, IsWhatTheJobWasGranted) {
  const Allotment whole = allotment_of({{"SLURM_JOB_ID", "7"}, {"SLURM_CPUS_ON_NODE", "16"}, {"SLURM_MEM_PER_NODE", "0"}});
  EXPECT_EQ(whole.cpus, 16);
  EXPECT_FALSE(whole.cpus_per_rank);
  EXPECT_FALSE(whole.memory) << "0: all that there is";
  const Allotment part =
      allotment_of({{"SLURM_JOB_ID", "7"}, {"SLURM_CPUS_ON_NODE", "16"}, {"SLURM_CPUS_PER_TASK", "4"}, {"SLURM_MEM_PER_NODE", "500"}});
  EXPECT_EQ(part.cpus_per_rank, 4);
  EXPECT_EQ(part.memory, int64_t{500} << 20);
  EXPECT_EQ(allotment_of({{"SLURM_JOB_ID", "7"}, {"SLURM_CPUS_ON_NODE", "16"}, {"SLURM_MEM_PER_CPU", "100"}}).memory, int64_t{1600} << 20);
  EXPECT_EQ(allotment_of({{"SLURM_JOB_ID", "7"}, {"SLURM_GPUS_ON_NODE", "8"}, {"SLURM_MEM_PER_GPU", "100"}}).memory, int64_t{800} << 20);
}

TEST(SlurmAllotment, IsEmptyElsewhere) {
  const Allotment none = allotment_of({{"SLURM_CPUS_ON_NODE", "16"}, {"SLURM_MEM_PER_NODE", "500"}});
  EXPECT_FALSE(none.cpus || none.cpus_per_rank || none.memory);
  const Allotment odd = allotment_of({{"SLURM_JOB_ID", "7"}, {"SLURM_CPUS_ON_NODE", "many"}, {"SLURM_MEM_PER_CPU", "-3"}});
  EXPECT_FALSE(odd.cpus || odd.memory);
}

}  // namespace
}  // namespace longspan::launch
