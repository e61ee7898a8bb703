// What a GPU device does around the steps, against the CPU device. Skips where there is no GPU, or no CUDA in the build.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "gpu_problem.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"

namespace longspan::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class GpuDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test_gpu() == nullptr) GTEST_SKIP() << why_no_gpu();
  }
};

std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Little that lies in pinned memory is copied by a kernel, in words; the rest by the copy engines.
TEST_F(GpuDeviceTest, PinnedBytesOfAnySizeAndPlaceAreCopied) {
  Device& gpu = *test_gpu();
  constexpr int64_t kMost = (int64_t{16} << 20) + 20;
  const Buffer pinned = gpu.allocate_host(kMost + 8), memory = gpu.allocate(kMost + 8), back = gpu.allocate_host(kMost + 8);
  std::mt19937 random(7);
  for (int64_t i = 0; i < kMost + 8; ++i) pinned.get()[i] = static_cast<std::byte>(random());
  for (const int64_t bytes : {int64_t{1}, int64_t{4}, int64_t{6}, int64_t{1020}, int64_t{200'004}, kMost - 20, kMost - 16, kMost}) {
    for (const int64_t shift : {0, 2, 4}) {
      std::memset(back.get(), 0x5a, static_cast<size_t>(kMost + 8));
      gpu.upload(pinned.get() + shift, bytes, memory.get() + shift);
      gpu.download(memory.get() + shift, bytes, back.get() + shift);
      EXPECT_EQ(std::memcmp(back.get() + shift, pinned.get() + shift, static_cast<size_t>(bytes)), 0) << bytes << " at " << shift;
      EXPECT_EQ(back.get()[shift + bytes], std::byte{0x5a}) << bytes << " at " << shift;
    }
  }
}

TEST_F(GpuDeviceTest, MemoryOfAnotherGpuIsReachedByCopies) {
  const Gpus gpus = find_gpus();
  if (gpus.usable.size() < 2) GTEST_SKIP() << "there is one GPU";
  constexpr int64_t kBytes = 4096;
  const std::unique_ptr<Device> one = open_gpu(gpus.usable[0]), other = open_gpu(gpus.usable[1]);
  const Buffer pinned = one->allocate_host(2 * kBytes), memory = other->allocate(kBytes);
  EXPECT_FALSE(one->reach(memory.get()).in_kernels);
  for (int64_t i = 0; i < kBytes; ++i) pinned.get()[i] = static_cast<std::byte>(i * 7);
  one->upload(pinned.get(), kBytes, memory.get());
  one->download(memory.get(), kBytes, pinned.get() + kBytes);
  EXPECT_EQ(std::memcmp(pinned.get(), pinned.get() + kBytes, kBytes), 0);
}

// m, l and o of the block's rows and heads, out of the host's copy of the array that its m begins.
std::vector<float> packed_by_hand(const StateBlock& block, const std::vector<float>& states) {
  const auto dim = static_cast<size_t>(block.head_dim), count = states.size() / (dim + 2);
  std::vector<float> m, l, o;
  for (int64_t row = block.first_row; row < block.first_row + block.rows; ++row) {
    for (int32_t head : block.head_list) {
      const auto state = static_cast<size_t>(row * block.heads + head);
      m.push_back(states[state]), l.push_back(states[count + state]);
      for (size_t d = 0; d < dim; ++d) o.push_back(states[2 * count + state * dim + d]);
    }
  }
  m.insert(m.end(), l.begin(), l.end()), m.insert(m.end(), o.begin(), o.end());
  return m;
}

// Two heads of five of three blocks, one of them packed and some of which have seen nothing: as packing and merging them one by one.
TEST(StateBlocks, AreMergedOneAfterTheOtherOnEveryDevice) {
  constexpr int kHeads = 5;
  const std::vector<int32_t> two{4, 1}, packed_heads{0, 1};
  for (const int dim : {8, 40, 256}) {
    constexpr int64_t kRows = 130, kStates = kRows * kHeads, kPacked = 2 * 128;
    std::vector<std::vector<float>> states;
    for (uint32_t block = 0; block < 2; ++block) states.push_back(random_floats(static_cast<size_t>(kStates * (dim + 2)), block));
    states.push_back(random_floats(static_cast<size_t>(kPacked * (dim + 2)), 2));
    for (std::vector<float>& of : states) {
      const auto count = static_cast<int64_t>(of.size()) / (dim + 2);
      for (int64_t state = 0; state < count; ++state) {
        float& l = of[static_cast<size_t>(count + state)];
        l = std::abs(l) + 0.1f;
        if ((state + count) % 3 == 0) of[static_cast<size_t>(state)] = -kInfinity, l = 0;
      }
    }
    cpu::CpuDevice cpu(1);
    std::vector<std::vector<float>> merged;
    std::vector<Device*> devices{&cpu};
    if (test_gpu() != nullptr) devices.push_back(test_gpu());
    for (Device* device : devices) {
      std::vector<Buffer> memory;
      std::vector<StateBlock> blocks;
      for (size_t b = 0; b < states.size(); ++b) {
        const auto bytes = static_cast<int64_t>(states[b].size() * 4), count = static_cast<int64_t>(states[b].size()) / (dim + 2);
        memory.push_back(device->allocate(bytes));
        device->upload(states[b].data(), bytes, memory.back().get());
        auto* const m = reinterpret_cast<float*>(memory.back().get());
        blocks.push_back({.heads = b < 2 ? kHeads : 2,
                          .head_dim = dim,
                          .first_row = b < 2 ? static_cast<int64_t>(b) : 0,
                          .rows = 128,
                          .head_list = b < 2 ? std::span<const int32_t>(two) : packed_heads,
                          .m = m,
                          .l = m + count,
                          .o = m + 2 * count});
      }
      // All three; the last one alone; none.
      const int64_t floats = kPacked * (dim + 2);
      const Buffer all = device->allocate(floats * 4), one = device->allocate(floats * 4), by_hand = device->allocate(2 * floats * 4);
      device->merge_blocks(std::vector<MergeBlocks>{{blocks, reinterpret_cast<float*>(all.get())},
                                                    {std::span(blocks).last(1), reinterpret_cast<float*>(one.get())}});
      device->merge_blocks({});
      auto *into = reinterpret_cast<float*>(by_hand.get()), *from = into + floats;
      for (size_t b = 0; b < 3; ++b) {
        const std::vector<float> packed = packed_by_hand(blocks[b], states[b]);
        device->upload(packed.data(), floats * 4, reinterpret_cast<std::byte*>(b == 0 ? into : from));
        if (b == 0) continue;
        device->merge({dim, kPacked, from, from + kPacked, from + 2 * kPacked, into, into + kPacked, into + 2 * kPacked});
      }
      std::vector<float> expected(static_cast<size_t>(floats)), last(expected.size());
      merged.emplace_back(expected.size());
      device->download(all.get(), floats * 4, merged.back().data());
      device->download(one.get(), floats * 4, last.data());
      device->download(by_hand.get(), floats * 4, expected.data());
      EXPECT_TRUE(merged.back() == expected) << device->name() << ", head_dim " << dim;
      EXPECT_TRUE(last == states[2]) << device->name() << ", head_dim " << dim;
      EXPECT_FALSE(merged.back() == last);
    }
    for (size_t i = 0; merged.size() > 1 && i < merged[0].size(); ++i) {
      if (std::isinf(merged[0][i]))
        ASSERT_EQ(merged[0][i], merged[1][i]) << i;
      else
        ASSERT_NEAR(merged[0][i], merged[1][i], 1e-5 * (1 + std::abs(merged[0][i]))) << i;
    }
  }
}

TEST_F(GpuDeviceTest, StatesArePackedMergedAndFinishedAsOnTheCpu) {
  Device& gpu = *test_gpu();
  cpu::CpuDevice cpu(1);
  constexpr int kHeads = 5, kDim = 40;
  constexpr int64_t kRows = 300, kStates = kRows * kHeads;
  std::vector<float> into = random_floats(kStates * (kDim + 2), 1), from = random_floats(kStates * (kDim + 2), 2);
  for (int64_t state = 0; state < kStates; ++state) {
    for (std::vector<float>* side : {&into, &from}) {
      float* l = side->data() + kStates + state;
      *l = std::abs(*l) + 0.1f;
      if ((state + (side == &from ? 3 : 0)) % 11 != 0) continue;
      (*side)[static_cast<size_t>(state)] = -kInfinity, *l = 0;  // has seen nothing
      std::fill_n(side->begin() + 2 * kStates + state * kDim, kDim, 0.0f);
    }
  }
  std::vector<std::vector<float>> packed, finished, back;
  for (Device* device : {static_cast<Device*>(&cpu), &gpu}) {
    const auto bytes = static_cast<int64_t>(into.size() * 4);
    const Buffer a = device->allocate(bytes), b = device->allocate(bytes), some = device->allocate(bytes), out = device->allocate(bytes);
    device->upload(into.data(), bytes, a.get());
    device->upload(from.data(), bytes, b.get());
    auto *to = reinterpret_cast<float*>(a.get()), *with = reinterpret_cast<float*>(b.get());
    device->merge({.head_dim = kDim,
                   .count = kStates,
                   .from_m = with,
                   .from_l = with + kStates,
                   .from_o = with + 2 * kStates,
                   .m = to,
                   .l = to + kStates,
                   .o = to + 2 * kStates});
    const std::vector<int32_t> heads{3, 0, 4};
    const StateBlock block{.heads = kHeads,
                           .head_dim = kDim,
                           .first_row = 17,
                           .rows = 128,
                           .head_list = heads,
                           .m = to,
                           .l = to + kStates,
                           .o = to + 2 * kStates};
    device->merge_blocks(std::vector<MergeBlocks>{{std::span(&block, 1), reinterpret_cast<float*>(some.get())}});
    packed.emplace_back(static_cast<size_t>(block.packed_floats()));
    device->download(some.get(), block.packed_floats() * 4, packed.back().data());
    device->finish({.heads = kHeads,
                    .head_dim = kDim,
                    .rows = kRows,
                    .m = to,
                    .l = to + kStates,
                    .o = to + 2 * kStates,
                    .output_type = ElementType::float32,
                    .out = out.get(),
                    .lse = reinterpret_cast<float*>(out.get()) + kStates * kDim});
    finished.emplace_back(static_cast<size_t>(kStates * (kDim + 1)));
    device->download(out.get(), kStates * (kDim + 1) * 4, finished.back().data());
    // Of the packed ones: they alone are written.
    device->upload(std::vector<float>(finished.back().size(), -7).data(), kStates * (kDim + 1) * 4, out.get());
    const auto* some_m = reinterpret_cast<const float*>(some.get());
    device->finish({.heads = kHeads,
                    .head_dim = kDim,
                    .rows = block.rows,
                    .m = some_m,
                    .l = some_m + block.states(),
                    .o = some_m + 2 * block.states(),
                    .output_type = ElementType::float32,
                    .out = out.get() + block.first_row * kHeads * kDim * 4,
                    .lse = reinterpret_cast<float*>(out.get()) + kStates * kDim + block.first_row * kHeads,
                    .head_list = heads});
    back.emplace_back(finished.back().size());
    device->download(out.get(), kStates * (kDim + 1) * 4, back.back().data());
    for (int64_t state = 0; state < kStates; ++state) {
      const int64_t row = state / kHeads, head = state % kHeads;
      const bool listed = row >= 17 && row < 17 + 128 && std::find(heads.begin(), heads.end(), head) != heads.end();
      const auto places = [&](int64_t d) { return static_cast<size_t>(d < kDim ? state * kDim + d : kStates * kDim + state); };
      for (int64_t d = 0; d <= kDim; ++d)
        ASSERT_EQ(back.back()[places(d)], listed ? finished.back()[places(d)] : -7) << "row " << row << " head " << head << ' ' << d;
    }
  }
  const auto expect_near = [](const std::vector<float>& a, const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      if (std::isinf(a[i]))
        ASSERT_EQ(a[i], b[i]) << i;
      else
        ASSERT_NEAR(a[i], b[i], 1e-5 * (1 + std::abs(a[i]))) << i;
    }
  };
  expect_near(packed[0], packed[1]);
  expect_near(finished[0], finished[1]);
  expect_near(back[0], back[1]);
}

TEST_F(GpuDeviceTest, RowsAndUnitsComeInAndGoOutAsOnTheCpu) {
  const Gpus gpus = find_gpus();
  const std::unique_ptr<Device> small = open_gpu(gpus.usable.front(), {.host_bytes = 1 << 18});  // many pieces
  cpu::CpuDevice cpu(1);
  for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    constexpr int kKvHeads = 3, kDim = 72;
    const std::vector<int32_t> block_rows{128, 1, 128, 77, 128, 128, 5, 128, 128};
    std::vector<int32_t> slots(block_rows.size() * kKvHeads);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>((i * 7 + 3) % slots.size());
    int64_t rows = 0;
    for (int32_t count : block_rows) rows += count;
    const size_t row = kKvHeads * kDim * size_of(type);
    std::vector<std::byte> k(static_cast<size_t>(rows) * row), v(k.size());
    const std::vector<float> values = random_floats(k.size() / size_of(type), 3);
    for (size_t i = 0; i < values.size(); ++i) store_element(k.data(), type, i, values[i]), store_element(v.data(), type, i, -values[i]);
    store_element(v.data(), type, static_cast<size_t>((130 * kKvHeads + 1) * kDim + 70), kInfinity);  // block 2, KV head 1
    const KeyBlocks blocks{.type = type, .head_dim = kDim, .kv_heads = kKvHeads, .rows = block_rows, .slots = slots};
    const auto read = [&](int64_t first, int64_t count, std::byte* to_k, std::byte* to_v) {
      std::memcpy(to_k, k.data() + static_cast<size_t>(first) * row, static_cast<size_t>(count) * row);
      std::memcpy(to_v, v.data() + static_cast<size_t>(first) * row, static_cast<size_t>(count) * row);
      return KeyRows{to_k, to_v};
    };
    std::vector<std::vector<std::byte>> units, back;
    std::vector<uint8_t> flags(slots.size()), recomputed(slots.size());
    for (Device* device : {static_cast<Device*>(&cpu), small.get()}) {
      const int64_t bytes = static_cast<int64_t>(slots.size()) * unit_bytes(type, kDim);
      const Buffer memory = device->allocate(bytes), nonfinite = device->allocate(static_cast<int64_t>(slots.size()));
      const Pool pool{memory.get(), reinterpret_cast<uint8_t*>(nonfinite.get()), static_cast<int64_t>(slots.size())};
      device->load_units(blocks, read, pool);
      units.emplace_back(static_cast<size_t>(bytes));
      device->download(memory.get(), bytes, units.back().data());
      if (device != &cpu) {
        device->download(nonfinite.get(), static_cast<int64_t>(flags.size()), flags.data());
        device->units_arrived(pool, slots, type, kDim);
        device->download(nonfinite.get(), static_cast<int64_t>(flags.size()), recomputed.data());
      }
      const Buffer q = device->allocate(static_cast<int64_t>(k.size())), lse = device->allocate(rows * kKvHeads * 4);
      device->load_rows(
          rows, static_cast<int64_t>(row), [&](int64_t first, int64_t count, std::byte* to) { return read(first, count, to, to).v; },
          q.get());
      device->upload(values.data(), rows * kKvHeads * 4, lse.get());
      back.emplace_back();
      int64_t next = 0;
      device->store_rows({type, q.get(), reinterpret_cast<float*>(lse.get())}, rows, kKvHeads, kDim, {},
                         [&](int64_t first, int64_t count, const std::byte* o, const float* l) {
                           EXPECT_EQ(first, next);
                           EXPECT_EQ(std::memcmp(l, values.data() + first * kKvHeads, static_cast<size_t>(count) * kKvHeads * 4), 0);
                           next += count;
                           back.back().insert(back.back().end(), o, o + static_cast<size_t>(count) * row);
                         });
      EXPECT_EQ(next, rows);
      EXPECT_TRUE(back.back() == v);
      if (device == &cpu) continue;
      // The same where the rows lie in pinned memory: nothing goes through the device's own.
      const Buffer pinned = device->allocate_host(3 * static_cast<int64_t>(k.size())),
                   pinned_lse = device->allocate_host(rows * kKvHeads * 4);
      EXPECT_TRUE(device->reach(pinned.get()).straight);
      EXPECT_FALSE(device->reach(pinned.get()).in_kernels);
      EXPECT_FALSE(device->reach(k.data()).straight);
      std::byte *k_there = pinned.get(), *v_there = k_there + k.size(), *o_there = v_there + v.size();
      std::memcpy(k_there, k.data(), k.size());
      std::memcpy(v_there, v.data(), v.size());
      device->upload(std::vector<std::byte>(static_cast<size_t>(bytes)).data(), bytes, memory.get());
      device->load_units(
          blocks,
          [&](int64_t first, int64_t, std::byte*, std::byte*) {
            return KeyRows{k_there + static_cast<size_t>(first) * row, v_there + static_cast<size_t>(first) * row};
          },
          pool);
      std::vector<std::byte> straight(static_cast<size_t>(bytes));
      device->download(memory.get(), bytes, straight.data());
      EXPECT_TRUE(straight == units.back());
      // And where they lie in the device's own memory, by loads that were started.
      const Buffer k_near = device->allocate(static_cast<int64_t>(k.size())), v_near = device->allocate(static_cast<int64_t>(v.size()));
      device->upload(k.data(), static_cast<int64_t>(k.size()), k_near.get());
      device->upload(v.data(), static_cast<int64_t>(v.size()), v_near.get());
      device->upload(std::vector<std::byte>(static_cast<size_t>(bytes)).data(), bytes, memory.get());
      std::vector<KeyRows> near;
      size_t at = 0;
      for (int32_t count : block_rows) near.push_back({k_near.get() + at, v_near.get() + at}), at += static_cast<size_t>(count) * row;
      int64_t load = 0;
      for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, 4}, {4, 4}, {4, near.size()}}) {
        KeyBlocks part = blocks;
        part.rows = part.rows.subspan(begin, end - begin);
        part.slots = part.slots.subspan(begin * kKvHeads, (end - begin) * kKvHeads);
        part.in_place = std::span(near).subspan(begin, end - begin);
        load = device->start_loading(part, pool);
      }
      while (!device->is_loaded(load)) std::this_thread::yield();
      const Buffer loaded = device->allocate_host(bytes);
      device->start_download(memory.get(), bytes, loaded.get());
      while (!device->is_downloaded()) std::this_thread::yield();
      EXPECT_EQ(std::memcmp(loaded.get(), units.back().data(), static_cast<size_t>(bytes)), 0);
      // And looked through there, 128 rows at a time, but for the first ones: row 130 has the ∞.
      std::vector<uint8_t> odd(static_cast<size_t>((rows + kTile - 1) / kTile) * kKvHeads, 0xff);
      const auto odd_bytes = static_cast<int64_t>(odd.size());
      const Buffer odd_there = device->allocate(odd_bytes);
      device->upload(odd.data(), odd_bytes, odd_there.get());
      std::vector<int32_t> parts(odd.size() / kKvHeads - 1);
      std::iota(parts.begin(), parts.end(), 1);
      load = device->start_checking({k_near.get(), v_near.get(), rows, reinterpret_cast<uint8_t*>(odd_there.get())}, type, kKvHeads, kDim,
                                    parts);
      while (!device->is_loaded(load)) std::this_thread::yield();
      device->download(odd_there.get(), odd_bytes, odd.data());
      for (size_t i = 0; i < odd.size(); ++i) EXPECT_EQ(odd[i], i < kKvHeads ? 0xff : i == kKvHeads + 1 ? 1 : 0) << i;
      device->upload(std::vector<std::byte>(k.size()).data(), static_cast<int64_t>(k.size()), q.get());
      device->load_rows(
          rows, static_cast<int64_t>(row), [&](int64_t first, int64_t, std::byte*) { return k_there + static_cast<size_t>(first) * row; },
          q.get());
      device->store_rows(
          {type, q.get(), reinterpret_cast<float*>(lse.get())}, rows, kKvHeads, kDim,
          [&](int64_t first, int64_t) {
            return Device::ResultRows{o_there + static_cast<size_t>(first) * row,
                                      reinterpret_cast<float*>(pinned_lse.get()) + first * kKvHeads};
          },
          [](int64_t, int64_t, const std::byte*, const float*) { FAIL() << "rows are handed over that have a place"; });
      EXPECT_EQ(std::memcmp(o_there, k.data(), k.size()), 0);
      EXPECT_EQ(std::memcmp(pinned_lse.get(), values.data(), static_cast<size_t>(rows) * kKvHeads * 4), 0);
    }
    EXPECT_TRUE(units[0] == units[1]);
    for (size_t i = 0; i < slots.size(); ++i) EXPECT_EQ(flags[static_cast<size_t>(slots[i])], i == 2 * kKvHeads + 1 ? 1 : 0) << i;
    EXPECT_EQ(flags, recomputed);
  }
}

}  // namespace
}  // namespace longspan::kernels
