// Where the rows of a rank's stripes lie on the device: queries come into one of two buffers in turns, results leave from one of two, and
// rows that kernels reach at the caller's need neither.
//
//   stripe     0    1    2    3        and a caller's rows are in reach of kernels in stripe 2:
//   queries    A    B    -    A        B holds the queries of long stripes too, which come first
//   results    A    B    -    B        stripe 3 has its turn after stripe 1's results have left
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/row_copies.hpp"
#include "kernels/device.hpp"
#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"

namespace longspan::engine {

class StripeRows {
 public:
  StripeRows(kernels::Device& device, const Shape& shape, ElementType output_type)
      : device_(device), shape_(shape), output_type_(output_type) {}

  // A run with stripes of these tokens (none: a stripe without own rows), and so many queries of long stripes: memory for what is not in
  // place, as far as runs before have not made it. Throws as Device::allocate.
  void begin(const RowCopies& copies, const std::vector<Intervals>& tokens, int64_t long_queries);

  int64_t bytes() const;                                                          // of the device's memory
  const std::byte* q_in_place(size_t stripe) const { return places_[stripe].q; }  // null: they are brought into a buffer
  bool results_in_place(size_t stripe) const { return places_[stripe].results.o != nullptr; }
  std::byte* q_buffer(size_t turn) const { return q_[turn % 2].get(); }
  std::byte* long_q() const { return q_[1].get(); }
  std::byte* long_q_on_host() const { return long_q_on_host_ ? long_q_on_host_.get() : long_q(); }  // on its way there; on CPUs there
  kernels::Results results(size_t stripe, size_t turn) const;

 private:
  struct Places {
    const std::byte* q = nullptr;
    kernels::Device::ResultRows results;  // without LSE, that goes to a buffer and nowhere else
  };
  struct Memory {
    kernels::Buffer buffer;
    int64_t bytes = 0;
    std::byte* get() const { return buffer.get(); }
  };
  struct ResultBuffers {
    Memory o, lse;
  };
  void reserve(Memory& memory, int64_t bytes);

  kernels::Device& device_;
  Shape shape_;
  ElementType output_type_;
  std::vector<Places> places_;  // by stripe
  std::array<Memory, 2> q_;
  kernels::Buffer long_q_on_host_;  // a GPU's
  std::array<ResultBuffers, 2> results_;
};

}  // namespace longspan::engine
