#pragma once

#include <chrono>

namespace longspan::engine {

// Adds the seconds of its scope to a section of the record.
class Timed {
 public:
  explicit Timed(double& section) : section_(section) {}
  ~Timed() { section_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& section_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace longspan::engine
