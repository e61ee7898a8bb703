#include "problem.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string_view>

#include "kernels/reference/reference.hpp"

namespace longspan::kernels {

bool is_allowed(const Tile& tile, std::span<const MaskBits> masks, int row, int key) {
  switch (tile.form) {
    case Tile::Form::full:
      return true;
    case Tile::Form::band:
      return tile.band.lo <= row - key && row - key <= tile.band.hi;
    case Tile::Form::subtiles:
      return tile.subtiles >> (8 * (row / 16) + key / 16) & 1;
    case Tile::Form::bits:
      return masks[static_cast<size_t>(tile.mask)].words[static_cast<size_t>(row) * 2 + static_cast<size_t>(key) / 64] >> (key % 64) & 1;
  }
  return false;
}

bool States::operator==(const States& other) const {
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  return same(m, other.m) && same(l, other.l) && same(o, other.o);
}

Problem::Problem(const ProblemOptions& given)
    : options(given), heads(given.kv_heads * given.group), key_rows(given.key_rows.begin(), given.key_rows.end()) {
  std::mt19937 random(options.seed);
  std::normal_distribution<float> normal;
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const size_t size = size_of(options.type);
  const int head_dim = options.head_dim;

  rows = std::accumulate(options.query_rows.begin(), options.query_rows.end(), int64_t{0});
  q.resize(static_cast<size_t>(rows) * heads * head_dim * size);
  for (size_t i = 0; i < q.size() / size; ++i) set(q, i, options.q_size * normal(random));

  // Twice as many slots as units, at random places.
  const auto units = static_cast<size_t>(resident() * options.kv_heads);
  std::vector<int32_t> places(2 * units);
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), random);
  slots.assign(places.begin(), places.begin() + static_cast<int64_t>(units));
  pool.resize(places.size() * static_cast<size_t>(unit_bytes(options.type, head_dim)));
  for (size_t i = 0; i < pool.size() / size; ++i) set(pool, i, std::numeric_limits<float>::quiet_NaN());
  for (int kv = 0; kv < options.kv_heads; ++kv) {
    for (int64_t block = 0; block < resident(); ++block) {
      for (int key = 0; key < key_rows[static_cast<size_t>(block)]; ++key) {
        for (int d = 0; d < head_dim; ++d) {
          set(pool, key_element(kv, block, key, d), options.k_size * normal(random));
          set(pool, value_element(kv, block, key, d), normal(random));
        }
      }
    }
  }

  const auto random_tile = [&](Tile::Form form, int64_t block) {
    Tile tile = Tile::full_run(static_cast<int32_t>(block), 1);
    tile.form = form;
    if (form == Tile::Form::band) {
      const int middle = static_cast<int>(below(200)) - 100, half = static_cast<int>(below(90));
      tile.band = {middle - half, middle + half};
      if (below(3) == 0) tile.band = {0, std::numeric_limits<int32_t>::max()};
    } else if (form == Tile::Form::subtiles) {
      tile.subtiles = (uint64_t{random()} << 32 | random()) & (uint64_t{random()} << 32 | random());
    } else if (form == Tile::Form::bits) {
      tile.mask = static_cast<int64_t>(masks.size());
      MaskBits mask;
      for (uint64_t& word : mask.words)
        word = below(4) == 0 ? 0 : (uint64_t{random()} << 32 | random()) & (uint64_t{random()} << 32 | random());
      if (below(2))  // an empty quarter
        for (size_t row = 64; row < kTile; ++row) mask.words[2 * row] = 0;
      masks.push_back(mask);
    }
    tile.quarters = 0;
    for (int row = 0; row < kTile; ++row)
      for (int key = 0; key < kTile; ++key)
        if (is_allowed(tile, masks, row, key)) tile.quarters |= static_cast<uint8_t>(1 << (2 * (row / 64) + key / 64));
    return tile;
  };

  int64_t q_row = 0;
  for (int block_rows : options.query_rows) {
    for (int kv = 0; kv < options.kv_heads; ++kv) {
      // The group's heads in one item, or shared out over two with lists of their own.
      std::vector<int32_t> group(static_cast<size_t>(options.group));
      std::iota(group.begin(), group.end(), kv * options.group);
      std::shuffle(group.begin(), group.end(), random);
      const int64_t cut = below(2) ? options.group : below(options.group + 1);
      for (auto [begin, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, int64_t{options.group}}}) {
        if (begin == end) continue;
        Work item;
        item.q_row = q_row;
        item.state_row = rows - q_row - block_rows;
        item.rows = block_rows;
        item.kv_head = kv;
        item.first_head = static_cast<int32_t>(head_lists.size());
        item.head_count = static_cast<int32_t>(end - begin);
        head_lists.insert(head_lists.end(), group.begin() + begin, group.begin() + end);
        std::vector<Tile> list;
        for (int64_t key = 0; key < resident(); ++key) {
          if (resident() > 2 && below(5) == 0) continue;
          const Tile tile = random_tile(options.forms[static_cast<size_t>(below(static_cast<int64_t>(options.forms.size())))], key);
          const bool joins =
              tile.form == Tile::Form::full && !list.empty() && list.back().form == tile.form && list.back().key + list.back().count == key;
          if (joins)
            ++list.back().count;
          else
            list.push_back(tile);
        }
        std::shuffle(list.begin(), list.end(), random);
        item.first_tile = static_cast<int64_t>(tiles.size());
        item.tile_count = static_cast<int64_t>(list.size());
        tiles.insert(tiles.end(), list.begin(), list.end());
        work.push_back(item);
      }
    }
    q_row += block_rows;
  }
}

size_t Problem::key_element(int kv_head, int64_t block, int key, int d) const {
  const auto slot = static_cast<size_t>(slots[static_cast<size_t>(kv_head * resident() + block)]);
  return (slot * 2 * kTile + static_cast<size_t>(key)) * static_cast<size_t>(options.head_dim) + static_cast<size_t>(d);
}

Step Problem::step(States& states) const {
  Step step;
  step.type = options.type;
  step.heads = heads, step.kv_heads = options.kv_heads, step.head_dim = options.head_dim;
  step.scale = options.scale;
  step.q = q.data(), step.pool = pool.data();
  step.slots = slots.data(), step.key_rows = key_rows.data(), step.resident = resident();
  step.work = work, step.tiles = tiles, step.head_lists = head_lists, step.masks = masks;
  step.m = states.m.data(), step.l = states.l.data(), step.o = states.o.data();
  return step;
}

States Problem::empty_states() const {
  const size_t count = static_cast<size_t>(rows) * heads;
  constexpr float kDirt = 3;
  States states{std::vector(count, kDirt), std::vector(count, kDirt), std::vector(count * options.head_dim, kDirt)};
  cpu::ThreadPool threads(1);
  cpu::clear_states(static_cast<int64_t>(count), options.head_dim, states.m.data(), states.l.data(), states.o.data(), threads);
  return states;
}

States Problem::run(int threads) const {
  States states = empty_states();
  cpu::ThreadPool pool_of_threads(threads);
  cpu::forward(step(states), pool_of_threads);
  return states;
}

Output finished(const Problem& problem, const States& states, ElementType type, int threads) {
  Output output{type, std::vector<std::byte>(states.o.size() * size_of(type), std::byte{0xff}), std::vector<float>(states.l.size(), NAN)};
  cpu::ThreadPool pool(threads);
  cpu::finish({.heads = problem.heads,
               .head_dim = problem.options.head_dim,
               .rows = problem.rows,
               .m = states.m.data(),
               .l = states.l.data(),
               .o = states.o.data(),
               .output_type = type,
               .out = output.o.data(),
               .lse = output.lse.data()},
              pool);
  return output;
}

namespace {

// One unit in the last place of `type` at |value|.
double ulp(ElementType type, double value) {
  const int digits = type == ElementType::float32 ? 24 : type == ElementType::float16 ? 11 : 8;
  const int lowest = type == ElementType::float16 ? -24 : type == ElementType::float32 ? -149 : -133;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, value == 0 ? lowest : std::max(exponent - digits, lowest));
}

}  // namespace

void expect_right(const Problem& problem, const States& states, ElementType output_type) {
  const int head_dim = problem.options.head_dim;
  const auto dim = static_cast<size_t>(head_dim);
  const Output output = finished(problem, states, output_type);
  std::vector<double> expected(states.o.size());
  std::vector<double> lse(states.l.size());
  const bool rounded_weights = std::string_view(cpu::target_name(problem.options.type)) == "AVX512_BF16";
  double allowed_error = 0;
  std::vector<float> q(dim), keys, values, narrow(dim);
  for (const Work& item : problem.work) {
    for (int row = 0; row < item.rows; ++row) {
      keys.clear(), values.clear();
      problem.for_each_key(item, row, [&](int64_t block, int key) {
        for (int d = 0; d < head_dim; ++d) {
          keys.push_back(load_element(problem.pool.data(), problem.options.type, problem.key_element(item.kv_head, block, key, d)));
          values.push_back(load_element(problem.pool.data(), problem.options.type, problem.value_element(item.kv_head, block, key, d)));
        }
      });
      for (int h = 0; h < item.head_count; ++h) {
        const auto head = static_cast<size_t>(problem.head_lists[static_cast<size_t>(item.first_head) + static_cast<size_t>(h)]);
        const size_t query = static_cast<size_t>(item.q_row + row) * problem.heads + head;
        const size_t state = static_cast<size_t>(item.state_row + row) * problem.heads + head;
        for (size_t d = 0; d < dim; ++d) q[d] = load_element(problem.q.data(), problem.options.type, query * dim + d);
        const std::span<double> o = std::span(expected).subspan(state * dim, dim);
        lse[state] = reference::attend_row<double>(q, keys, values, double{problem.options.scale}, o);
        if (rounded_weights)
          reference::attend_row_rounded(q, keys, values, problem.options.scale, problem.options.type, narrow);
        else
          reference::attend_row<float>(q, keys, values, problem.options.scale, narrow);
        for (size_t d = 0; d < dim; ++d) {
          unsigned char rounded[4];
          store_element(rounded, output_type, 0, narrow[d]);
          allowed_error = std::max(allowed_error, std::abs(load_element(rounded, output_type, 0) - o[d]));
        }
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
    ASSERT_NEAR(output.at(i), expected[i], 2 * allowed_error + ulp(output_type, expected[i]))
        << "state " << i / dim << " element " << i % dim;
}

}  // namespace longspan::kernels
