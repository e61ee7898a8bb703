#include "bench/kernel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>

#include "bench/link.hpp"
#include "bench/rows.hpp"
#include "engine/stripe_lists.hpp"
#include "kernels/cpu/attention.hpp"
#include "longspan/error.hpp"
#include "plan/blocks.hpp"
#include "plan/tiles.hpp"

namespace longspan::bench {

namespace {

constexpr double kPeakSeconds = 0.15;

// Everything that a step over the whole sequence points to.
struct WholeStep {
  WholeStep(const pattern::Pattern& pattern, const Shape& shape)
      : bound(pattern, shape.heads, shape.kv_heads, Documents::single(shape.tokens)), blocks(bound.documents()), heads(bound, shape) {
    SyntheticRows rows(shape);
    const int64_t unit = kernels::unit_bytes(shape.type, shape.head_dim);
    q.resize(static_cast<size_t>(shape.tokens * shape.heads * shape.head_dim) * size_of(shape.type));
    pool.resize(static_cast<size_t>(blocks.count() * shape.kv_heads * unit));
    rows.read_q(0, shape.tokens, q.data());
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      for (int64_t block = 0; block < blocks.count(); ++block) {
        std::byte* k = pool.data() + static_cast<int64_t>(slots.size()) * unit;
        rows.read_k(block * plan::kBlock, plan::kBlock, kv_head, 1, k);
        rows.read_v(block * plan::kBlock, plan::kBlock, kv_head, 1, k + unit / 2);
        slots.push_back(static_cast<int32_t>(slots.size()));
      }
    }
    key_rows.assign(static_cast<size_t>(blocks.count()), static_cast<int32_t>(plan::kBlock));

    plan::TileLists source(bound, blocks);
    for (size_t group = 0; group < bound.groups().size(); ++group) {
      for (int64_t block = 0; block < blocks.count(); ++block) {
        const auto first = static_cast<int64_t>(tiles.size());
        const plan::TileCount count = source.append(static_cast<int>(group), block, {0, blocks.count()}, tiles);
        quarters += count.quarters * static_cast<int64_t>(bound.groups()[group].heads.size());
        for (const engine::HeadSet& set : heads.of_group[group])
          work.push_back({.q_row = block * plan::kBlock,
                          .state_row = block * plan::kBlock,
                          .rows = static_cast<int32_t>(plan::kBlock),
                          .kv_head = set.kv_head,
                          .first_tile = first,
                          .tile_count = static_cast<int64_t>(tiles.size()) - first,
                          .first_head = set.first_head,
                          .head_count = set.head_count});
      }
    }
    masks = source.masks().masks();

    const auto states = static_cast<size_t>(shape.tokens * shape.heads);
    m.resize(states), l.resize(states), lse.resize(states), o.resize(states * static_cast<size_t>(shape.head_dim)), out.resize(q.size());
    step.type = shape.type;
    step.heads = shape.heads, step.kv_heads = shape.kv_heads, step.head_dim = shape.head_dim;
    step.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
    step.q = q.data(), step.pool = pool.data();
    step.slots = slots.data(), step.key_rows = key_rows.data(), step.resident = blocks.count();
    step.work = work, step.tiles = tiles, step.head_lists = heads.heads, step.masks = masks;
    step.m = m.data(), step.l = l.data(), step.o = o.data();
  }
  WholeStep(const WholeStep&) = delete;
  WholeStep& operator=(const WholeStep&) = delete;

  void run(const Shape& shape, kernels::cpu::ThreadPool& threads) {
    kernels::cpu::clear_states(static_cast<int64_t>(m.size()), shape.head_dim, m.data(), l.data(), o.data(), threads);
    kernels::cpu::forward(step, threads);
    kernels::cpu::finish({shape.heads, shape.head_dim, shape.tokens, m.data(), l.data(), o.data(), shape.type, out.data(), lse.data()},
                         threads);
  }

  pattern::BoundPattern bound;
  plan::Blocks blocks;
  engine::HeadSets heads;
  std::vector<std::byte> q, pool, out;
  std::vector<int32_t> slots, key_rows;
  std::vector<kernels::Work> work;
  std::vector<kernels::Tile> tiles;
  std::vector<kernels::MaskBits> masks;
  std::vector<float> m, l, o, lse;
  int64_t quarters = 0;  // 64×64, of all heads
  kernels::Step step;
};

}  // namespace

double KernelMeasure::rate() const { return flop / median(seconds); }
double KernelMeasure::share() const { return rate() / ((peak_before + peak_after) / 2); }

KernelMeasure measure_kernel(const pattern::Pattern& pattern, const Shape& shape, int times, kernels::cpu::ThreadPool& threads) {
  using Clock = std::chrono::steady_clock;
  if (shape.tokens % plan::kBlock != 0) internal_error("a kernel is measured on whole blocks");
  WholeStep whole(pattern, shape);
  KernelMeasure measure;
  measure.kernel = kernels::cpu::target_name(shape.type);
  measure.flop = 4.0 * shape.head_dim * 64 * 64 * static_cast<double>(whole.quarters);
  if (times > 1) whole.run(shape, threads);
  measure.peak_before = kernels::cpu::peak_rate(shape.type, kPeakSeconds, threads);
  for (int time = 0; time < times; ++time) {
    const auto start = Clock::now();
    whole.run(shape, threads);
    measure.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  measure.peak_after = kernels::cpu::peak_rate(shape.type, kPeakSeconds, threads);
  return measure;
}

}  // namespace longspan::bench
