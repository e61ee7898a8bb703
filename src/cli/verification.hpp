// Recomputes sampled rows of a result in double precision, from the input file, reading only the keys that those rows look at.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "io/corpus.hpp"
#include "io/result.hpp"
#include "pattern/pattern.hpp"

namespace longspan::cli {

// Distinct tokens, ascending: first, last, first and last of documents (half of the sample at most, evenly spread over the documents), the
// rest drawn by Philox from all tokens. Every token when `rows` is not fewer.
std::vector<int64_t> sample_rows(const Documents& documents, int64_t rows, uint64_t seed);

struct ErrorSummary {
  double largest = 0;        // |result − reference|; infinite when one is not finite and the other differs
  double mean = 0;           // over the finite ones
  double plain_largest = 0;  // the straightforward float32 evaluation's own largest error
  double worst_share = 0;    // largest error ÷ its bound: more than 1 fails
  double bound = 0;          // the bound that belongs to worst_share
  int64_t worst_token = -1;
  int worst_head = -1;
  int64_t failures = 0;  // rows × heads beyond their bound
};

struct Verdict {
  int64_t rows = 0, heads = 0, pairs = 0, elements = 0;  // pairs: (query, key) pairs recomputed
  int64_t bytes_read = 0;                                // of keys and values
  ErrorSummary o, lse;
  bool passed() const { return o.failures == 0 && lse.failures == 0; }
};

struct VerifyOptions {
  double scale = 1;
  int threads = 1;
  bool rounded_weights = false;             // the result's device takes weights in the (16-bit) type of the inputs
  int64_t piece_bytes = int64_t{64} << 20;  // keys and values in memory at one time, as stored
};

// The bound of DESIGN section 6 for the elements of one row and head:
//   2 · max(E_row, E) + ulp      E_row: the error of a straightforward float32 evaluation of that row, rounded to the output's type
//                                (with `rounded_weights`, its weights are rounded to the input's type)
//                                E: the largest such error, not rounded, of all sampled rows (the rounding errors of sums are luck in one
//                                row) ulp: one unit in the last place of the output's type at the row's largest element
// and for its LSE 1e-5 · (1 + |LSE|). A row that looks at nothing must have O = 0 and LSE = −∞; NaN must meet NaN.
Verdict verify_rows(const io::CorpusReader& input, const io::ResultFile& output, ElementType output_type,
                    const pattern::BoundPattern& pattern, const std::vector<int64_t>& tokens, const VerifyOptions& options);

// VerifyOptions::rounded_weights by a result's attribute `device` and the type of its input: GPUs' matrix units take weights in 16-bit
// types, of CPUs' kernels only the dot product of AVX-512 BF16 does.
bool rounds_weights(std::string_view device, ElementType type);

// One unit in the last place of `type` at |value| (the spacing of its numbers there).
double unit_in_last_place(double value, ElementType type);

}  // namespace longspan::cli
