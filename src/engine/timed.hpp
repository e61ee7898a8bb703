#pragma once

#include <chrono>

namespace longspan::engine {

inline double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Adds the seconds of its scope to a section of the record.
class Timed {
 public:
  explicit Timed(double& section) : section_(section) {}
  ~Timed() { section_ += seconds_now() - start_; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& section_;
  double start_ = seconds_now();
};

}  // namespace longspan::engine
