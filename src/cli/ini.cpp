#include "cli/ini.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace longspan::cli {

namespace {

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// Cuts a comment: # at the start or after a blank, but not inside quotes (block_mask("a #1", 64)).
std::string without_comment(const std::string& line) {
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"') quoted = !quoted;
    if (line[i] == '#' && !quoted && (i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t')) return line.substr(0, i);
  }
  return line;
}

}  // namespace

IniFile read_ini(const std::string& file, std::vector<Problem>& problems) {
  IniFile ini{.name = file};
  std::ifstream stream(file);
  std::string line;
  if (!stream || (stream.peek(), stream.bad())) {
    problems.push_back({.code = ExitCode::usage,
                        .what = "cannot read the configuration file " + file,
                        .seen = std::strerror(errno),
                        .from = "option --config"});
    return ini;
  }
  std::string section;
  bool may_continue = false;  // the line before was an entry, or went on with one
  for (int number = 1; std::getline(stream, line); ++number) {
    if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    const bool indented = line.starts_with(' ') || line.starts_with('\t');
    const std::string text = trimmed(without_comment(line));
    const std::string from = fmt::format("{}:{}", file, number);
    if (text.empty() || text.starts_with(';')) continue;
    if (indented && may_continue) {
      ini.entries.back().value += (ini.entries.back().value.empty() ? "" : " ") + text;
      continue;
    }
    may_continue = false;
    if (text.starts_with('[')) {
      if (!text.ends_with(']')) {
        problems.push_back(
            {.code = ExitCode::usage, .what = "section without ]", .seen = text, .expected = "[COMMAND] or [longspan]", .from = from});
        continue;
      }
      section = trimmed(text.substr(1, text.size() - 2));
      ini.sections.push_back({section, number});
      continue;
    }
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      problems.push_back({.code = ExitCode::usage,
                          .what = "line makes no sense",
                          .seen = text,
                          .expected = "key = value, [section] or # comment",
                          .from = from});
      continue;
    }
    IniEntry entry{section, trimmed(text.substr(0, equals)), trimmed(text.substr(equals + 1)), number};
    const auto twin = std::find_if(ini.entries.begin(), ini.entries.end(),
                                   [&](const IniEntry& other) { return other.section == entry.section && other.key == entry.key; });
    if (twin != ini.entries.end()) {
      problems.push_back({.code = ExitCode::usage,
                          .what = fmt::format("key {} is given twice, first in line {}", entry.key, twin->line),
                          .from = from,
                          .mend = "keep one of them"});
    }
    ini.entries.push_back(std::move(entry));
    may_continue = true;
  }
  if (stream.bad())
    problems.push_back({.code = ExitCode::usage,
                        .what = "cannot read the configuration file " + file,
                        .seen = std::strerror(errno),
                        .from = "option --config"});
  return ini;
}

}  // namespace longspan::cli
