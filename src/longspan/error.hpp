// One problem = one message a user can act on: what is wrong, what was seen, what was expected, where it came from, how to mend it.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace longspan {

// The exit codes of every command (DESIGN section 7, README "Exit codes").
enum class ExitCode : int {
  ok = 0,
  verify_failed = 1,
  usage = 2,
  input = 3,
  environment = 4,
  device = 5,
  communication = 6,
  io = 7,
  internal = 70,
  stopped = 75,
};

struct Problem {
  ExitCode code = ExitCode::internal;
  std::string what;      // "dataset /k has the wrong shape"
  std::string seen;      // "[4154, 3, 32]"; may be empty
  std::string expected;  // "[4154, kv_heads, 64]"; may be empty
  std::string from;      // "corpus.h5:/k", "option --pattern", "configs/x.ini:7"; may be empty
  std::string mend;      // "rewrite /k with q's head_dim"; may be empty

  // One line (a pattern's caret makes it three): "what: seen …, expected … (from …); mend".
  std::string text() const;
  bool operator==(const Problem&) const = default;
};

// Thrown in set-up phases on any rank; comm::Communicator::agree turns the ranks' errors into one verdict.
class Error : public std::runtime_error {
 public:
  explicit Error(Problem problem) : Error(std::vector<Problem>{std::move(problem)}) {}
  explicit Error(std::vector<Problem> problems);
  const std::vector<Problem>& problems() const { return problems_; }
  ExitCode code() const { return problems_.front().code; }

 private:
  std::vector<Problem> problems_;
};

// Breaks off with ExitCode::internal: the program itself is wrong, not its input.
[[noreturn]] void internal_error(const std::string& what);

// `candidates` that a misspelt `name` most likely meant (edit distance at most 1/3 of its length, at least 1); empty if none is near.
std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace longspan
