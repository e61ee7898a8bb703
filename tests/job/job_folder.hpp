// What the tests of whole jobs share: a folder of their own, results as bits, and what lies beside a result.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/result.hpp"
#include "job/ledger.hpp"
#include "kernels/gpus.hpp"
#include "started_job.hpp"

namespace longspan::job::testing {

class JobFolder : public ::testing::Test {
 protected:
  JobFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "longspan-job-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("mkdtemp " + name);
    folder_ = name;
  }
  // The same tests run on GPUs when the options' variables say so (LONGSPAN_DEVICE=cuda).
  static bool on_gpus() {
    const char* device = std::getenv("LONGSPAN_DEVICE");
    return device != nullptr && std::string(device) == "cuda";
  }
  void SetUp() override {
    if (!on_gpus()) return;
    const kernels::Gpus gpus = kernels::find_gpus();
    if (gpus.usable.empty()) GTEST_SKIP() << gpus.why_none;
  }
  ~JobFolder() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      if (const std::string name = entry.path().filename().string(); !name.starts_with("log.")) found.push_back(name);
    std::sort(found.begin(), found.end());
    return found;
  }
  // mpirun -n `ranks` longspan `arguments`; a job that does not end in time is a failure.
  Outcome attend(int ranks, const std::string& arguments, double seconds = 60 * LONGSPAN_SLOWDOWN) const {
    const Outcome outcome = run(mpirun(ranks, "attend " + arguments), folder_, seconds);
    EXPECT_FALSE(outcome.timed_out) << arguments << "\n" << outcome.text;
    return outcome;
  }
  void generate(const std::string& name, const std::string& options) const {
    const Outcome outcome = run({LONGSPAN_PROGRAM, "generate", "--output", file(name)}, words(options));
    ASSERT_EQ(outcome.code, 0) << outcome.text;
  }
  Outcome run(std::vector<std::string> command, const std::vector<std::string>& more) const {
    command.insert(command.end(), more.begin(), more.end());
    return testing::run(command, folder_, 120 * LONGSPAN_SLOWDOWN);
  }
  Outcome run(const std::vector<std::string>& command, const std::string& folder, double seconds) const {
    return testing::run(command, folder, seconds);
  }
  Outcome verify(const std::string& input, const std::string& output, int rows = 24) const {
    return run({LONGSPAN_PROGRAM, "verify", "--input", input, "--output", output, "--rows", std::to_string(rows)},
               std::vector<std::string>{});
  }

  std::string folder_;
};

struct Bits {
  std::vector<std::byte> o;
  std::vector<float> lse;
  bool operator==(const Bits& other) const {
    return o == other.o && lse.size() == other.lse.size() && std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

inline Bits bits_of(const std::string& output) {
  const io::ResultLayout layout = io::inspect_result(output);
  const io::ResultFile file(layout, io::ResultFile::Access::read);
  Bits bits;
  bits.o.resize(static_cast<size_t>(layout.tokens * layout.heads * layout.head_dim) * size_of(layout.output_type));
  bits.lse.resize(static_cast<size_t>(layout.tokens * layout.heads));
  file.read(0, layout.tokens, bits.o.data(), bits.lse.data());
  return bits;
}

inline nlohmann::json record_of(const std::string& file) {
  std::ifstream stream(file);
  return nlohmann::json::parse(stream, nullptr, false);
}

}  // namespace longspan::job::testing
