#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "longspan/error.hpp"
#include "pattern/pattern.hpp"

namespace longspan::pattern {
namespace {

using ::testing::HasSubstr;

TEST(Parse, CanonicalText) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"full", "full"},
      {"  causal\n", "causal"},
      {"*: causal", "causal"},
      {"causal&window ( 4Ki )", "causal & window(4096, 0)"},
      {"window(left=3,\n  right = 2)", "window(3, 2)"},
      {"window(right=2, left=3)", "window(3, 2)"},
      {"window(3, right=2)", "window(3, 2)"},
      {"sink(1k)|sink(2M)|sink(3Ki)|sink(4Mi)|sink(0)", "sink(1000) | sink(2000000) | sink(3072) | sink(4194304) | sink(0)"},
      {"rows(1,2)|columns(3,3)|global(4,5)", "rows(1, 2) | columns(3, 3) | global(4, 5)"},
      {"segment(7)|fixed(8,8)|strided(9)|power|power(0)", "segment(7) | fixed(8, 8) | strided(9) | power(1) | power(0)"},
      {"dilated_window(1,2,3)|dilated_segment(4,3,2)", "dilated_window(1, 2, 3) | dilated_segment(4, 3, 2)"},
      {"block_window(4,1,2)|block_power(5)|block_columns(6,4,1,9)", "block_window(4, 1, 2) | block_power(5) | block_columns(6, 4, 1, 9)"},
      {"block_random(64, 3, 9223372036854775807)", "block_random(64, 3, 9223372036854775807, 0, 0)"},
      {"block_random(64, 3, seed=5, per_head=1)", "block_random(64, 3, 5, 0, 1)"},
      {"block_mask(\"a b/ü\", 64)", "block_mask(\"a b/ü\", 64)"},
      {"block_mask(block=64, name=\"x\")", "block_mask(\"x\", 64)"},
      {"longformer(513, 16)", "window(256, 256) | global(0, 16)"},
      {"bigbird", "block_window(64, 1, 1) | block_random(64, 3, 0, 0, 0) | global(0, 64)"},
      {"bigbird(32, seed=7, global=2)", "block_window(32, 1, 1) | block_random(32, 3, 7, 0, 0) | global(0, 64)"},
      {"streaming(4, 1024)", "causal & (sink(4) | window(1023, 0))"},
      {"causal & longformer(3, 1)", "causal & (window(1, 1) | global(0, 1))"},
      {"causal | longformer(3, 1)", "causal | window(1, 1) | global(0, 1)"},
      {"!streaming(1, 1)", "!(causal & (sink(1) | window(0, 0)))"},
      {"((causal))", "causal"},
      {"(causal | full) | sink(1)", "causal | full | sink(1)"},
      {"causal & (full & sink(1))", "causal & full & sink(1)"},
      {"(causal & full) | sink(1) & full", "causal & full | sink(1) & full"},
      {"(causal | full) & sink(1)", "(causal | full) & sink(1)"},
      {"!(causal)", "!causal"},
      {"!(!causal)", "causal"},
      {"!(causal|full) & !causal", "!(causal | full) & !causal"},
      {"12,0-3,4-7:causal;*:full", "0-7,12: causal; *: full"},
      {"5: causal", "5: causal"},
      {"0 - 3 , 2-5 : causal ; full", "0-5: causal; *: full"},
  };
  for (const auto& [text, canonical] : cases) {
    const Pattern pattern = Pattern::parse(text);
    EXPECT_EQ(pattern.canonical(), canonical) << text;
    EXPECT_EQ(Pattern::parse(canonical).canonical(), canonical) << text;
    EXPECT_EQ(pattern.text(), text);
  }
}

TEST(Parse, RulesKnowTheirHeadsAndPlace) {
  const Pattern pattern = Pattern::parse("0-7,12: causal;\n *: full");
  ASSERT_EQ(pattern.rules().size(), 2u);
  EXPECT_EQ(pattern.rules()[0].heads, (std::vector<std::pair<int, int>>{{0, 7}, {12, 12}}));
  EXPECT_EQ(pattern.rules()[0].column, 0);
  EXPECT_TRUE(pattern.rules()[1].heads.empty());
  EXPECT_EQ(pattern.rules()[1].column, 17);
}

TEST(Parse, BlockMasksAreListedOnce) {
  const auto uses =
      Pattern::parse("0: block_mask(\"b\", 64) & !block_mask(\"a\", 8); *: block_mask(\"b\", 64) | block_mask(\"b\", 32)").block_masks();
  ASSERT_EQ(uses.size(), 3u);
  EXPECT_EQ(uses[0].name, "b");
  EXPECT_EQ(uses[0].block, 64);
  EXPECT_EQ(uses[1].name, "a");
  EXPECT_EQ(uses[2].block, 32);
}

Problem problem_of(const std::string& text) {
  try {
    Pattern::parse(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_EQ(error.problems().size(), 1u);
    return error.problems().front();
  }
  ADD_FAILURE() << "no error: " << text;
  return {};
}

struct Bad {
  std::string text;
  int caret;  // 0-based column
  std::string what, seen, expected, mend;
};

// All in one line, so that the display is the text itself and the caret.
TEST(Parse, ErrorsPointAtTheCharacter) {
  const std::string kSuffixes = "k (1000), M (1000000), Ki (1024) or Mi (1048576)";
  const std::vector<Bad> cases = {
      {"", 0, "it is empty", "", "a term", "write 'full' for dense attention"},
      {"causal & windw(3)", 9, "unknown term 'windw'", "", "", "did you mean 'window'?"},
      {"Causal", 0, "unknown term 'Causal'", "", "", "did you mean 'causal'?"},
      {"causal full", 7, "unexpected 'full'", "", "'|', '&', ';' or the end", ""},
      {"causal)", 6, "unexpected ')'", "", "'|', '&', ';' or the end", ""},
      {"causal &", 8, "expected a term", "end", "", ""},
      {"causal | | full", 9, "expected a term", "'|'", "", ""},
      {"!!causal", 1, "expected a term", "'!'", "", ""},
      {"causal;", 7, "expected a term", "end", "", ""},
      {"(causal | full", 14, "expected ')'", "end", "", "its '(' is at byte 1"},
      {"é", 0, "expected a term", "'é'", "", ""},
      {"window", 0, "window: argument 'left' is missing", "", "'window(left, right=0)'", ""},
      {"window()", 7, "expected an argument", "')'", "", "write 'window(left, right=0)'"},
      {"causal()", 7, "expected an argument", "')'", "", "write 'causal' without parentheses"},
      {"bigbird()", 8, "expected an argument", "')'", "", "write 'bigbird' without parentheses"},
      {"causal(3)", 7, "causal takes no arguments", "", "", ""},
      {"window(1, 2, 3)", 13, "window: too many arguments", "", "'window(left, right=0)'", ""},
      {"window(1, lft=2)", 10, "window: unknown argument 'lft'", "", "'window(left, right=0)'", "did you mean 'left'?"},
      {"window(1, size=2)", 10, "window: unknown argument 'size'", "", "'window(left, right=0)'", ""},
      {"window(1, left=2)", 10, "window: argument 'left' is given twice", "", "", ""},
      {"window(left=1, left=2)", 15, "window: argument 'left' is given twice", "", "", ""},
      {"window(left=1, 2)", 15, "window: an argument by position follows one by name", "", "", "write it as key=value"},
      {"window(causal)", 7, "expected an integer, a \"text\" or key=value", "'causal'", "", ""},
      {"window(1 2)", 9, "expected ',' or ')'", "'2'", "", ""},
      {"window(1.5k)", 8, "expected ',' or ')'", "'.'", "", ""},
      {"window(1,)", 9, "expected an integer or a \"text\"", "')'", "", ""},
      {"window(-1)", 7, "window: 'left' is too small", "-1", "at least 0", ""},
      {"window(3, right=-2k)", 16, "window: 'right' is too small", "-2000", "at least 0", ""},
      {"window(4K)", 8, "unknown suffix 'K'", "", kSuffixes, ""},
      {"window(4Gi)", 8, "unknown suffix 'Gi'", "", kSuffixes, ""},
      {"window(\"x\")", 7, "window: 'left' is an integer, without quotes", "", "", ""},
      {"window(9223372036854775808)", 7, "an integer is too large", "9223372036854775808", "at most 9223372036854775807", ""},
      {"window(9223372036854775807Ki)", 7, "an integer is too large", "9223372036854775807Ki", "at most 9223372036854775807", ""},
      {"window(2305843009213693952)", 7, "window: 'left' is too large", "2305843009213693952", "at most 1152921504606846976", ""},
      {"sink(-4)", 5, "sink: 'n' is too small", "-4", "at least 0", ""},
      {"rows(5, 4)", 5, "rows: 'begin' is after 'end'", "5 and 4", "", ""},
      {"columns(5, 4)", 8, "columns: 'begin' is after 'end'", "5 and 4", "", ""},
      {"global(end=4, begin=5)", 20, "global: 'begin' is after 'end'", "5 and 4", "", ""},
      {"segment(0)", 8, "segment: 'length' is too small", "0", "at least 1", ""},
      {"strided(0)", 8, "strided: 'stride' is too small", "0", "at least 1", ""},
      {"fixed(0, 0)", 6, "fixed: 'stride' is too small", "0", "at least 1", ""},
      {"fixed(4, 5)", 9, "fixed: 'width' is larger than 'stride'", "5", "at most 4", ""},
      {"dilated_window(1, 1, 0)", 21, "dilated_window: 'dilation' is too small", "0", "at least 1", ""},
      {"dilated_segment(0, 1, 0)", 16, "dilated_segment: 'length' is too small", "0", "at least 1", ""},
      {"dilated_segment(8, 2, 2)", 22, "dilated_segment: 'offset' is not below 'dilation'", "2", "at most 1", ""},
      {"power(-1)", 6, "power: 'width' is too small", "-1", "at least 0", ""},
      {"block_window(0, 1, 1)", 13, "block_window: 'block' is too small", "0", "at least 1", ""},
      {"block_power(0)", 12, "block_power: 'block' is too small", "0", "at least 1", ""},
      {"block_columns(8, 0, 0, 0)", 17, "block_columns: 'stride' is too small", "0", "at least 1", ""},
      {"block_columns(8, 4, 3, 2)", 20, "block_columns: 'begin' is after 'end'", "3 and 2", "", ""},
      {"block_random(64, -1, 0)", 17, "block_random: 'count' is too small", "-1", "at least 0", ""},
      {"block_random(64, 3, 0, past=2)", 28, "block_random: 'past' is too large", "2", "at most 1", ""},
      {"block_random(64, 3)", 0, "block_random: argument 'seed' is missing", "", "'block_random(block, count, seed, past=0, per_head=0)'",
       ""},
      {"block_mask(x, 64)", 11, "expected an integer, a \"text\" or key=value", "'x'", "", ""},
      {"block_mask(3, 64)", 11, "block_mask: 'name' is a text, in double quotes", "", "", ""},
      {"block_mask(\"\", 64)", 11, "block_mask: 'name' is empty", "", "", ""},
      {"block_mask(\"x, 64)", 11, "a text has no closing '\"'", "", "", ""},
      {"block_mask(\"x\", 0)", 16, "block_mask: 'block' is too small", "0", "at least 1", ""},
      {"longformer(0, 1)", 11, "longformer: 'window' is too small", "0", "at least 1", ""},
      {"longformer(4, 1)", 11, "longformer: 'window' is even: it counts all keys, the query's own in the middle", "4", "an odd number",
       "write 5"},
      {"longformer(3, 0)", 14, "longformer: 'global' is too small", "0", "at least 1", ""},
      {"bigbird(window=2)", 15, "bigbird: 'window' is even: it counts all blocks, the query's own in the middle", "2", "an odd number",
       "write 3"},
      {"bigbird(random=0)", 15, "bigbird: 'random' is too small", "0", "at least 1", ""},
      {"bigbird(2048, global=1152921504606846976)", 21, "bigbird: 'global' times 'block' is too large", "", "at most 1152921504606846976",
       ""},
      {"streaming(0, 4)", 10, "streaming: 'sinks' is too small", "0", "at least 1", ""},
      {"streaming(1, 0)", 13, "streaming: 'window' is too small", "0", "at least 1", ""},
      {"causal; full", 8, "two rules are for all other heads", "", "",
       "name the heads of one of them, as in '0-3: causal; *: full', or join them with '|'"},
      {"3-1: causal", 0, "a range of heads runs backwards", "3-1", "", "write 1-3"},
      {"0-: causal", 2, "expected the number of a head", "':'", "", ""},
      {"0,x: causal", 2, "expected the number of a head", "'x'", "", ""},
      {"1k: causal", 0, "expected the number of a head", "'1k'", "", ""},
      {"9999999999: causal", 0, "the number of a head is too large", "9999999999", "at most 1000000", ""},
      {"0 causal", 2, "expected ':' after the heads of a rule", "'causal'", "", ""},
      {"3", 1, "expected ':' after the heads of a rule", "end", "", ""},
  };
  for (const Bad& bad : cases) {
    const Problem problem = problem_of(bad.text);
    EXPECT_EQ(problem.what, "pattern: " + bad.what + "\n  " + bad.text + "\n  " + std::string(static_cast<size_t>(bad.caret), ' ') + "^");
    EXPECT_EQ(problem.seen, bad.seen) << bad.text;
    EXPECT_EQ(problem.expected, bad.expected) << bad.text;
    EXPECT_EQ(problem.mend, bad.mend) << bad.text;
    EXPECT_EQ(problem.from, "column " + std::to_string(bad.caret + 1)) << bad.text;
  }
}

TEST(Parse, UnknownTermFarFromAllListsThem) {
  EXPECT_THAT(problem_of("attention").expected, HasSubstr("one of full, causal, window, sink,"));
}

TEST(Parse, ErrorReadsAsThreeLines) {
  EXPECT_EQ(problem_of("causal & windw(3)").text(),
            "pattern: unknown term 'windw'\n  causal & windw(3)\n           ^ (column 10); did you mean 'window'?");
}

TEST(Parse, OnlyTheLineConcernedIsShown) {
  const Problem problem = problem_of("0-3: causal;\n*: block_mask(\"ü\", 0) |\n full");
  EXPECT_EQ(problem.what, "pattern: block_mask: 'block' is too small\n  *: block_mask(\"ü\", 0) |\n                     ^");
  EXPECT_EQ(problem.from, "line 2, column 20");
}

TEST(Parse, LongLinesAreCutAroundTheCaret) {
  std::string text;
  for (int k = 0; k < 40; ++k) text += "window(" + std::to_string(1000 + k) + ") | ";
  const Problem problem = problem_of(text + "windw(1)" + " | sink(1234567)" + std::string(60, ' ') + "| full");
  const std::string& what = problem.what;
  const size_t first = what.find('\n'), second = what.find('\n', first + 1);
  const std::string line = what.substr(first + 1, second - first - 1), caret = what.substr(second + 1);
  EXPECT_LT(line.size(), 115u);
  EXPECT_EQ(line.substr(0, 5), "  …");
  EXPECT_EQ(line.substr(line.size() - 3), "…");
  // The … before takes three bytes and one column.
  EXPECT_EQ(line.substr(caret.size() - 1 + 2, 5), "windw");
  EXPECT_EQ(problem.from, "column " + std::to_string(text.size() + 1));
}

TEST(Parse, NestingIsLimited) {
  const auto nested = [](int depth, const std::string& inner) {
    std::string text;
    for (int k = 0; k < depth; ++k) text += k % 2 ? "(full & " : "(causal | ";
    return text + inner + std::string(static_cast<size_t>(depth), ')');
  };
  EXPECT_NO_THROW(Pattern::parse(nested(200, "sink(1)")));
  const Problem problem = problem_of(nested(201, "sink(1)"));
  EXPECT_THAT(problem.what, HasSubstr("pattern: parentheses are nested too deep"));
  EXPECT_EQ(problem.expected, "at most 200 levels");
  EXPECT_THAT(problem_of(std::string(1'000'000, '(')).what, HasSubstr("nested too deep"));
  // What is accepted has a canonical text that is accepted, also with presets at the bottom.
  for (int depth = 190; depth <= 200; ++depth) {
    try {
      const std::string canonical = Pattern::parse(nested(depth, "!streaming(1, 2)")).canonical();
      EXPECT_EQ(Pattern::parse(canonical).canonical(), canonical);
    } catch (const Error& error) {
      EXPECT_GT(depth, 198) << error.what();
    }
  }
}

}  // namespace
}  // namespace longspan::pattern
