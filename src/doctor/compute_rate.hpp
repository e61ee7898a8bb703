// How fast this rank's CPUs attend.
#pragma once

#include "kernels/cpu/thread_pool.hpp"
#include "longspan/element_type.hpp"

namespace longspan::doctor {

// Seconds that the whole rank takes for one 64×64 quarter of a tile and one query head, forward: 4·64·64·head_dim FLOP.
struct ComputeRate {
  double full = 0;     // in runs of full tiles
  double partial = 0;  // in tiles with a band mask
};
// Takes about `seconds` for each of the two, a few MB of memory, and all threads of the pool.
ComputeRate compute_rate(ElementType type, int head_dim, kernels::cpu::ThreadPool& threads, double seconds = 0.1);

}  // namespace longspan::doctor
