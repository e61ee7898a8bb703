// Every file in configs/ is one that attend takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cli/attend.hpp"
#include "cli/commands.hpp"

namespace longspan::cli {
namespace {

TEST(Configs, EachIsUsableByAttendAndByInspectPattern) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(LONGSPAN_CONFIGS))
    if (!entry.is_directory()) files.push_back(entry.path().string());  // pictures/ holds no configurations
  std::sort(files.begin(), files.end());
  EXPECT_GE(files.size(), 12u);
  for (const std::string& file : files) {
    SCOPED_TRACE(file);
    ASSERT_TRUE(file.ends_with(".ini"));
    const Settings settings =
        read_settings(command_named("attend"), commands(), {"--config", file, "--input", "c.h5", "--output", "o.h5"}, {});
    const AttendOptions options = attend_options(settings);
    EXPECT_NE(settings.setting("pattern").origin.find(file), std::string::npos);
    const std::string canonical = options.pattern.canonical();
    EXPECT_EQ(pattern::Pattern::parse(canonical).canonical(), canonical);
    if (options.pattern.block_masks().empty()) {
      const pattern::BoundPattern bound(options.pattern, 8, 4, Documents::from_lengths({5000, 0, 77}));
      EXPECT_GE(bound.groups().size(), 1u);
    }
    EXPECT_NO_THROW(read_settings(command_named("inspect pattern"), commands(), {"--config", file, "--tokens", "10"}, {}));
  }
}

TEST(AttendOptions, ContradictionsAreNamed) {
  const auto complaint = [](const std::vector<std::string>& arguments) -> std::string {
    std::vector<std::string> all{"--input", "c.h5", "--pattern", "causal"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    try {
      attend_options(read_settings(command_named("attend"), commands(), all, {}));
    } catch (const Error& error) {
      return error.what();
    }
    return "no complaint";
  };
  EXPECT_NE(complaint({"--output", "c.h5"}).find("output is the input file"), std::string::npos);
  EXPECT_NE(complaint({"--output", "o.h5", "--json=o.h5"}).find("would replace a data file"), std::string::npos);
  EXPECT_NE(complaint({"--output", "o.h5", "--continue", "--overwrite"}).find("exclude each other"), std::string::npos);
  EXPECT_EQ(complaint({"--output", "o.h5"}), "no complaint");
}

TEST(AttendOptions, RecordLiesBesideTheOutput) {
  const AttendOptions options = attend_options(
      read_settings(command_named("attend"), commands(), {"--input", "c.h5", "--pattern", "causal", "--output", "out/o.h5"}, {}));
  EXPECT_EQ(options.record, "out/o.run.json");
  EXPECT_EQ(options.timeout, 600);
  EXPECT_FALSE(options.partition.has_value());
}

}  // namespace
}  // namespace longspan::cli
