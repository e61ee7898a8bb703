#include "bench/kernel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>

#include "bench/link.hpp"
#include "bench/rows.hpp"
#include "engine/stripe_lists.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/device.hpp"
#include "longspan/error.hpp"
#include "plan/blocks.hpp"
#include "plan/tiles.hpp"

namespace longspan::bench {

namespace {

constexpr double kPeakSeconds = 0.05;

float* float_at(const kernels::Buffer& buffer) { return reinterpret_cast<float*>(buffer.get()); }

// Everything that a step over the whole sequence points to.
struct WholeStep {
  // Memory as an engine on this device has it.
  WholeStep(const pattern::Pattern& pattern, const Shape& shape, kernels::Device& device)
      : bound(pattern, shape.heads, shape.kv_heads, Documents::single(shape.tokens)), blocks(bound.documents()), heads(bound, shape) {
    SyntheticRows rows(shape);
    const int64_t unit = kernels::unit_bytes(shape.type, shape.head_dim);
    const int64_t states = shape.tokens * shape.heads, elements = states * shape.head_dim,
                  bytes = elements * static_cast<int64_t>(size_of(shape.type));
    q = device.allocate(bytes), out = device.allocate(bytes), pool = device.allocate(blocks.count() * shape.kv_heads * unit);
    rows.read_q(0, shape.tokens, q.get());
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      for (int64_t block = 0; block < blocks.count(); ++block) {
        std::byte* k = pool.get() + static_cast<int64_t>(slots.size()) * unit;
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
        some_rows_see_nothing = some_rows_see_nothing || first == static_cast<int64_t>(tiles.size());
        quarters += count.quarters * static_cast<int64_t>(bound.groups()[group].heads.size());
        for (const engine::HeadSet& set : heads.of_group[group])
          work.push_back({.q_row = block * plan::kBlock,
                          .state_row = block * plan::kBlock,
                          .rows = static_cast<int32_t>(plan::kBlock),
                          .kv_head = set.kv_head,
                          .first_tile = first,
                          .tile_count = static_cast<int64_t>(tiles.size()) - first,
                          .first_head = set.first_head,
                          .head_count = set.head_count,
                          .begins = true});
      }
    }
    masks = source.masks().masks();

    const auto floats = [&](int64_t count) { return device.allocate(count * static_cast<int64_t>(sizeof(float))); };
    m = floats(states), l = floats(states), lse = floats(states), o = floats(elements);
    step.type = shape.type;
    step.heads = shape.heads, step.kv_heads = shape.kv_heads, step.head_dim = shape.head_dim;
    step.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
    step.q = q.get(), step.pool = pool.get();
    step.slots = slots.data(), step.key_rows = key_rows.data(), step.resident = blocks.count();
    step.work = work, step.tiles = tiles, step.head_lists = heads.heads, step.masks = masks;
    step.m = float_at(m), step.l = float_at(l), step.o = float_at(o);
  }
  WholeStep(const WholeStep&) = delete;
  WholeStep& operator=(const WholeStep&) = delete;

  void run(const Shape& shape, kernels::cpu::ThreadPool& threads) {
    if (some_rows_see_nothing) kernels::cpu::clear_states(shape.tokens * shape.heads, shape.head_dim, step.m, step.l, step.o, threads);
    kernels::cpu::forward(step, threads);
    kernels::cpu::finish({shape.heads, shape.head_dim, shape.tokens, step.m, step.l, step.o, shape.type, out.get(), float_at(lse)},
                         threads);
  }

  pattern::BoundPattern bound;
  plan::Blocks blocks;
  engine::HeadSets heads;
  kernels::Buffer q, pool, out, m, l, o, lse;
  std::vector<int32_t> slots, key_rows;
  std::vector<kernels::Work> work;
  std::vector<kernels::Tile> tiles;
  std::vector<kernels::MaskBits> masks;
  int64_t quarters = 0;  // 64×64, of all heads
  bool some_rows_see_nothing = false;
  kernels::Step step;
};

}  // namespace

double KernelMeasure::rate() const { return flop / median(seconds); }
double KernelMeasure::peak() const { return median(peaks); }
double KernelMeasure::share() const {
  std::vector<double> shares;
  for (size_t time = 0; time < seconds.size(); ++time) shares.push_back(flop / seconds[time] / ((peaks[time] + peaks[time + 1]) / 2));
  return median(shares);
}

KernelMeasure measure_kernel(const pattern::Pattern& pattern, const Shape& shape, int times, kernels::cpu::ThreadPool& threads) {
  using Clock = std::chrono::steady_clock;
  if (shape.tokens % plan::kBlock != 0) internal_error("a kernel is measured on whole blocks");
  kernels::cpu::CpuDevice device(1);
  WholeStep whole(pattern, shape, device);
  KernelMeasure measure;
  measure.kernel = kernels::cpu::target_name(shape.type);
  measure.flop = 4.0 * shape.head_dim * 64 * 64 * static_cast<double>(whole.quarters);
  if (times > 1) whole.run(shape, threads);
  measure.peaks.push_back(kernels::cpu::peak_rate(shape.type, kPeakSeconds, threads));
  for (int time = 0; time < times; ++time) {
    const auto start = Clock::now();
    whole.run(shape, threads);
    measure.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    measure.peaks.push_back(kernels::cpu::peak_rate(shape.type, kPeakSeconds, threads));
  }
  return measure;
}

}  // namespace longspan::bench
