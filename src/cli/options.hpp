// Options of the commands: one table each, read from the command line, the environment and a configuration file.
//
//   command line  >  environment LONGSPAN_<OPTION>  >  --config file ([COMMAND] before [longspan])  >  default
//
// Each effective value keeps its origin, so that a user sees where a number came from. All problems are reported at once.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "longspan/error.hpp"

namespace longspan::cli {

enum class Kind : uint8_t {
  text,
  flag,      // --overwrite, --overwrite=false; in a file: overwrite = true
  integer,   // 17, or a count such as 12Mi, 32k
  bytes,     // 8Gi
  real,      // 0.125
  duration,  // 90s, 5min
  choice,    // one of `choices`
  json,      // --json, --json FILE.json, --json=FILE: "-" or a file
};

struct Option {
  std::string name;
  Kind kind = Kind::text;
  std::string value;     // what --help calls the value: FILE
  std::string fallback;  // default, as text; empty: none
  std::string help;
  bool required = false;
  std::vector<std::string> choices = {};
  int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();  // integer and bytes
  std::string when_absent = {};  // what --help and the list of effective values say when there is neither value nor default
};

struct Command {
  std::string name;     // "attend", "inspect pattern"
  std::string summary;  // one line
  std::string usage;    // after the name: --input C.h5 …
  std::vector<Option> options;
  std::string bare = {};    // the option that an argument without -- fills; may be empty
  std::string more = {};    // a paragraph for --help
  bool collective = false;  // runs on all ranks of mpirun; others run on one

  const Option* find(const std::string& option) const;
};

// An effective value.
struct Setting {
  std::string name;
  std::string text;    // as given; the default's text; empty when there is neither
  std::string origin;  // "command line", "environment LONGSPAN_MEMORY", "configs/x.ini:7 (key memory)", "default"
  std::string shown;   // text, or what stands for an absent value
};

class Settings {
 public:
  const Command& command() const { return *command_; }
  bool given(const std::string& name) const { return at(name).given; }  // by anything but the default
  bool has(const std::string& name) const { return !std::holds_alternative<std::monostate>(at(name).value); }
  // The value; internal_error when there is none (has() is false) or it is of another kind.
  const std::string& text(const std::string& name) const { return get<std::string>(name); }
  int64_t integer(const std::string& name) const { return get<int64_t>(name); }
  double real(const std::string& name) const { return get<double>(name); }
  bool flag(const std::string& name) const { return get<bool>(name); }
  std::optional<std::string> maybe_text(const std::string& name) const { return maybe<std::string>(name); }
  std::optional<int64_t> maybe_integer(const std::string& name) const { return maybe<int64_t>(name); }
  std::optional<double> maybe_real(const std::string& name) const { return maybe<double>(name); }

  const Setting& setting(const std::string& name) const { return at(name).setting; }
  // All effective values in the order of the table: for printing and for the run record.
  std::vector<Setting> all() const;
  // A usage problem with this option's value; seen and from are filled in.
  Problem problem(const std::string& name, const std::string& what, const std::string& expected = {}, const std::string& mend = {}) const;

 private:
  friend class SettingsReader;
  struct Entry {
    Setting setting;
    std::variant<std::monostate, std::string, int64_t, double, bool> value;
    bool given = false;
  };
  const Entry& at(const std::string& name) const;
  template <typename T>
  const T& get(const std::string& name) const {
    const T* value = std::get_if<T>(&at(name).value);
    if (!value) internal_error("option --" + name + " has no such value");
    return *value;
  }
  template <typename T>
  std::optional<T> maybe(const std::string& name) const {
    return has(name) ? std::optional<T>(get<T>(name)) : std::nullopt;
  }

  const Command* command_ = nullptr;
  std::vector<Entry> entries_;
};

// NAME=value pairs.
using Environment = std::vector<std::pair<std::string, std::string>>;
Environment process_environment();

// `commands`: all of them, so that keys and variables of another command are known. `arguments`: after the command's name.
// Throws Error(usage) with every problem found.
Settings read_settings(const Command& command, const std::vector<Command>& commands, const std::vector<std::string>& arguments,
                       const Environment& environment);

bool asks_for_help(const std::vector<std::string>& arguments);  // --help or -h before a --
std::string help_text(const Command& command);
std::string help_text(const std::vector<Command>& commands);

// "LONGSPAN_KV_HEADS" for kv-heads.
std::string variable_of(const std::string& option);

}  // namespace longspan::cli
