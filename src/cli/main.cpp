// longspan COMMAND …: finds the command, reads its options, runs it, and turns whatever it throws into one message and an exit code.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "cli/launched_rank.hpp"
#include "longspan/error.hpp"

namespace {

using namespace longspan;

int report_problems(const std::vector<Problem>& problems) {
  std::fflush(stdout);
  std::vector<Problem> printed;
  for (const Problem& problem : problems) {
    if (std::find(printed.begin(), printed.end(), problem) != printed.end()) continue;
    printed.push_back(problem);
    const std::string line = "longspan: error: " + problem.text() + "\n";
    std::fwrite(line.data(), 1, line.size(), stderr);
  }
  std::fflush(stderr);
  return static_cast<int>(problems.front().code);
}

int report_exception(const std::exception& error) {
  if (const auto* known = dynamic_cast<const Error*>(&error)) return report_problems(known->problems());
  const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  return report_problems({{.code = ExitCode::internal,
                           .what = memory ? "out of memory" : std::string("unexpected: ") + error.what(),
                           .mend = memory ? "use more ranks or a smaller --memory" : "please report this with the command line"}});
}

// "inspect pattern" and "bench exchange" are two words; the rest is options. Throws Error(usage) when the command is unknown.
const cli::Command& find_command(std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (const cli::Command& command : cli::commands()) {
    names.push_back(command.name);
    const size_t words = static_cast<size_t>(std::count(command.name.begin(), command.name.end(), ' ')) + 1;
    if (arguments.size() < words) continue;
    std::string spoken = arguments.front();
    for (size_t i = 1; i < words; ++i) spoken += " " + arguments[i];
    if (spoken != command.name) continue;
    arguments.erase(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(words));
    return command;
  }
  std::string seen = arguments.front();
  // Commands of two words: the first alone, or with another second.
  std::string family;
  for (const std::string& name : names)
    if (name.starts_with(seen + " ")) family += (family.empty() ? "" : ", ") + name;
  if (!family.empty()) {
    const bool more = arguments.size() > 1 && !arguments[1].starts_with('-');
    throw Error({.code = ExitCode::usage,
                 .what = more ? fmt::format("unknown command {} {}", seen, arguments[1]) : seen + " what?",
                 .expected = "one of " + family,
                 .mend = "see longspan --help"});
  }
  names.insert(names.end(), {"--help", "--version"});
  std::string near = nearest_name(seen, names);
  if (near.empty() && arguments.size() > 1) near = nearest_name(seen + " " + arguments[1], names);
  throw Error({.code = ExitCode::usage,
               .what = (seen.starts_with('-') ? "unknown option " : "unknown command ") + seen,
               .mend = (near.empty() ? "" : "did you mean " + near + "? ") + std::string("see longspan --help")});
}

// The same options on every rank, or an error that names the first that differs: a rank with another environment would do another job.
// The same program, too, unless finding that out is what the command is for.
void agree_on_settings(const comm::Communicator& ranks, const cli::Settings& settings) {
  std::string mine = settings.command().name == "doctor" ? "" : cli::version_text();
  for (const cli::Setting& setting : settings.all()) mine += "--" + setting.name + " " + setting.text + "\n";
  const std::string first = ranks.broadcast(mine);
  std::vector<Problem> problems;
  if (mine != first) {
    const auto difference = std::mismatch(mine.begin(), mine.end(), first.begin(), first.end());
    const auto line_at = [](const std::string& text, size_t at) {
      const size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) == std::string::npos ? 0 : text.rfind('\n', at - 1) + 1;
      std::string line = text.substr(begin, text.find('\n', begin) - begin);
      return line.substr(std::min(line.find_first_not_of(' '), line.size()));
    };
    problems.push_back({.code = ExitCode::usage,
                        .what = "ranks differ in program or options",
                        .seen = line_at(mine, static_cast<size_t>(difference.first - mine.begin())),
                        .expected = line_at(first, static_cast<size_t>(difference.second - first.begin())) + " as on rank 0",
                        .mend = "start the same program with the same options and LONGSPAN_ variables everywhere"});
  }
  ranks.agree(problems);
}

using Runner = int (*)(const cli::Settings&, const cli::Context&);

Runner runner_of(const std::string& command) {
  if (command == "attend") return cli::run_attend;
  if (command == "verify") return cli::run_verify;
  if (command == "inspect pattern") return cli::run_inspect_pattern;
  if (command == "inspect file") return cli::run_inspect_file;
  if (command == "plan") return cli::run_plan;
  if (command == "bench kernel") return cli::run_bench_kernel;
  if (command == "bench exchange") return cli::run_bench_exchange;
  if (command == "bench scaleout") return cli::run_bench_scaleout;
  if (command == "bench job") return cli::run_bench_job;
  if (command == "generate") return cli::run_generate;
  if (command == "doctor") return cli::run_doctor;
  internal_error("command " + command + " has no function");
}

// Every rank leaves with the same code by itself. srun --kill-on-bad-exit does not know that: it ends those that take longer than the
// first, and reports how they ended. (A rank that then hangs in MPI_Finalize is ended by Slurm's SIGKILL only, after its KillWait.)
int leave_with(int code) {
  if (code != 0) std::signal(SIGTERM, SIG_IGN);
  return code;
}

// Set-up problems reach here on all ranks alike (Communicator::agree); rank 0 prints them.
int run_collective(const cli::Command& command, const std::vector<std::string>& arguments, const std::string& command_line, int* argc,
                   char*** argv) {
  comm::Session session(argc, argv);
  const comm::Communicator ranks(MPI_COMM_WORLD);
  try {
    cli::Settings settings;
    ranks.agreed([&] { settings = cli::read_settings(command, cli::commands(), arguments, cli::process_environment()); });
    agree_on_settings(ranks, settings);
    return leave_with(runner_of(command.name)(settings, {.ranks = &ranks, .command_line = command_line}));
  } catch (const comm::AgreedError& error) {
    const int code = leave_with(static_cast<int>(error.code()));
    if (ranks.rank() == 0) report_exception(error);
    return code;
  } catch (const Error& error) {  // this and what follows: on this rank alone, and the others wait for it
    ranks.abort(error.problems().front());
  } catch (const std::bad_alloc&) {
    ranks.abort({.code = ExitCode::environment, .what = "out of memory", .mend = "use more ranks or a smaller --memory"});
  } catch (const std::exception& error) {
    ranks.abort({.code = ExitCode::internal,
                 .what = std::string("unexpected: ") + error.what(),
                 .mend = "please report this with the command line"});
  }
}

int run(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  std::string command_line = argv[0];
  for (const std::string& argument : arguments)
    command_line += argument.find_first_of(" \"'&|;()!*$<>") == std::string::npos ? " " + argument : " '" + argument + "'";
  const bool first = cli::launched_rank() == 0;  // help, tables and usage errors are printed once even under mpirun
  try {
    if (arguments.empty() || arguments.front() == "--help" || arguments.front() == "-h" || arguments.front() == "help") {
      if (first) std::fputs(cli::help_text(cli::commands()).c_str(), arguments.empty() ? stderr : stdout);
      return arguments.empty() ? static_cast<int>(ExitCode::usage) : 0;
    }
    if (arguments.front() == "--version") {
      if (first) std::fputs(cli::version_text().c_str(), stdout);
      return 0;
    }
    const cli::Command& command = find_command(arguments);
    if (cli::asks_for_help(arguments)) {
      if (first) std::fputs(cli::help_text(command).c_str(), stdout);
      return 0;
    }
    if (command.collective) return run_collective(command, arguments, command_line, &argc, &argv);
    if (!first) return 0;  // one rank is enough
    const cli::Settings settings = cli::read_settings(command, cli::commands(), arguments, cli::process_environment());
    return runner_of(command.name)(settings, {.command_line = command_line});
  } catch (const std::exception& error) {
    if (first) return report_exception(error);
    const auto* known = dynamic_cast<const Error*>(&error);
    return static_cast<int>(known ? known->code() : ExitCode::internal);
  }
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
