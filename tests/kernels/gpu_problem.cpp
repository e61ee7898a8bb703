#include "gpu_problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/reference/reference.hpp"

namespace longspan::kernels {

Device* test_gpu() {
  static const std::unique_ptr<Device> device = [] {
    const Gpus gpus = find_gpus();
    return gpus.usable.empty() ? nullptr : open_gpu(gpus.usable.front());
  }();
  return device.get();
}

std::string why_no_gpu() { return find_gpus().why_none; }

GpuProblem::GpuProblem(const Problem& problem)
    : problem_(problem), device_(*test_gpu()), result_type_(problem.options.type), slots_(problem.slots) {
  const auto size = [](const auto& array) { return static_cast<int64_t>(array.size()); };
  q_ = device_.allocate(size(problem.q));
  device_.upload(problem.q.data(), size(problem.q), q_.get());
  std::vector<std::byte> pool = problem.pool;
  const int64_t unit = unit_bytes(problem.options.type, problem.options.head_dim), row = unit / (2 * kTile);
  for (int kv = 0; kv < problem.options.kv_heads; ++kv) {
    for (int64_t block = 0; block < problem.resident(); ++block) {
      const int slot = problem.slots[static_cast<size_t>(kv * problem.resident() + block)];
      if (slot < 0) continue;
      const int64_t keys = problem.key_rows[static_cast<size_t>(block)];
      for (int64_t tensor = 0; tensor < 2; ++tensor)
        std::memset(pool.data() + slot * unit + (tensor * kTile + keys) * row, 0, static_cast<size_t>((kTile - keys) * row));
    }
  }
  if (in_rows_ && device_.attends_rows(problem.options.type, problem.options.head_dim, problem.options.scale)) make_rows(pool);
  units_ = device_.allocate(size(pool));
  device_.upload(pool.data(), size(pool), units_.get());
  pool_ = {units_.get(), nullptr, size(pool) / unit};
  flags_ = device_.allocate(pool_.slots);
  pool_.nonfinite = reinterpret_cast<uint8_t*>(flags_.get());
  std::vector<int32_t> used;
  std::copy_if(problem.slots.begin(), problem.slots.end(), std::back_inserter(used), [](int32_t slot) { return slot >= 0; });
  device_.units_arrived(pool_, used, problem.options.type, problem.options.head_dim);
  const int64_t states = problem.rows * problem.heads, values = states * problem.options.head_dim;
  m_ = device_.allocate(states * 4), l_ = device_.allocate(states * 4), o_ = device_.allocate(values * 4);
  out_ = device_.allocate(values * 4), lse_ = device_.allocate(states * 4);
  set_states(problem.empty_states());
  poison_results(problem.options.type);
}

void GpuProblem::make_rows(std::vector<std::byte>& pool) {
  const ProblemOptions& options = problem_.options;
  const int64_t unit = unit_bytes(options.type, options.head_dim), row = unit / (2 * kTile);
  rows_.rows = 72;
  std::vector<std::byte> k(static_cast<size_t>(rows_.rows * options.kv_heads * row)), v(k.size());
  for (int64_t block = problem_.resident() - 1; block >= 0; --block) {
    if (block % 3 == 1) continue;
    const int64_t first = rows_.rows, keys = problem_.key_rows[static_cast<size_t>(block)];
    rows_.rows += keys + (keys < kTile ? 3 : 0);
    k.resize(static_cast<size_t>(rows_.rows * options.kv_heads * row), std::byte{0xff}), v.resize(k.size(), std::byte{0xff});
    for (int kv = 0; kv < options.kv_heads; ++kv) {
      int32_t& slot = slots_[static_cast<size_t>(kv * problem_.resident() + block)];
      std::byte* from = pool.data() + slot * unit;
      for (int64_t key = 0; key < keys; ++key) {
        const int64_t to = ((first + key) * options.kv_heads + kv) * row;
        std::memcpy(k.data() + to, from + key * row, static_cast<size_t>(row));
        std::memcpy(v.data() + to, from + (kTile + key) * row, static_cast<size_t>(row));
      }
      std::memset(from, 0xff, static_cast<size_t>(unit));
      slot = KeysInRows::slot(first);
    }
  }
  const auto bytes = static_cast<int64_t>(k.size());
  k_rows_ = device_.allocate(bytes), v_rows_ = device_.allocate(bytes);
  row_flags_ = device_.allocate((rows_.rows + kTile - 1) / kTile * options.kv_heads);
  device_.upload(k.data(), bytes, k_rows_.get());
  device_.upload(v.data(), bytes, v_rows_.get());
  rows_.k = k_rows_.get(), rows_.v = v_rows_.get(), rows_.nonfinite = reinterpret_cast<uint8_t*>(row_flags_.get());
  std::vector<int32_t> parts(static_cast<size_t>((rows_.rows + kTile - 1) / kTile));
  std::iota(parts.begin(), parts.end(), 0);
  const int64_t check = device_.start_checking(rows_, options.type, options.kv_heads, options.head_dim, parts);
  while (!device_.is_loaded(check)) continue;
}

void GpuProblem::set_states(const States& states) {
  device_.upload(states.m.data(), static_cast<int64_t>(states.m.size()) * 4, m_.get());
  device_.upload(states.l.data(), static_cast<int64_t>(states.l.size()) * 4, l_.get());
  device_.upload(states.o.data(), static_cast<int64_t>(states.o.size()) * 4, o_.get());
}

States GpuProblem::states() const {
  States states = problem_.empty_states();
  device_.download(m_.get(), static_cast<int64_t>(states.m.size()) * 4, states.m.data());
  device_.download(l_.get(), static_cast<int64_t>(states.l.size()) * 4, states.l.data());
  device_.download(o_.get(), static_cast<int64_t>(states.o.size()) * 4, states.o.data());
  return states;
}

void GpuProblem::poison_results(ElementType type) {
  result_type_ = type;
  const int64_t states = problem_.rows * problem_.heads;
  const std::vector<uint8_t> ones(static_cast<size_t>(states * problem_.options.head_dim * 4), 0xff);
  device_.upload(ones.data(), states * problem_.options.head_dim * 4, out_.get());
  device_.upload(ones.data(), states * 4, lse_.get());
}

Output GpuProblem::results() const {
  const int64_t states = problem_.rows * problem_.heads, values = states * problem_.options.head_dim;
  Output output{result_type_, std::vector<std::byte>(static_cast<size_t>(values) * size_of(result_type_)),
                std::vector<float>(static_cast<size_t>(states))};
  device_.download(out_.get(), static_cast<int64_t>(output.o.size()), output.o.data());
  device_.download(lse_.get(), states * 4, output.lse.data());
  return output;
}

Output GpuProblem::finished(ElementType type) {
  poison_results(type);
  device_.finish({.heads = problem_.heads,
                  .head_dim = problem_.options.head_dim,
                  .rows = problem_.rows,
                  .m = reinterpret_cast<const float*>(m_.get()),
                  .l = reinterpret_cast<const float*>(l_.get()),
                  .o = reinterpret_cast<const float*>(o_.get()),
                  .output_type = type,
                  .out = out_.get(),
                  .lse = reinterpret_cast<float*>(lse_.get())});
  return results();
}

void GpuProblem::run(bool begins, bool ends) {
  std::vector<Work> work = problem_.work;
  for (Work& item : work) item.begins = begins, item.ends = ends;
  run(work, problem_.tiles);
}

Step GpuProblem::step_of(const std::vector<Work>& work, const std::vector<Tile>& tiles) {
  States none;
  Step step = problem_.step(none);
  step.work = work, step.tiles = tiles;
  step.q = q_.get(), step.pool = units_.get();
  step.slots = slots_.data(), step.in_rows = rows_;
  step.m = reinterpret_cast<float*>(m_.get());
  step.l = reinterpret_cast<float*>(l_.get());
  step.o = reinterpret_cast<float*>(o_.get());
  return step;
}

void GpuProblem::prepare(const std::vector<Work>& work, const std::vector<Tile>& tiles) { device_.prepare(step_of(work, tiles)); }

void GpuProblem::run(const std::vector<Work>& work, const std::vector<Tile>& tiles) {
  device_.start(step_of(work, tiles), problem_.rows, pool_, {result_type_, out_.get(), reinterpret_cast<float*>(lse_.get())});
  while (!device_.wait_for(0.01)) {
  }
}

States run_on_gpu(const Problem& problem) {
  GpuProblem gpu(problem);
  gpu.run();
  return gpu.states();
}

namespace {

double unit_in_last_place(ElementType type, double value) {
  const int digits = type == ElementType::float32 ? 24 : type == ElementType::float16 ? 11 : 8;
  const int lowest = type == ElementType::float16 ? -24 : type == ElementType::float32 ? -149 : -133;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, value == 0 ? lowest : std::max(exponent - digits, lowest));
}

float rounded(ElementType type, float value) {
  store_element(&value, type, 0, value);
  return load_element(&value, type, 0);
}

}  // namespace

void expect_right_on_gpu(const Problem& problem, const Output& output) {
  const auto dim = static_cast<size_t>(problem.options.head_dim);
  const ElementType type = problem.options.type;
  std::vector<double> expected(output.lse.size() * dim), lse(output.lse.size());
  double allowed_error = 0;
  std::vector<float> q(dim), keys, values, narrow(dim);
  for (const Work& item : problem.work) {
    for (int row = 0; row < item.rows; ++row) {
      keys.clear(), values.clear();
      problem.for_each_key(item, row, [&](int64_t block, int key) {
        for (int d = 0; d < problem.options.head_dim; ++d) {
          keys.push_back(load_element(problem.pool.data(), type, problem.key_element(item.kv_head, block, key, d)));
          values.push_back(load_element(problem.pool.data(), type, problem.value_element(item.kv_head, block, key, d)));
        }
      });
      for (int h = 0; h < item.head_count; ++h) {
        const auto head = static_cast<size_t>(problem.head_lists[static_cast<size_t>(item.first_head + h)]);
        const size_t query = static_cast<size_t>(item.q_row + row) * static_cast<size_t>(problem.heads) + head;
        // Outputs are compared where they lie: with the rows of Q where items end, with those of the states otherwise.
        const size_t state = static_cast<size_t>(item.state_row + row) * static_cast<size_t>(problem.heads) + head;
        for (size_t d = 0; d < dim; ++d) q[d] = load_element(problem.q.data(), type, query * dim + d);
        lse[state] =
            reference::attend_row<double>(q, keys, values, double{problem.options.scale}, std::span(expected).subspan(state * dim, dim));
        reference::attend_row_rounded(q, keys, values, problem.options.scale, type, narrow);
        for (size_t d = 0; d < dim; ++d)
          allowed_error = std::max(allowed_error, std::abs(rounded(output.type, narrow[d]) - expected[state * dim + d]));
      }
    }
  }
  for (size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(lse[i]))
      ASSERT_EQ(output.lse[i], lse[i]) << "state " << i;
    else
      ASSERT_NEAR(output.lse[i], lse[i], 1e-5 * (1 + std::abs(lse[i]))) << "state " << i;
  }
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(output.at(i), expected[i], 2 * allowed_error + unit_in_last_place(output.type, expected[i]))
        << "state " << i / dim << " element " << i % dim;
}

}  // namespace longspan::kernels
