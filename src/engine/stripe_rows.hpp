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
  // Memory of `device` for stripes of these tokens (none: a stripe without own rows), and for so many queries of long stripes. Throws as
  // Device::allocate.
  StripeRows(const RowCopies& copies, kernels::Device& device, const Shape& shape, ElementType output_type,
             const std::vector<Intervals>& tokens, int64_t long_queries);

  int64_t bytes() const { return bytes_; }
  const std::byte* q_in_place(size_t stripe) const { return places_[stripe].q; }  // null: they are brought into a buffer
  bool results_in_place(size_t stripe) const { return places_[stripe].results.o != nullptr; }
  std::byte* q_buffer(size_t turn) const { return q_[turn % 2].get(); }
  std::byte* long_q() const { return q_[1].get(); }
  kernels::Results results(size_t stripe, size_t turn) const;

 private:
  struct Places {
    const std::byte* q = nullptr;
    kernels::Device::ResultRows results;  // without LSE, that goes to a buffer and nowhere else
  };
  struct ResultBuffers {
    kernels::Buffer o, lse;
  };

  ElementType output_type_;
  std::vector<Places> places_;  // by stripe
  std::array<kernels::Buffer, 2> q_;
  std::array<ResultBuffers, 2> results_;
  int64_t bytes_ = 0;
};

}  // namespace longspan::engine
