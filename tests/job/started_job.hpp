// Starts `mpirun -n P longspan …` as a user would, looks at its processes, kills some of them, and waits for the end with a time-out.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace longspan::job::testing {

struct Outcome {
  int code = -1;           // exit code; 128 + signal when mpirun itself was killed
  bool timed_out = false;  // then everything of it was killed
  double seconds = 0;      // from the start to the end
  std::string text;        // standard output and error
};

// One process of the program in a job that runs.
struct Rank {
  pid_t process = -1;
  int rank = -1;  // in MPI_COMM_WORLD
};

// The words of a command line; none of them may hold a space unless it is in '…'.
std::vector<std::string> words(const std::string& line);

class StartedJob {
 public:
  // `command` with its arguments, found on the path; `environment` adds NAME=VALUE. The output is kept in `folder`, the test's own. A mark
  // in the environment, which mpirun's children inherit, tells the job's processes from everybody else's.
  StartedJob(const std::vector<std::string>& command, const std::string& folder, const std::vector<std::string>& environment = {});
  ~StartedJob();  // kills what is left
  StartedJob(const StartedJob&) = delete;
  StartedJob& operator=(const StartedJob&) = delete;

  pid_t process() const { return process_; }  // mpirun
  bool running();
  std::string text() const;         // its output so far
  std::vector<Rank> ranks() const;  // that are alive, in order of rank
  Outcome wait(double seconds);
  // Until no process of the job is left, at most `seconds`; how long it took, or a negative number.
  double wait_until_gone(double seconds);

 private:
  std::string mark_, log_;
  pid_t process_ = -1;
  int status_ = 0;
  bool ended_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// mpirun -n `ranks` longspan `arguments`, to its end.
std::vector<std::string> mpirun(int ranks, const std::string& arguments);
Outcome run(const std::vector<std::string>& command, const std::string& folder, double seconds = 30,
            const std::vector<std::string>& environment = {});

int occurrences(const std::string& text, const std::string& part);

}  // namespace longspan::job::testing
