#include "bench/kernel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "bench/link.hpp"
#include "bench/rows.hpp"
#include "engine/stripe_lists.hpp"
#include "longspan/error.hpp"
#include "plan/blocks.hpp"
#include "plan/tiles.hpp"

namespace longspan::bench {

namespace {

constexpr double kPatience = 0.01;  // seconds that a wait for the device takes at a time

float* float_at(const kernels::Buffer& buffer) { return reinterpret_cast<float*>(buffer.get()); }

// Everything that a step over the whole sequence points to.
class WholeStep {
 public:
  WholeStep(const pattern::Pattern& pattern, const Shape& shape, kernels::Device& device)
      : shape_(shape),
        device_(device),
        bound_(pattern, shape.heads, shape.kv_heads, Documents::single(shape.tokens)),
        blocks_(bound_.documents()),
        heads_(bound_, shape) {
    const int64_t states = shape.tokens * shape.heads, elements = states * shape.head_dim,
                  element = static_cast<int64_t>(size_of(shape.type)), units = blocks_.count() * shape.kv_heads;
    q_ = device.allocate(elements * element), out_ = device.allocate(elements * element);
    units_ = device.allocate(units * kernels::unit_bytes(shape.type, shape.head_dim)), nonfinite_ = device.allocate(units);
    pool_ = {units_.get(), reinterpret_cast<uint8_t*>(nonfinite_.get()), units};
    SyntheticRows rows(shape);
    device.load_rows(
        shape.tokens, shape.heads * shape.head_dim * element,
        [&](int64_t first, int64_t count, std::byte* to) { return rows.read_q(first, count, to), to; }, q_.get());
    key_rows_.assign(static_cast<size_t>(blocks_.count()), static_cast<int32_t>(plan::kBlock));
    std::vector<int32_t> slots(static_cast<size_t>(units));  // [blocks][kv_heads]
    std::iota(slots.begin(), slots.end(), 0);
    device.load_units(
        {.type = shape.type, .head_dim = shape.head_dim, .kv_heads = shape.kv_heads, .rows = key_rows_, .slots = slots},
        [&](int64_t first, int64_t count, std::byte* k, std::byte* v) {
          rows.read_k(first, count, 0, shape.kv_heads, k);
          rows.read_v(first, count, 0, shape.kv_heads, v);
          return kernels::KeyRows{k, v};
        },
        pool_);
    for (int32_t head = 0; head < shape.kv_heads; ++head)  // [kv_heads][blocks]
      for (int64_t block = 0; block < blocks_.count(); ++block) slots_.push_back(static_cast<int32_t>(block) * shape.kv_heads + head);

    make_lists();
    const auto floats = [&](int64_t count) { return device.allocate(count * static_cast<int64_t>(sizeof(float))); };
    m_ = floats(states), l_ = floats(states), lse_ = floats(states), o_ = floats(elements);
    step_.type = shape.type;
    step_.heads = shape.heads, step_.kv_heads = shape.kv_heads, step_.head_dim = shape.head_dim;
    step_.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
    step_.q = q_.get(), step_.pool = pool_.units;
    step_.slots = slots_.data(), step_.key_rows = key_rows_.data(), step_.resident = blocks_.count();
    step_.work = work_, step_.tiles = tiles_, step_.head_lists = heads_.heads, step_.masks = masks_;
    step_.m = float_at(m_), step_.l = float_at(l_), step_.o = float_at(o_);
  }
  WholeStep(const WholeStep&) = delete;
  WholeStep& operator=(const WholeStep&) = delete;

  // As the engine does it.
  void run() {
    if (some_rows_see_nothing_) {
      device_.clear_states(shape_.tokens * shape_.heads, shape_.head_dim, step_.m, step_.l, step_.o);
      if (device_.finishes_in_steps()) finish();
    }
    device_.start(step_, shape_.tokens, pool_, {shape_.type, out_.get(), float_at(lse_)});
    while (!device_.wait_for(kPatience)) {
    }
    if (!device_.finishes_in_steps()) finish();
  }
  double flop() const { return 4.0 * shape_.head_dim * 64 * 64 * static_cast<double>(quarters_); }

 private:
  void make_lists() {
    plan::TileLists source(bound_, blocks_);
    for (size_t group = 0; group < bound_.groups().size(); ++group) {
      for (int64_t block = 0; block < blocks_.count(); ++block) {
        const auto first = static_cast<int64_t>(tiles_.size());
        const plan::TileCount count = source.append(static_cast<int>(group), block, {0, blocks_.count()}, tiles_);
        const int64_t here = static_cast<int64_t>(tiles_.size()) - first;
        some_rows_see_nothing_ = some_rows_see_nothing_ || here == 0;
        quarters_ += count.quarters * static_cast<int64_t>(bound_.groups()[group].heads.size());
        if (here == 0) continue;
        for (const engine::HeadSet& set : heads_.of_group[group])
          work_.push_back({.q_row = block * plan::kBlock,
                           .state_row = block * plan::kBlock,
                           .rows = static_cast<int32_t>(plan::kBlock),
                           .kv_head = set.kv_head,
                           .first_tile = first,
                           .tile_count = here,
                           .first_head = set.first_head,
                           .head_count = set.head_count,
                           .begins = true,
                           .ends = device_.finishes_in_steps()});
      }
    }
    std::stable_sort(work_.begin(), work_.end(),
                     [](const kernels::Work& a, const kernels::Work& b) { return a.tile_count > b.tile_count; });
    masks_ = source.masks().masks();
  }

  void finish() {
    device_.finish({shape_.heads, shape_.head_dim, shape_.tokens, step_.m, step_.l, step_.o, shape_.type, out_.get(), float_at(lse_)});
  }

  Shape shape_;
  kernels::Device& device_;
  pattern::BoundPattern bound_;
  plan::Blocks blocks_;
  engine::HeadSets heads_;
  kernels::Buffer q_, units_, nonfinite_, out_, m_, l_, o_, lse_;
  kernels::Pool pool_;
  std::vector<int32_t> slots_, key_rows_;
  std::vector<kernels::Work> work_;
  std::vector<kernels::Tile> tiles_;
  std::vector<kernels::MaskBits> masks_;
  int64_t quarters_ = 0;  // 64×64, of all heads
  bool some_rows_see_nothing_ = false;
  kernels::Step step_;
};

}  // namespace

double KernelMeasure::rate() const { return flop / median(seconds); }
double KernelMeasure::peak() const { return median(peaks); }
double KernelMeasure::share() const {
  std::vector<double> shares;
  for (size_t time = 0; time < seconds.size(); ++time) shares.push_back(flop / seconds[time] / ((peaks[time] + peaks[time + 1]) / 2));
  return median(shares);
}

KernelMeasure measure_kernel(const pattern::Pattern& pattern, const Shape& shape, int times, kernels::Device& device,
                             const std::function<double()>& peak) {
  using Clock = std::chrono::steady_clock;
  if (shape.tokens % plan::kBlock != 0) internal_error("a kernel is measured on whole blocks");
  WholeStep whole(pattern, shape, device);
  KernelMeasure measure;
  measure.flop = whole.flop();
  if (times > 1) whole.run();
  measure.peaks.push_back(peak());
  for (int time = 0; time < times; ++time) {
    if (device.finishes_in_steps()) whole.run();  // the peak has left a GPU's caches and page tables cold
    const auto start = Clock::now();
    whole.run();
    measure.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    measure.peaks.push_back(peak());
  }
  return measure;
}

}  // namespace longspan::bench
