#include "cli/options.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "cli/commands.hpp"
#include "cli/document_lengths.hpp"
#include "cli/effective.hpp"
#include "cli/ini.hpp"
#include "cli/quantity.hpp"
#include "cli/subject.hpp"

namespace longspan::cli {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class File {
 public:
  explicit File(const std::string& text) : path_(testing::TempDir() + "longspan_options_" + std::to_string(getpid()) + ".ini") {
    std::ofstream(path_) << text;
  }
  ~File() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

const std::vector<std::string> kNeeded{"--input", "c.h5", "--output", "o.h5", "--pattern", "causal"};

Settings attend(std::vector<std::string> arguments, const Environment& environment = {}) {
  arguments.insert(arguments.end(), kNeeded.begin(), kNeeded.end());
  return read_settings(command_named("attend"), commands(), arguments, environment);
}

// All messages of a usage error, one per line.
std::string complaint(const std::string& command, const std::vector<std::string>& arguments, const Environment& environment = {}) {
  try {
    read_settings(command_named(command), commands(), arguments, environment);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "no complaint";
}

TEST(Quantity, ReadsSuffixes) {
  EXPECT_EQ(parse_quantity("12"), 12);
  EXPECT_EQ(parse_quantity("32k"), 32'000);
  EXPECT_EQ(parse_quantity("12Mi"), 12'582'912);
  EXPECT_EQ(parse_quantity("8Gi", true), int64_t{8} << 30);
  EXPECT_EQ(parse_quantity("8GiB", true), int64_t{8} << 30);
  EXPECT_EQ(parse_quantity("1G", true), 1'000'000'000);
  EXPECT_EQ(parse_quantity("-5"), -5);
  for (const char* nonsense : {"", "k", "1.5k", "8Gx", "8 Gi", "0x10", "12B", "99999999Ti", "9223372036854775808"})
    EXPECT_FALSE(parse_quantity(nonsense)) << nonsense;
}

TEST(Quantity, ReadsRealsDurationsSwitches) {
  EXPECT_EQ(parse_real("0.125"), 0.125);
  EXPECT_FALSE(parse_real("nan"));
  EXPECT_FALSE(parse_real("1e999"));
  EXPECT_EQ(parse_duration("90"), 90);
  EXPECT_EQ(parse_duration("5min"), 300);
  EXPECT_EQ(parse_duration("500ms"), 0.5);
  EXPECT_FALSE(parse_duration("-1"));
  EXPECT_FALSE(parse_duration("5 m"));
  EXPECT_EQ(parse_switch("on"), true);
  EXPECT_EQ(parse_switch("0"), false);
  EXPECT_FALSE(parse_switch("maybe"));
}

TEST(Options, CommandLineBeatsEnvironmentBeatsFileBeatsDefault) {
  const File file("memory = 1Gi\nthreads = 5\n[attend]\nmemory = 2Gi\npartition = zigzag\nscale = 0.5\n");
  const Settings settings =
      attend({"--config", file.path(), "--scale", "0.25"}, {{"LONGSPAN_PARTITION", "balanced"}, {"LONGSPAN_SCALE", "4"}});
  EXPECT_EQ(settings.real("scale"), 0.25);
  EXPECT_EQ(settings.setting("scale").origin, "command line");
  EXPECT_EQ(settings.text("partition"), "balanced");
  EXPECT_EQ(settings.setting("partition").origin, "environment LONGSPAN_PARTITION");
  EXPECT_EQ(settings.integer("memory"), int64_t{2} << 30) << "[attend] beats the keys before any section";
  EXPECT_EQ(settings.setting("memory").origin, file.path() + ":4 (key memory)");
  EXPECT_EQ(settings.integer("threads"), 5);
  EXPECT_EQ(settings.setting("threads").origin, file.path() + ":2 (key threads)");
  EXPECT_EQ(settings.text("log-level"), "info");
  EXPECT_EQ(settings.setting("log-level").origin, "default");
  EXPECT_FALSE(settings.given("log-level"));
  EXPECT_EQ(settings.all().size(), command_named("attend").options.size());
}

TEST(Options, EffectiveValuesArePrintedAndRecordedWithTheirOrigin) {
  const Settings settings = attend({"--scale", "0.25"}, {{"LONGSPAN_MEMORY", "8Gi"}});
  const std::string text = settings_text(settings);
  EXPECT_THAT(text, testing::ContainsRegex("memory +8Gi +environment LONGSPAN_MEMORY\n"));
  EXPECT_THAT(text, testing::ContainsRegex("scale +0.25 +command line\n"));
  EXPECT_THAT(text, testing::ContainsRegex("partition +auto +default\n"));
  EXPECT_THAT(text, testing::ContainsRegex("threads +the CPUs this rank may run on +default\n"));
  EXPECT_THAT(settings_text(settings, true), testing::Not(HasSubstr("partition")));
  const auto json = settings_json(settings);
  EXPECT_EQ(json["memory"]["value"], "8Gi");
  EXPECT_EQ(json["memory"]["from"], "environment LONGSPAN_MEMORY");
  EXPECT_TRUE(json["threads"]["value"].is_null());
}

TEST(Options, ConfigurationFileFromEnvironment) {
  const File file("[longspan]\nthreads = 3\n");
  EXPECT_EQ(attend({}, {{"LONGSPAN_CONFIG", file.path()}}).integer("threads"), 3);
}

TEST(Options, SwitchesTakeNoNextArgument) {
  EXPECT_TRUE(attend({"--overwrite"}).flag("overwrite"));
  EXPECT_FALSE(attend({"--overwrite=false"}, {{"LONGSPAN_OVERWRITE", "1"}}).flag("overwrite"));
  EXPECT_TRUE(attend({}, {{"LONGSPAN_OVERWRITE", "yes"}}).flag("overwrite"));
  EXPECT_FALSE(attend({}).flag("overwrite"));
  const Settings settings = read_settings(command_named("inspect pattern"), commands(), {"--json", "causal", "--tokens", "9"}, {});
  EXPECT_EQ(settings.text("json"), "-");
  EXPECT_EQ(settings.text("pattern"), "causal");
  EXPECT_EQ(attend({"--json", "x.json"}).text("json"), "x.json");
  EXPECT_EQ(attend({"--json=x"}).text("json"), "x");
  EXPECT_FALSE(attend({}).has("json"));
}

TEST(Options, AbsentValuesSayWhatStandsForThem) {
  const Settings settings = attend({});
  EXPECT_FALSE(settings.has("scale"));
  EXPECT_EQ(settings.setting("scale").shown, "1/sqrt(head_dim)");
  EXPECT_EQ(settings.maybe_real("scale"), std::nullopt);
}

TEST(Options, AllProblemsAtOnce) {
  const File file("memroy = 8Gi\n[attend]\nthreads = many\n[atend]\nx\n");
  const std::string text =
      complaint("attend", {"--config", file.path(), "--intput", "c.h5", "--scale", "--partition", "zag", "--tokens", "5"},
                {{"LONGSPAN_MEMROY", "1"}});
  EXPECT_THAT(text, HasSubstr("unknown option --intput (command line); did you mean --input?"));
  EXPECT_THAT(text, HasSubstr("option --scale has no value: expected --scale X"));
  EXPECT_THAT(text,
              HasSubstr("option --partition has no such choice: seen zag, expected auto, contiguous, zigzag, balanced (command line)"));
  EXPECT_THAT(text, HasSubstr("unknown option --tokens (command line)"));
  EXPECT_THAT(text, HasSubstr("unknown variable LONGSPAN_MEMROY (environment); did you mean LONGSPAN_MEMORY?"));
  EXPECT_THAT(text, HasSubstr("unknown key memroy (" + file.path() + ":1); did you mean memory?"));
  EXPECT_THAT(text, HasSubstr("unknown section [atend] (" + file.path() + ":4); did you mean attend?"));
  EXPECT_THAT(text, HasSubstr("line makes no sense: seen x, expected key = value, [section] or # comment (" + file.path() + ":5)"));
  EXPECT_THAT(text, HasSubstr("option --threads is no whole number: seen many"));
  EXPECT_THAT(text, HasSubstr(file.path() + ":3 (key threads)"));
  EXPECT_THAT(text, HasSubstr("option --output is missing"));
  EXPECT_THAT(text, HasSubstr("option --pattern is missing"));
}

TEST(Options, ValuesOutOfRange) {
  EXPECT_THAT(complaint("verify", {"--input", "a", "--output", "b", "--rows", "0"}),
              HasSubstr("option --rows is too small: seen 0, expected at least 1 (command line)"));
  EXPECT_THAT(complaint("verify", {"--input", "a", "--output", "b", "--threads", "1M"}),
              HasSubstr("option --threads is too large: seen 1M, expected at most 4096"));
  EXPECT_THAT(complaint("attend", {"--memory", "8Gx"}), HasSubstr("option --memory is no size: seen 8Gx, expected bytes, such as 8Gi"));
  EXPECT_THAT(complaint("attend", {"--timeout", "soon"}), HasSubstr("option --timeout is no time: seen soon"));
  EXPECT_THAT(complaint("attend", {"--overwrite=perhaps"}),
              HasSubstr("option --overwrite is a switch: seen perhaps, expected true or false"));
}

TEST(Options, TwiceMissingAndStray) {
  EXPECT_THAT(complaint("plan", {"--ranks", "4", "--ranks", "5"}), HasSubstr("option --ranks is given twice"));
  EXPECT_THAT(complaint("plan", {"--pattern", "causal", "--ranks"}), HasSubstr("option --ranks has no value: expected --ranks P"));
  EXPECT_THAT(complaint("plan", {"stray"}), HasSubstr("argument makes no sense here: seen stray"));
  EXPECT_THAT(complaint("inspect file", {"a.h5", "b.h5"}), HasSubstr("argument makes no sense here: seen b.h5"));
  EXPECT_THAT(complaint("plan", {"--rnks", "4"}), AllOf(HasSubstr("did you mean --ranks?"), testing::Not(HasSubstr("makes no sense"))));
  EXPECT_THAT(complaint("plan", {}, {{"LONGSPAN_RANKS", ""}}), HasSubstr("option --ranks has no value"));
}

TEST(Options, AbbreviationsAreUnknown) { EXPECT_THAT(complaint("attend", {"--mem", "8Gi"}), HasSubstr("unknown option --mem")); }

TEST(Options, VariablesOfOtherCommandsAreLeftAlone) {
  EXPECT_FALSE(attend({}, {{"LONGSPAN_ROWS", "nonsense"}, {"HOME", "/"}}).has("threads"));
}

TEST(Options, MissingConfigurationFile) {
  EXPECT_THAT(complaint("attend", {"--config", "/nowhere/x.ini"}),
              HasSubstr("cannot read the configuration file /nowhere/x.ini: seen No such file or directory (option --config)"));
}

TEST(Options, HelpNamesEveryOptionItsDefaultAndKey) {
  for (const Command& command : commands()) {
    const std::string text = help_text(command);
    for (const Option& option : command.options) {
      EXPECT_THAT(text, HasSubstr("--" + option.name)) << command.name;
      EXPECT_THAT(text, testing::ContainsRegex("key[ \n]+" + option.name + "\\]")) << command.name;
    }
    EXPECT_THAT(help_text(commands()), HasSubstr(command.name));
  }
  EXPECT_TRUE(asks_for_help({"--input", "x", "--help"}));
  EXPECT_FALSE(asks_for_help({"--input", "x"}));
}

TEST(Ini, CommentsContinuationsAndQuotes) {
  const File file(
      "\xef\xbb\xbf# first\r\n; also\r\n[attend]  # why\npattern = 0-1: causal;   # rule one\n          *: block_mask(\"a #1\", "
      "64)\n\nscale=0.5\n  # comment\n");
  std::vector<Problem> problems;
  const IniFile ini = read_ini(file.path(), problems);
  EXPECT_TRUE(problems.empty());
  ASSERT_EQ(ini.entries.size(), 2u);
  EXPECT_EQ(ini.entries[0].section, "attend");
  EXPECT_EQ(ini.entries[0].value, "0-1: causal; *: block_mask(\"a #1\", 64)");
  EXPECT_EQ(ini.entries[0].line, 4);
  EXPECT_EQ(ini.entries[1].value, "0.5");
}

TEST(Ini, KeysGivenTwice) {
  const File file("a = 1\na = 2\n[longspan\n");
  std::vector<Problem> problems;
  read_ini(file.path(), problems);
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_EQ(problems[0].text(), "key a is given twice, first in line 1 (" + file.path() + ":2); keep one of them");
  EXPECT_THAT(problems[1].text(), HasSubstr("section without ]"));
}

std::vector<int64_t> lengths(const std::vector<std::string>& arguments, uint64_t seed = 0) {
  std::vector<std::string> all{"causal"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const Documents documents = documents_from(read_settings(command_named("inspect pattern"), commands(), all, {}), seed);
  std::vector<int64_t> result;
  for (int64_t d = 0; d < documents.count(); ++d) result.push_back(documents.length(d));
  return result;
}

TEST(DocumentLengths, ListsAndRules) {
  EXPECT_THAT(lengths({"--tokens", "100"}), ElementsAre(100));
  EXPECT_THAT(lengths({"--documents", "1000,24,0,7"}), ElementsAre(1000, 24, 0, 7));
  EXPECT_THAT(lengths({"--documents", "fixed:40", "--tokens", "100"}), ElementsAre(40, 40, 20));
  EXPECT_THROW(lengths({"--documents", "10,20", "--tokens", "31"}), Error);
  EXPECT_THROW(lengths({"--documents", "fixed:40"}), Error);
  EXPECT_THROW(lengths({"--documents", "fixd:40", "--tokens", "100"}), Error);
  EXPECT_THROW(lengths({"--documents", "10,-1"}), Error);
  EXPECT_THROW(lengths({"--documents", "lognormal:100", "--tokens", "100"}), Error);
  EXPECT_THROW(lengths({}), Error);
}

TEST(DocumentLengths, LogNormalHasItsMeanAndFillsTheTokens) {
  const std::vector<int64_t> drawn = lengths({"--documents", "lognormal:200,0.8", "--tokens", "1M"}, 7);
  EXPECT_EQ(std::accumulate(drawn.begin(), drawn.end(), int64_t{0}), 1'000'000);
  EXPECT_NEAR(1e6 / static_cast<double>(drawn.size()), 200, 15);
  EXPECT_EQ(drawn, lengths({"--documents", "lognormal:200,0.8", "--tokens", "1M"}, 7));
  EXPECT_NE(drawn, lengths({"--documents", "lognormal:200,0.8", "--tokens", "1M"}, 8));
}

TEST(Subject, ShapesMustFit) {
  const auto shape = [](const std::vector<std::string>& arguments) {
    return shape_from(read_settings(command_named("generate"), commands(), arguments, {}), 1);
  };
  EXPECT_EQ(shape({"--output", "x", "--heads", "6"}).kv_heads, 6);
  EXPECT_THROW(shape({"--output", "x", "--heads", "6", "--kv-heads", "4"}), Error);
  EXPECT_THROW(shape({"--output", "x", "--heads", "6", "--head-dim", "12"}), Error);
}

}  // namespace
}  // namespace longspan::cli
