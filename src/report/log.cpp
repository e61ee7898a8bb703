#include "report/log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "report/format.hpp"

namespace longspan::report {

std::optional<Level> level_named(const std::string& name) {
  if (name == "error") return Level::error;
  if (name == "warning") return Level::warning;
  if (name == "info") return Level::info;
  if (name == "debug") return Level::debug;
  return std::nullopt;
}

namespace {

// mpirun gives its processes a pseudo-terminal even when its own output goes to a file: then what counts is where the launcher, the
// parent process, writes to.
bool on_terminal(std::FILE* out) {
  if (isatty(fileno(out)) != 1) return false;
  if (!std::getenv("OMPI_COMM_WORLD_RANK")) return true;
  std::error_code unreadable;
  const auto target =
      std::filesystem::read_symlink("/proc/" + std::to_string(getppid()) + "/fd/" + std::to_string(fileno(out)), unreadable).string();
  return !unreadable && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
}

}  // namespace

Log::Log(Level level, bool speaks, std::FILE* out) : level_(level), speaks_(speaks), out_(out) {}

Log::~Log() {
  wipe_bar();
  std::fflush(out_);
}

void Log::wipe_bar() {
  if (!bar_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
  bar_ = false;
}

// Written by one call and flushed, so that lines of several ranks or streams do not mix and a killed job has said all it had to say.
void Log::line(Level level, const std::string& text) {
  if (!shows(level)) return;
  wipe_bar();
  std::string whole = level == Level::error     ? "longspan: error: " + text
                      : level == Level::warning ? "longspan: warning: " + text
                      : level == Level::debug   ? "debug: " + text
                                                : text;
  if (!whole.ends_with('\n')) whole += '\n';
  std::FILE* stream = level <= Level::warning ? stderr : out_;
  if (stream == stderr) std::fflush(out_);
  std::fwrite(whole.data(), 1, whole.size(), stream);
  std::fflush(stream);
}

void Log::error(const std::string& text) { line(Level::error, text); }
void Log::warning(const std::string& text) { line(Level::warning, text); }
void Log::info(const std::string& text) { line(Level::info, text); }
void Log::debug(const std::string& text) { line(Level::debug, text); }

Progress::Progress(Log& log, std::string title, int64_t total, std::string unit, double interval)
    : log_(log),
      title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      interval_(interval),
      terminal_(on_terminal(log.out_)),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() { finish(); }

std::string Progress::line(int64_t done, double elapsed) const {
  const double share = total_ > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0) : 1.0;
  std::string text = fmt::format("{:5.1f} %", share * 100);
  if (elapsed > 0 && done > 0) {
    text += "  " + rate_text(static_cast<double>(done) / elapsed, unit_);
    text += share < 1 ? "  " + duration_text(elapsed * (1 - share) / share) + " left" : "  " + duration_text(elapsed);
  }
  return text;
}

void Progress::update(int64_t done) {
  done_ = done;
  if (!log_.shows(Level::info) || finished_) return;
  const auto now = std::chrono::steady_clock::now();
  if (std::chrono::duration<double>(now - last_).count() < (terminal_ ? 0.2 : interval_)) return;
  last_ = now;
  const std::string text = line(done, std::chrono::duration<double>(now - start_).count());
  if (!terminal_) {
    printed_ = true;
    log_.info(title_ + " " + text);
    return;
  }
  constexpr int64_t kWidth = 24;
  const int64_t filled =
      total_ > 0 ? std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(done) / static_cast<double>(total_) * kWidth), 0, kWidth)
                 : kWidth;
  const std::string bar = fmt::format("\r{} [{}{}] {}\033[K", title_, std::string(static_cast<size_t>(filled), '#'),
                                      std::string(static_cast<size_t>(kWidth - filled), '.'), text);
  std::fwrite(bar.data(), 1, bar.size(), log_.out_);
  std::fflush(log_.out_);
  log_.bar_ = true;
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  log_.wipe_bar();
  if (printed_) log_.info(title_ + " " + line(done_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count()));
}

}  // namespace longspan::report
