// What a person reads while a command runs: plain lines from one rank, and a progress line.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace longspan::report {

enum class Level : uint8_t { error, warning, info, debug };
std::optional<Level> level_named(const std::string& name);

// Lines of level info and debug go to `out`, warnings and errors to stderr. A log with speaks = false (every rank but 0) is silent.
// Not thread-safe: one thread per rank logs.
class Log {
 public:
  explicit Log(Level level = Level::info, bool speaks = true, std::FILE* out = stdout);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  bool shows(Level level) const { return speaks_ && level <= level_; }
  // One line each, or several when the text has line ends; the last line end may be left out.
  void error(const std::string& text);
  void warning(const std::string& text);
  void info(const std::string& text);
  void debug(const std::string& text);

 private:
  friend class Progress;
  void line(Level level, const std::string& text);
  void wipe_bar();

  Level level_;
  bool speaks_;
  std::FILE* out_;
  bool bar_ = false;  // a progress bar stands on the last line of the terminal
};

// A bar that is redrawn on a terminal, else one line per interval. Shown at level info.
//   attend  [########············]  41.2 %  1.7 M tokens/s  12.0 s left
class Progress {
 public:
  // `total` units of work, named in the plural ("tokens"). `interval`: seconds between lines (a terminal's bar moves 5 times a second).
  Progress(Log& log, std::string title, int64_t total, std::string unit, double interval = 10);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t done);  // cheap; call as often as you like
  void finish();              // removes the bar, or prints a last line if any was printed

 private:
  std::string line(int64_t done, double elapsed) const;

  Log& log_;
  std::string title_, unit_;
  int64_t total_ = 0, done_ = 0;
  double interval_;
  bool terminal_ = false, printed_ = false, finished_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace longspan::report
