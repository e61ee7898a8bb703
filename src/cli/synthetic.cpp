#include "cli/synthetic.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "pattern/philox.hpp"

namespace longspan::cli {

void synthetic_quad(uint64_t seed, SyntheticDataset dataset, int64_t token, int head, int d, float out[4]) {
  constexpr uint32_t kQuadsPerHead = 64;  // head_dim is at most 256
  const auto words = philox4x32({static_cast<uint32_t>(head) * kQuadsPerHead + static_cast<uint32_t>(d) / 4, static_cast<uint32_t>(token),
                                 static_cast<uint32_t>(static_cast<uint64_t>(token) >> 32), static_cast<uint32_t>(dataset)},
                                philox_key(seed));
  for (size_t pair = 0; pair < 2; ++pair) {
    // 24 bits each, so that the float is exact; the first in (0, 1], since its logarithm is taken.
    const float radius = std::sqrt(-2 * std::log(static_cast<float>((words[2 * pair] >> 8) + 1) * 0x1p-24f));
    const float angle = static_cast<float>(words[2 * pair + 1] >> 8) * 0x1p-24f * 2 * std::numbers::pi_v<float>;
    out[2 * pair] = radius * std::cos(angle);
    out[2 * pair + 1] = radius * std::sin(angle);
  }
}

void fill_synthetic(uint64_t seed, SyntheticDataset dataset, int64_t begin, int64_t count, int heads, int head_dim, ElementType type,
                    std::byte* out, kernels::cpu::ThreadPool& pool) {
  constexpr int64_t kTokens = 64;  // of one item
  pool.for_each((count + kTokens - 1) / kTokens, [&](int64_t item, int) {
    for (int64_t token = item * kTokens; token < std::min((item + 1) * kTokens, count); ++token) {
      for (int head = 0; head < heads; ++head) {
        for (int d = 0; d < head_dim; d += 4) {
          float quad[4];
          synthetic_quad(seed, dataset, begin + token, head, d, quad);
          const auto at = static_cast<size_t>((token * heads + head) * head_dim + d);
          for (size_t i = 0; i < 4; ++i) store_element(out, type, at + i, quad[i]);
        }
      }
    }
  });
}

}  // namespace longspan::cli
