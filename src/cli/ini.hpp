// Reads the INI dialect of --config, keeping line numbers for messages.
//
//   # a comment; also ; at the start of a line, and # after a blank
//   memory = 8Gi                        before any section, or in [longspan]: for every command that has such an option
//   [attend]                            for one command; beats the keys above
//   pattern = 0-7: causal;
//             *: causal & window(4095)  an indented line goes on with the value
#pragma once

#include <string>
#include <vector>

#include "longspan/error.hpp"

namespace longspan::cli {

struct IniEntry {
  std::string section;  // "" before the first section
  std::string key, value;
  int line = 0;
};

struct IniFile {
  std::string name;
  std::vector<IniEntry> entries;
  struct Section {
    std::string name;
    int line = 0;
  };
  std::vector<Section> sections;
};

// Lines that are neither a section, an entry nor a comment, and keys given twice in a section, are added to `problems`; an unreadable file
// too.
IniFile read_ini(const std::string& file, std::vector<Problem>& problems);

}  // namespace longspan::cli
