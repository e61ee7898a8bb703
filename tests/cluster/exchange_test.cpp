// bench exchange and bench scaleout on two simulated hosts of two ranks: what crosses between the hosts is what is planned, by the counters
// of their network interfaces. Runs on the first host (tests/cluster/hosts).
#include "job_folder.hpp"

namespace longspan::job::testing {
namespace {

using ::testing::HasSubstr;

class TwoHosts : public JobFolder {
 protected:
  nlohmann::json bench(const std::string& arguments) const {
    const Outcome outcome = run({LONGSPAN_MPIEXEC, "-H", "host1:2,host2:2", "-n", "4", LONGSPAN_PROGRAM, "bench"},
                                words(arguments + " --json=" + file("record.json")));
    EXPECT_EQ(outcome.code, 0) << outcome.text;
    EXPECT_THAT(outcome.text, HasSubstr("4 ranks on 2 hosts"));
    return nlohmann::json::parse(std::ifstream(file("record.json")));
  }
};

TEST_F(TwoHosts, WhatIsOnTheWireIsWhatIsPlanned) {
  for (const char* exchange : {"flat", "node"}) {
    const nlohmann::json record =
        bench(std::string("exchange --tokens 32Ki --heads 4 --head-dim 64 --iterations 4 --exchange ") + exchange);
    for (const nlohmann::json& result : record["results"]) {
      SCOPED_TRACE(std::string(exchange) + ": " + result["name"].get<std::string>());
      EXPECT_EQ(result["bytes_moved"], result["bytes_planned"]);
      const auto planned = result["bytes_between_hosts_planned"].get<double>();
      ASSERT_GT(planned, 1e6);
      ASSERT_FALSE(result["network_bytes"].is_null());
      EXPECT_NEAR(result["network_bytes"].get<double>(), planned, 0.02 * planned);
      for (const char* way : {"within_host", "across_hosts"}) EXPECT_GT(result["link"][way]["bytes_per_second"], 0);
    }
  }
}

TEST_F(TwoHosts, TwoLevelsCrossLess) {
  const std::string command = "exchange --tokens 16Ki --heads 2 --head-dim 64 --iterations 2 --pattern full --exchange ";
  const auto flat = bench(command + "flat")["results"][0], node = bench(command + "node")["results"][0];
  EXPECT_EQ(flat["bytes_moved"], node["bytes_moved"]);
  // Each of four ranks needs the other host's half: four halves, or two.
  EXPECT_EQ(flat["bytes_between_hosts_planned"].get<int64_t>(), 2 * node["bytes_between_hosts_planned"].get<int64_t>());
}

TEST_F(TwoHosts, AJobScalesOverHosts) {
  const nlohmann::json record =
      bench("scaleout --pattern 'causal & window(511)' --tokens 8Ki --heads 2 --head-dim 32 --iterations 2 --probe-time 5ms");
  ASSERT_EQ(record["results"].size(), 5u);
  for (const nlohmann::json& result : record["results"]) {
    EXPECT_EQ(result["hosts"], result["ranks"] == 4 ? 2 : 1);
    EXPECT_EQ(result["kv_bytes_moved"], result["kv_bytes_lower_bound"]);
  }
  EXPECT_FALSE(record["machine"]["links"]["across_hosts"].is_null());
  EXPECT_FALSE(record["machine"]["links"]["within_host"].is_null());
  EXPECT_EQ(record["machine"]["ranks_per_host"], 2);
}

}  // namespace
}  // namespace longspan::job::testing
