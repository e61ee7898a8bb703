#include "cli/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <set>

#include "cli/ini.hpp"
#include "cli/quantity.hpp"

extern char** environ;

namespace longspan::cli {

namespace po = boost::program_options;

const Option* Command::find(const std::string& option) const {
  const auto found = std::find_if(options.begin(), options.end(), [&](const Option& o) { return o.name == option; });
  return found == options.end() ? nullptr : &*found;
}

const Settings::Entry& Settings::at(const std::string& name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.setting.name == name; });
  if (found == entries_.end()) internal_error("command " + command_->name + " has no option --" + name);
  return *found;
}

std::vector<Setting> Settings::all() const {
  std::vector<Setting> settings;
  for (const Entry& entry : entries_) settings.push_back(entry.setting);
  return settings;
}

Problem Settings::problem(const std::string& name, const std::string& what, const std::string& expected, const std::string& mend) const {
  const Setting& value = setting(name);
  return {.code = ExitCode::usage,
          .what = what,
          .seen = value.text,
          .expected = expected,
          .from = "option --" + name + ", " + value.origin,
          .mend = mend};
}

Environment process_environment() {
  Environment environment;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) environment.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  std::sort(environment.begin(), environment.end());
  return environment;
}

std::string variable_of(const std::string& option) {
  std::string name = "LONGSPAN_";
  for (const char c : option) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

namespace {

// "unknown option --memroy"; the mend names the nearest known one, or says where to look.
Problem unknown(const std::string& what, const std::string& seen, const std::string& name, const std::vector<std::string>& known,
                const std::string& prefix, const std::string& from, const std::string& where_to_look) {
  const std::string near = nearest_name(name, known);
  return {.code = ExitCode::usage,
          .what = what + " " + seen,
          .from = from,
          .mend = near.empty() ? where_to_look : "did you mean " + prefix + near + "?"};
}

std::vector<std::string> names_of(const Command& command, bool with_config) {
  std::vector<std::string> names;
  for (const Option& option : command.options) names.push_back(option.name);
  if (with_config) names.insert(names.end(), {"config", "help"});
  return names;
}

}  // namespace

class SettingsReader {
 public:
  SettingsReader(const Command& command, const std::vector<Command>& commands) : command_(command), commands_(commands) {
    settings_.command_ = &command;
    for (const Option& option : command.options) {
      Settings::Entry entry;
      entry.setting = {option.name, option.fallback, option.fallback.empty() ? "not set" : "default", {}};
      settings_.entries_.push_back(entry);
    }
  }

  Settings read(const std::vector<std::string>& arguments, const Environment& environment) {
    const std::vector<po::option> given = parse(arguments);
    // Weakest first: each source overwrites the one before.
    std::string config, config_from = "option --config";
    for (const auto& [name, value] : environment)
      if (name == "LONGSPAN_CONFIG") config = value, config_from = "environment LONGSPAN_CONFIG";
    for (const po::option& option : given)
      if (option.string_key == "config") config = option.value.front(), config_from = "option --config";
    if (!config.empty()) take_file(config, config_from);
    take_environment(environment);
    take_command_line(given);
    for (size_t i = 0; i < settings_.entries_.size(); ++i) convert(command_.options[i], settings_.entries_[i]);
    if (!problems_.empty()) throw Error(problems_);
    return std::move(settings_);
  }

 private:
  // Boost stops at the first argument it cannot digest; that one is noted and left out, and the rest is parsed again.
  std::vector<po::option> parse(std::vector<std::string> arguments) {
    po::options_description description;
    for (const Option& option : command_.options) description.add_options()(option.name.c_str(), po::value<std::string>());
    description.add_options()("config", po::value<std::string>());
    // Three things that the parser would do otherwise: it would take the next argument as a switch's value, and the next option as a value;
    // and --json may be followed by a name that cannot be anything else.
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!arguments[i].starts_with("--")) continue;
      const std::string name = arguments[i].substr(2);
      const Option* option = command_.find(name);
      if (!option && name != "config") continue;
      const std::string next = i + 1 < arguments.size() ? arguments[i + 1] : "--";
      if (option && option->kind == Kind::flag) {
        arguments[i] += "=true";
      } else if (option && option->kind == Kind::json) {
        const bool named = next.ends_with(".json") || next == "-";
        arguments[i] += "=" + (named ? next : "-");
        if (named) arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      } else if (next.starts_with("--")) {
        no_value(name);
        refused_.insert(name);
        arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(i--));
      } else {
        ++i;  // its value, whatever it looks like
      }
    }
    namespace style = po::command_line_style;
    constexpr int kStyle =
        style::allow_long | style::long_allow_adjacent | style::long_allow_next;  // no abbreviations: they break with new options
    for (;;) {
      try {
        return po::command_line_parser(arguments).options(description).style(kStyle).allow_unregistered().run().options;
      } catch (const po::error_with_option_name& error) {
        std::string name = error.get_option_name();
        name.erase(0, name.find_first_not_of('-'));
        const auto culprit = std::find_if(arguments.begin(), arguments.end(),
                                          [&](const std::string& a) { return a == "--" + name || a.starts_with("--" + name + "="); });
        if (culprit == arguments.end()) {
          problems_.push_back({.code = ExitCode::usage, .what = error.what(), .from = "command line"});
          return {};
        }
        no_value(name);
        arguments.erase(culprit);
      } catch (const po::error& error) {
        problems_.push_back({.code = ExitCode::usage, .what = error.what(), .from = "command line"});
        return {};
      }
    }
  }

  void no_value(const std::string& name) {
    const Option* option = command_.find(name);
    problems_.push_back({.code = ExitCode::usage,
                         .what = "option --" + name + " has no value",
                         .expected = "--" + name + " " + (option ? option->value : "FILE"),
                         .from = "command line"});
  }

  void set(const std::string& name, const std::string& text, const std::string& origin) {
    for (Settings::Entry& entry : settings_.entries_) {
      if (entry.setting.name != name) continue;
      entry.setting.text = text;
      entry.setting.origin = origin;
      entry.given = true;
    }
  }

  void take_command_line(const std::vector<po::option>& given) {
    std::set<std::string> seen;
    bool after_unknown = false, bare_filled = false;
    for (const po::option& option : given) {
      const bool bare = option.string_key.empty() || option.position_key >= 0;
      if (option.unregistered && !bare) {
        const std::string token = option.original_tokens.empty() ? "--" + option.string_key : option.original_tokens.front();
        const std::string name = option.string_key;
        std::string where = "see longspan " + command_.name + " --help";
        for (const Command& other : commands_)
          if (other.find(name)) where = "it is an option of longspan " + other.name + "; " + "see longspan " + command_.name + " --help";
        problems_.push_back(unknown("unknown option", token, name, names_of(command_, true), "--", "command line", where));
        after_unknown = token.find('=') == std::string::npos;
        continue;
      }
      if (!bare) {
        if (!seen.insert(option.string_key).second)
          problems_.push_back({.code = ExitCode::usage,
                               .what = "option --" + option.string_key + " is given twice",
                               .from = "command line",
                               .mend = "keep one of them"});
        set(option.string_key, option.value.front(), "command line");
        after_unknown = false;
        continue;
      }
      const std::string text = option.value.empty() ? "" : option.value.front();
      if (!command_.bare.empty() && !bare_filled && !seen.contains(command_.bare)) {
        bare_filled = true;
        seen.insert(command_.bare);
        set(command_.bare, text, "command line");
      } else if (!after_unknown) {  // else it was meant as the unknown option's value
        problems_.push_back(
            {.code = ExitCode::usage,
             .what = "argument makes no sense here",
             .seen = text,
             .expected = text.starts_with('-') ? "options with two dashes and their full name" : "options and their values only",
             .from = "command line",
             .mend = "see longspan " + command_.name + " --help"});
      }
      after_unknown = false;
    }
  }

  // A stale or misspelt variable must not be silent; one that another command understands is none of our business.
  void take_environment(const Environment& environment) {
    std::vector<std::string> known{"LONGSPAN_CONFIG"};
    for (const Command& command : commands_)
      for (const Option& option : command.options) known.push_back(variable_of(option.name));
    for (const auto& [name, value] : environment) {
      if (!name.starts_with("LONGSPAN_")) continue;
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        problems_.push_back(
            unknown("unknown variable", name, name, known, "", "environment", "unset it; see longspan " + command_.name + " --help"));
        continue;
      }
      for (const Option& option : command_.options)
        if (variable_of(option.name) == name) set(option.name, value, "environment " + name);
    }
  }

  void take_file(const std::string& file, const std::string& from) {
    std::vector<Problem> problems;
    const IniFile ini = read_ini(file, problems);
    for (Problem& problem : problems) {
      if (problem.from == "option --config") problem.from = from;
      problems_.push_back(problem);
    }
    std::vector<std::string> sections{"longspan"}, all_names;
    for (const Command& command : commands_) {
      sections.push_back(command.name);
      for (const std::string& name : names_of(command, false)) all_names.push_back(name);
    }
    for (const IniFile::Section& section : ini.sections) {
      if (std::find(sections.begin(), sections.end(), section.name) != sections.end()) continue;
      problems_.push_back(unknown("unknown section", "[" + section.name + "]", section.name, sections, "",
                                  fmt::format("{}:{}", file, section.line), fmt::format("sections are {}", fmt::join(sections, ", "))));
    }
    for (const bool own : {false, true}) {  // [COMMAND] beats [longspan], wherever it stands
      for (const IniEntry& entry : ini.entries) {
        const bool shared = entry.section.empty() || entry.section == "longspan";
        const auto command = std::find_if(commands_.begin(), commands_.end(), [&](const Command& c) { return c.name == entry.section; });
        if (shared == own || (!shared && command == commands_.end())) continue;
        const std::vector<std::string> known = shared ? all_names : names_of(*command, false);
        const std::string line = fmt::format("{}:{}", file, entry.line);
        if (std::find(known.begin(), known.end(), entry.key) == known.end()) {
          problems_.push_back(
              unknown("unknown key", entry.key, entry.key, known, "", line,
                      "keys are the long names of options" + (shared ? std::string() : "; see longspan " + entry.section + " --help")));
        } else if (shared || entry.section == command_.name) {
          set(entry.key, entry.value, fmt::format("{} (key {})", line, entry.key));
        }
      }
    }
  }

  void convert(const Option& option, Settings::Entry& entry) {
    Setting& setting = entry.setting;
    setting.shown = setting.text;
    const auto bad = [&](const std::string& what, const std::string& expected) {
      problems_.push_back({.code = ExitCode::usage,
                           .what = "option --" + option.name + " " + what,
                           .seen = setting.text.empty() ? "an empty text" : setting.text,
                           .expected = expected,
                           .from = setting.origin});
    };
    if (setting.text.empty()) {
      if (option.kind == Kind::flag && !entry.given)
        entry.value = false, setting.shown = setting.text = "false", setting.origin = "default";
      else if (option.required && !entry.given) {
        if (refused_.contains(option.name)) return;
        problems_.push_back({.code = ExitCode::usage,
                             .what = "option --" + option.name + " is missing",
                             .expected = "--" + option.name + " " + option.value,
                             .mend = "give it on the command line, as " + variable_of(option.name) + " or in the --config file"});
      } else if (entry.given) {
        bad("has no value", option.value);
      } else {
        setting.shown = option.when_absent, setting.origin = "default";
      }
      return;
    }
    switch (option.kind) {
      case Kind::text:
      case Kind::json:
        entry.value = setting.text;
        break;
      case Kind::flag:
        if (const auto value = parse_switch(setting.text))
          entry.value = *value;
        else
          bad("is a switch", "true or false");
        break;
      case Kind::integer:
      case Kind::bytes: {
        const bool bytes = option.kind == Kind::bytes;
        const auto value = parse_quantity(setting.text, bytes);
        if (!value)
          bad(bytes ? "is no size" : "is no whole number",
              bytes ? "bytes, such as 8Gi, 512Mi (powers of 1024) or 1G (10^9)" : "a whole number, such as 4096, 32k, 12Mi");
        else if (*value < option.least)
          bad("is too small", fmt::format("at least {}", option.least));
        else if (*value > option.most)
          bad("is too large", fmt::format("at most {}", option.most));
        else
          entry.value = *value;
        break;
      }
      case Kind::real:
        if (const auto value = parse_real(setting.text))
          entry.value = *value;
        else
          bad("is no number", "a finite number, such as 0.125");
        break;
      case Kind::duration:
        if (const auto value = parse_duration(setting.text))
          entry.value = *value;
        else
          bad("is no time", "seconds, such as 90, 90s, 5min, 2h");
        break;
      case Kind::choice:
        if (std::find(option.choices.begin(), option.choices.end(), setting.text) != option.choices.end())
          entry.value = setting.text;
        else
          bad("has no such choice", fmt::format("{}", fmt::join(option.choices, ", ")));
        break;
    }
  }

  const Command& command_;
  const std::vector<Command>& commands_;
  Settings settings_;
  std::set<std::string> refused_;  // options without a value: not missing as well
  std::vector<Problem> problems_;
};

Settings read_settings(const Command& command, const std::vector<Command>& commands, const std::vector<std::string>& arguments,
                       const Environment& environment) {
  return SettingsReader(command, commands).read(arguments, environment);
}

bool asks_for_help(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument == "--") return false;
    if (argument == "--help" || argument == "-h") return true;
  }
  return false;
}

namespace {

constexpr size_t kWidth = 110;

// Words of `text` in lines of kWidth, the lines after the first indented.
std::string filled(const std::string& text, size_t indent) {
  std::string out;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (column > indent && column + 1 + (end - begin) > kWidth) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ', ++column;
    }
    out += text.substr(begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out + "\n";
}

}  // namespace

std::string help_text(const Command& command) {
  std::string text = fmt::format("longspan {}: {}\n\nUsage: longspan {} {}\n", command.name, command.summary, command.name, command.usage);
  if (!command.more.empty()) text += "\n" + filled(command.more, 0);
  text +=
      "\nEach option also as a variable (--kv-heads: LONGSPAN_KV_HEADS) or as a key of the same name in the --config file.\n"
      "Command line > environment > file > default.\n\nOptions:\n";
  size_t widest = 0;
  const auto title = [](const Option& o) {
    return o.kind == Kind::flag ? "--" + o.name : o.kind == Kind::json ? "--json [FILE]" : "--" + o.name + " " + o.value;
  };
  for (const Option& option : command.options) widest = std::max(widest, title(option).size());
  const size_t indent = widest + 4;
  const auto add = [&](const std::string& left, const std::string& right) {
    text += fmt::format("  {:<{}}  {}", left, widest, filled(right, indent));
  };
  for (const Option& option : command.options) {
    std::string right = option.help;
    if (!option.choices.empty()) right += fmt::format(" ({})", fmt::join(option.choices, " | "));
    std::string fallback = option.required              ? "required"
                           : !option.fallback.empty()   ? "default " + option.fallback
                           : option.kind == Kind::flag  ? "default false"
                           : option.when_absent.empty() ? "no default"
                                                        : "default: " + option.when_absent;
    right += fmt::format(" [{}; key {}]", fallback, option.name);
    add(title(option), right);
  }
  add("--config FILE", "INI file with options [no default; LONGSPAN_CONFIG]");
  add("--help", "this text");
  return text;
}

std::string help_text(const std::vector<Command>& commands) {
  std::string text =
      "longspan: exact sparse attention over millions of tokens as one MPI job, from HDF5 to HDF5\n\n"
      "Usage: [mpirun -np N] longspan COMMAND [options]\n\nCommands:\n";
  size_t widest = 0;
  for (const Command& command : commands) widest = std::max(widest, command.name.size());
  for (const Command& command : commands) text += fmt::format("  {:<{}}  {}", command.name, widest, filled(command.summary, widest + 4));
  text += fmt::format("  {:<{}}  {}\n", "--version", widest, "versions of this program and of what it was built with and runs on");
  text += fmt::format("  {:<{}}  {}\n", "--help", widest, "this text; longspan COMMAND --help for a command's options");
  return text +
         "\nExit codes: 0 ok, 1 verify found an error too large, 2 usage, 3 input data, 4 environment, 5 device,\n"
         "6 communication or time-out, 7 input/output, 70 internal error, 75 stopped at a safe point (go on with --continue)\n";
}

}  // namespace longspan::cli
