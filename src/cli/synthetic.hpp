// Seeded normal random numbers by counter: any rank makes any element without the others, and the file is the same for any number of ranks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/thread_pool.hpp"
#include "longspan/element_type.hpp"

namespace longspan::cli {

enum class SyntheticDataset : uint32_t { q = 0, k = 1, v = 2 };

// Elements d … d+3 (d a multiple of 4) of a head of a token: four standard normal numbers that depend on seed, dataset, token, head and d
// alone. Philox4x32-10 gives the words, Box and Muller's transform (1958) the numbers.
void synthetic_quad(uint64_t seed, SyntheticDataset dataset, int64_t token, int head, int d, float out[4]);

// Tokens [begin, begin + count): out [count][heads][head_dim] of `type`.
void fill_synthetic(uint64_t seed, SyntheticDataset dataset, int64_t begin, int64_t count, int heads, int head_dim, ElementType type,
                    std::byte* out, kernels::cpu::ThreadPool& pool);

}  // namespace longspan::cli
