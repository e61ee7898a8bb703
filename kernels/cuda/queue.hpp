// The queue of items that a step is for the CUDA kernels.
#pragma once

#include <vector>

#include "kernels/cuda/step.hpp"

namespace longspan::kernels::cuda {

// 3 where three halves at a time are faster for a kernel that can take them, else 2: head_dim 64, and lists that are runs of 8 key blocks
// or more on the average. (Measured on an H100: dense 4 to 7 % faster, a window of 4,096 of 65,536 the same, single blocks less than half
// as fast.)
int halves_at_a_time(const Step& step);

// The items of a step (its spans in host memory): sections of KV heads whose keys fit the L2 cache together; in each, work in its order,
// dearest first, with its heads side by side. An item takes one Work; or, with `halves_at_a_time` = 3, up to three 64-row halves of one
// or two query blocks that follow each other and look at keys of one range: of rows 0 … 511 in blocks a, b, c, d (128 rows each) {a0 a1
// b0}, {b1 c0 c1} and {d0 d1}. Their tile lists are walked together, and a key block that both need is loaded once.
std::vector<Item> queue(const Step& step, int halves_at_a_time);

}  // namespace longspan::kernels::cuda
