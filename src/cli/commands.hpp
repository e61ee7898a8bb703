// The commands: their option tables, and the functions behind them.
#pragma once

#include <string>
#include <vector>

#include "cli/options.hpp"
#include "comm/communicator.hpp"

namespace longspan::cli {

const std::vector<Command>& commands();
const Command& command_named(const std::string& name);  // internal_error when there is none

// What a command may use beside its options.
struct Context {
  const comm::Communicator* ranks = nullptr;  // collective commands only
  std::string command_line;                   // as typed, for records
};

// Each returns the exit code; Error for anything a user can mend. On every rank: attend, bench …, doctor, generate. On one: the others.
int run_attend(const Settings& settings, const Context& context);
int run_bench_kernel(const Settings& settings, const Context& context);
int run_bench_exchange(const Settings& settings, const Context& context);
int run_bench_scaleout(const Settings& settings, const Context& context);
int run_bench_job(const Settings& settings, const Context& context);
int run_plan(const Settings& settings, const Context& context);
int run_verify(const Settings& settings, const Context& context);
int run_inspect_pattern(const Settings& settings, const Context& context);
int run_inspect_file(const Settings& settings, const Context& context);
int run_generate(const Settings& settings, const Context& context);
int run_doctor(const Settings& settings, const Context& context);

std::string version_text();

}  // namespace longspan::cli
