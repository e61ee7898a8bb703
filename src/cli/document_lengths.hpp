// How --documents names documents: a list of lengths, or a rule that fills any number of tokens.
//   1000,24,0,7             these documents; the token count is their sum
//   fixed:4096              documents of 4,096 tokens, the last one shorter if need be
//   lognormal:2000,1.2      lengths drawn from a log-normal distribution: mean 2,000 tokens, sigma 1.2 of the logarithm
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.hpp"
#include "longspan/shape.hpp"

namespace longspan::cli {

// Documents from the options --documents and --tokens (both may be absent: then there is a problem). Lengths are drawn by Philox with
// `seed`, one document after another, the same everywhere. Throws Error(usage).
Documents documents_from(const Settings& settings, uint64_t seed);

}  // namespace longspan::cli
