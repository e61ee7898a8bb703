// Where an attention run takes its rows from and where it puts them: files, or a caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device.hpp"

namespace longspan::engine {

// Called from the engine's I/O thread and its main thread, one call at a time each; an Output by one at a time of these two and the
// results' thread, by the main one only where all results are in place. Errors are thrown.
class Input {
 public:
  virtual ~Input() = default;
  // Tokens [begin, begin + count): out [count][heads][head_dim]. Only own rows are asked for.
  virtual void read_q(int64_t begin, int64_t count, std::byte* out) = 0;
  // KV heads [head, head + heads) of the same: out [count][heads][head_dim]. Any rows when keys are read again, else own ones.
  virtual void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) = 0;
  virtual void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) = 0;
  // Where the same rows lie, all heads of them, one after another, in memory that the device reaches straight (Reach::straight), if they
  // do: then they are not read, and stay as they are until the run is over. Else null. All rows of Q lie in memory of one kind, and so do
  // those of K and V.
  virtual const std::byte* q_in_place(int64_t, int64_t) { return nullptr; }
  virtual const std::byte* k_in_place(int64_t, int64_t) { return nullptr; }
  virtual const std::byte* v_in_place(int64_t, int64_t) { return nullptr; }
  // Whether any threads may read at the same time.
  virtual bool from_any_thread() const { return false; }
};

class Output {
 public:
  virtual ~Output() = default;
  // o [count][heads][head_dim] of the output type, lse [count][heads]. A stripe's rows come in ascending runs, then its end.
  virtual void write(int64_t begin, int64_t count, const std::byte* o, const float* lse) = 0;
  // Where the same rows are to lie, one after another, in memory that the device reaches straight, if they are: then they are not written.
  virtual kernels::Device::ResultRows in_place(int64_t, int64_t) { return {}; }
  virtual void stripe_written(int64_t stripe) { static_cast<void>(stripe); }
  // Whether any threads may write (rows of their own, in any order) at the same time, and while others read the Input.
  virtual bool from_any_thread() const { return false; }
};

}  // namespace longspan::engine
