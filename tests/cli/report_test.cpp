#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "longspan/error.hpp"
#include "report/block_map.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/scaling_chart.hpp"
#include "report/table.hpp"

namespace longspan::report {
namespace {

std::string read(const std::string& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

TEST(Format, Numbers) {
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(999), "999");
  EXPECT_EQ(count_text(-12582912), "-12,582,912");
  EXPECT_EQ(bytes_text(512), "512 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(int64_t{8} << 30), "8.00 GiB");
  EXPECT_EQ(bytes_text((int64_t{1} << 30) - 1), "1.00 GiB");
  EXPECT_EQ(duration_text(0.00042), "420.0 us");
  EXPECT_EQ(duration_text(0.42), "420 ms");
  EXPECT_EQ(duration_text(3.14), "3.1 s");
  EXPECT_EQ(duration_text(125), "2 min 05 s");
  EXPECT_EQ(duration_text(3599.7), "1 h 00 min");
  EXPECT_EQ(duration_text(3 * 86400), "3 d 00 h");
  EXPECT_EQ(percent_text(0.1234), "12.3 %");
  EXPECT_EQ(percent_text(0.0000131), "0.0013 %");
  EXPECT_EQ(amount_text(1.34e13, "FLOP"), "13.4 T FLOP");
  EXPECT_EQ(amount_text(2.03e16, "FLOP"), "20.3 P FLOP");
  EXPECT_EQ(rate_text(1.23e6, "tokens"), "1.23 M tokens/s");
  EXPECT_EQ(columns_of("a…b"), 3);
}

TEST(Table, AlignsColumns) {
  Table table({"<section", "min", "max"});
  table.add({"load", "1", "10,000"});
  table.add({"write…", "2"});
  EXPECT_EQ(table.text(1), " section  min     max\n -------  ---  ------\n load       1  10,000\n write…     2\n");
}

TEST(Log, LevelsAndRanks) {
  std::FILE* file = std::tmpfile();
  {
    Log log(Level::info, true, file);
    log.info("one");
    log.debug("hidden");
    Log silent(Level::debug, false, file);
    silent.info("other rank");
    Progress progress(log, "attend", 100, "tokens", 0);
    progress.update(50);
    progress.finish();
  }
  std::rewind(file);
  char text[4096] = {};
  const size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  const std::string seen(text, size);
  EXPECT_THAT(seen, testing::StartsWith("one\nattend  50.0 %"));
  EXPECT_THAT(seen, testing::Not(testing::HasSubstr("hidden")));
  EXPECT_THAT(seen, testing::Not(testing::HasSubstr("other rank")));
  EXPECT_THAT(seen, testing::Not(testing::HasSubstr("\r")));
}

TEST(Record, IsWrittenWholeOrNotAtAll) {
  const std::string file = testing::TempDir() + "longspan_record_" + std::to_string(getpid()) + ".json";
  nlohmann::ordered_json record = new_record("attend");
  record["bad"] = std::string("\xff");
  write_record(record, file);
  const auto back = nlohmann::ordered_json::parse(read(file));
  EXPECT_EQ(back["schema_version"], kSchemaVersion);
  EXPECT_EQ(back["command"], "attend");
  std::filesystem::remove(file);
  try {
    write_record(record, "/nowhere/run.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::io);
    EXPECT_THAT(error.what(), testing::HasSubstr("cannot create /nowhere/run.json: seen No such file or directory"));
  }
  write_record(record, "/dev/null");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(BlockMap, CellsPartitionTheBlocks) {
  for (const int64_t blocks : {1, 2, 511, 512, 513, 1000, 98304}) {
    BlockMap map(blocks);
    EXPECT_EQ(map.first_block(0), 0);
    EXPECT_EQ(map.first_block(map.cells), blocks);
    for (int64_t block = 0; block < blocks; block += 1 + blocks / 97) {
      EXPECT_LE(map.first_block(map.cell_of(block)), block);
      EXPECT_GT(map.first_block(map.cell_of(block) + 1), block);
    }
    map.add_full(blocks - 1, 0, blocks);
    int64_t sum = 0;
    for (const int64_t count : map.full) sum += count;
    EXPECT_EQ(sum, blocks);
  }
}

TEST(BlockMap, TerminalPicture) {
  BlockMap map(3);
  map.add_partial(0, 0, 1);
  map.add_full(1, 0, 1), map.add_partial(1, 1, 2);
  map.add_full(2, 0, 2), map.add_partial(2, 2, 3);
  EXPECT_THAT(terminal_picture(map), testing::StartsWith("+------+\n|++    |\n|##++  |\n|####++|\n+------+\n"));
  BlockMap large(1000);
  for (int64_t row = 0; row < 1000; ++row) large.add_full(row, 0, row + 1);
  std::istringstream lines(terminal_picture(large));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line.size(), 66u);
}

// A picture of one panel is the narrowest there is; letters of 13 px are at most 7.5 wide on average, whatever the font.
TEST(BlockMap, LegendFitsIntoOnePanel) {
  const std::string svg = svg_picture("causal", "1 token", {{"heads 0", BlockMap(1)}});
  std::smatch found;
  ASSERT_TRUE(std::regex_search(svg, found, std::regex("width=\"([0-9]+)\"")));
  const double width = std::stod(found[1]);
  const std::regex text("<text x=\"([0-9]+)\" y=\"[0-9]+\">([^<]*)</text>");
  int texts = 0;
  for (std::sregex_iterator it(svg.begin(), svg.end(), text); it != std::sregex_iterator(); ++it, ++texts)
    EXPECT_LE(std::stod((*it)[1]) + 7.5 * static_cast<double>((*it)[2].length()), width) << (*it)[2];
  EXPECT_GE(texts, 5);
}

TEST(BlockMap, SvgIsDeterministicAndEscaped) {
  BlockMap map(1000);
  for (int64_t row = 0; row < 1000; ++row) map.add_full(row, 0, row), map.add_partial(row, row, row + 1);
  map.borders = {400};
  const std::string svg =
      svg_picture("causal & window(3, 0) | block_mask(\"x\", 64)", "1 <2>", {{"heads 0", map}, {"heads 1", map}, {"heads 2", BlockMap(0)}});
  EXPECT_EQ(svg, svg_picture("causal & window(3, 0) | block_mask(\"x\", 64)", "1 <2>",
                             {{"heads 0", map}, {"heads 1", map}, {"heads 2", BlockMap(0)}}));
  EXPECT_THAT(svg, testing::HasSubstr("causal &amp; window(3, 0) | block_mask(&quot;x&quot;, 64)"));
  EXPECT_THAT(svg, testing::HasSubstr("1 &lt;2&gt;"));
  EXPECT_THAT(svg, testing::HasSubstr("class=\"d\""));
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
  EXPECT_LT(svg.size(), 600'000u);
}

TEST(ScalingChart, HasEveryCurveAndTheIdealLine) {
  const std::vector<ScalingCurve> curves{{"strong", {{1, 1}, {2, 1.9}, {4, 3.5}, {6, 0.4}}}, {"<weak>", {{1, 1}}, true}};
  const std::string svg = scaling_svg("causal & window(3)", "4 tokens", curves);
  EXPECT_EQ(svg, scaling_svg("causal & window(3)", "4 tokens", curves));
  EXPECT_THAT(svg, testing::HasSubstr("causal &amp; window(3)"));
  EXPECT_THAT(svg, testing::HasSubstr("&lt;weak&gt;"));
  EXPECT_THAT(svg, testing::HasSubstr(">ideal<"));
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
  size_t circles = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) ++circles;
  EXPECT_EQ(circles, 5u);
  EXPECT_THAT(svg, testing::Not(testing::HasSubstr("nan")));
  EXPECT_THAT(scaling_svg("", "", {}), testing::HasSubstr("ideal"));
}

}  // namespace
}  // namespace longspan::report
