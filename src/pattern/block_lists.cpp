#include <algorithm>
#include <atomic>
#include <bit>

#include "longspan/error.hpp"
#include "pattern/philox.hpp"
#include "pattern/primitives.hpp"

namespace longspan::pattern {
namespace {

// Lists that this thread used lately. Row blocks that are worked on together fall into different slots.
class ListCache {
 public:
  struct Key {
    uint64_t owner = 0;  // 0: nobody
    int64_t document = 0, row_block = 0;
    int head = 0;
    bool operator==(const Key&) const = default;
  };
  struct Slot {
    Key key;
    Intervals blocks;
  };

  Slot& slot(const Key& key) {
    return slots_[static_cast<size_t>(key.row_block + 61 * static_cast<int64_t>(key.owner) + int64_t{17} * key.head + 7 * key.document) %
                  kSlots];
  }
  void store(Slot& slot, const Key& key, Intervals blocks) {
    held_ += static_cast<int64_t>(blocks.capacity()) - static_cast<int64_t>(slot.blocks.capacity());
    slot.blocks = std::move(blocks), slot.key = key;
    if (held_ <= kMost) return;
    for (Slot& other : slots_) {
      if (&other == &slot) continue;
      held_ -= static_cast<int64_t>(other.blocks.capacity());
      other = Slot{};
    }
  }

 private:
  static constexpr size_t kSlots = 256;
  static constexpr int64_t kMost = 1 << 20;  // intervals: 16 MiB per thread, one longer list aside
  std::array<Slot, kSlots> slots_;
  int64_t held_ = 0;
};

ListCache& cache() {
  thread_local ListCache lists;
  return lists;
}

uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Intervals drawn_blocks(int64_t candidates, int64_t count, uint64_t seed, int64_t row_block, int64_t document, int head) {
  if (candidates <= count) return candidates > 0 ? Intervals{{0, candidates}} : Intervals{};
  const PhiloxKey key = philox_key(seed);
  std::vector<int64_t> blocks;
  blocks.reserve(static_cast<size_t>(count));
  // Which blocks were drawn: short lists are searched, long ones have a hash table at most half full (probed one by one, −1: free).
  std::vector<int64_t> table(count > 32 ? std::bit_ceil(static_cast<size_t>(2 * count)) : 0, -1);
  const auto is_new = [&](int64_t block) {
    if (table.empty()) return std::find(blocks.begin(), blocks.end(), block) == blocks.end();
    size_t place = (static_cast<uint64_t>(block) * 0x9E3779B97F4A7C15ull) >> 32 & (table.size() - 1);
    while (table[place] != -1 && table[place] != block) place = (place + 1) & (table.size() - 1);
    const bool free = table[place] == -1;
    table[place] = block;
    return free;
  };
  for (uint32_t draw = 0; static_cast<int64_t>(blocks.size()) < count; ++draw) {
    const auto words =
        philox4x32({draw, static_cast<uint32_t>(row_block), static_cast<uint32_t>(document), static_cast<uint32_t>(head)}, key);
    const auto block = static_cast<int64_t>((words[0] * static_cast<uint64_t>(candidates)) >> 32);
    if (is_new(block)) blocks.push_back(block);
  }
  std::sort(blocks.begin(), blocks.end());
  Intervals set;
  set.reserve(blocks.size());
  for (int64_t block : blocks) append(set, {block, block + 1});
  return set;
}

BlockLists::BlockLists(int64_t block, PerHead per_head, std::variant<Random, Stored> origin)
    : block_(block), per_head_(per_head), origin_(std::move(origin)), id_(next_id()) {}

const Intervals& BlockLists::list(const Where& where, int64_t row_block) const {
  const int head = per_head_ == PerHead::head ? where.head : per_head_ == PerHead::kv_head ? where.kv_head : 0;
  const ListCache::Key key{id_, where.document, row_block, head};
  ListCache::Slot& slot = cache().slot(key);
  if (!(slot.key == key)) cache().store(slot, key, made(where, row_block));
  return slot.blocks;
}

Intervals BlockLists::made(const Where& where, int64_t row_block) const {
  const int head = per_head_ == PerHead::head ? where.head : per_head_ == PerHead::kv_head ? where.kv_head : 0;
  const int64_t blocks = (where.length + block_ - 1) / block_;
  if (const Random* random = std::get_if<Random>(&origin_)) {
    return drawn_blocks(random->past ? row_block + 1 : blocks, random->count, random->seed, row_block, where.document, head);
  }
  const Stored& stored = std::get<Stored>(origin_);
  const int64_t row = (*stored.first_row)[static_cast<size_t>(where.document)] + row_block;
  Intervals set;
  int64_t last = -1;
  for (int64_t block : stored.source->row(head, row)) {
    if (block <= last || block >= blocks) {
      throw Error({.code = ExitCode::input,
                   .what = "a stored block list is not an ascending list of the document's blocks",
                   .seen = "block " + std::to_string(block) + " after " + std::to_string(last),
                   .expected = "distinct blocks 0…" + std::to_string(blocks - 1) + ", ascending",
                   .from = "row block " + std::to_string(row) + ", list head " + std::to_string(head)});
    }
    append(set, {block, block + 1});
    last = block;
  }
  return set;
}

bool BlockLists::allowed(const Where& where, int64_t i, int64_t j) const { return contains(list(where, i / block_), j / block_); }

void BlockLists::keys(const Where& where, Interval rows, Interval clip, KeySets& sets) const {
  const int64_t first = rows.begin / block_, last = (rows.end - 1) / block_;
  const Interval blocks{clip.begin / block_, (clip.end - 1) / block_ + 1};
  const auto tokens = [&](const Intervals& set, Intervals& out) {
    out.reserve(set.size());
    for (const Interval& run : set) append(out, overlap({run.begin * block_, run.end * block_}, clip));
  };
  if (first == last) {
    tokens(clipped(list(where, first), blocks), sets.may);
    if (rows.length() > 1) sets.must = sets.may;
    return;
  }
  Intervals any, every;
  for (int64_t row_block = first; row_block <= last; ++row_block) {
    const Intervals& own = list(where, row_block);
    if (row_block == first) {
      every = clipped(own, blocks);
      any = every;
      continue;
    }
    const auto begin = std::partition_point(own.begin(), own.end(), [&](const Interval& run) { return run.end <= blocks.begin; });
    for (auto run = begin; run != own.end() && run->begin < blocks.end; ++run) any.push_back(overlap(*run, blocks));
    if (!every.empty()) every = intersect(every, own);
  }
  tokens(normalised(std::move(any)), sets.may);
  tokens(every, sets.must);
}

Coverage BlockLists::coverage(const Where& where, const Corner& tile) const {
  const Interval keys{tile.keys.begin / block_, (tile.keys.end - 1) / block_ + 1};
  bool any = false, every = true;
  for (int64_t row_block = tile.rows.begin / block_; row_block <= (tile.rows.end - 1) / block_; ++row_block) {
    const Intervals& own = list(where, row_block);
    const auto run = std::partition_point(own.begin(), own.end(), [&](const Interval& each) { return each.end <= keys.begin; });
    const bool touches = run != own.end() && run->begin < keys.end;
    any |= touches;
    every &= touches && run->begin <= keys.begin && run->end >= keys.end;
    if (any && !every) return Coverage::some;
  }
  return every ? Coverage::all : any ? Coverage::some : Coverage::none;
}

void BlockLists::fill(const Where& where, const Corner& tile, TileBits& bits) const {
  for (int64_t i = tile.rows.begin; i < tile.rows.end;) {
    const int64_t row_block = i / block_;
    const Intervals& own = list(where, row_block);
    RowBits row{0, 0};
    auto run = std::partition_point(own.begin(), own.end(), [&](const Interval& each) { return each.end * block_ <= tile.keys.begin; });
    for (; run != own.end() && run->begin * block_ < tile.keys.end; ++run) {
      row |= bits_in(run->begin * block_ - tile.keys.begin, run->end * block_ - tile.keys.begin);
    }
    for (const int64_t stop = std::min(tile.rows.end, (row_block + 1) * block_); i < stop; ++i) {
      bits.rows[static_cast<size_t>(i - tile.rows.begin)] |= row;
    }
  }
}

// The mask depends on which of the tile's few squares of block × block are listed, and on where their borders lie.
void BlockLists::sign(const Where& where, const Corner& tile, Signature& signature) const {
  const int64_t first_row = tile.rows.begin / block_, last_row = (tile.rows.end - 1) / block_;
  const int64_t first_key = tile.keys.begin / block_, last_key = (tile.keys.end - 1) / block_;
  if ((last_row - first_row + 1) * (last_key - first_key + 1) > 64) {
    signature.known = false;
    return;
  }
  uint64_t squares = 0;
  for (int64_t row_block = first_row; row_block <= last_row; ++row_block) {
    const Intervals& own = list(where, row_block);
    for (int64_t key_block = first_key; key_block <= last_key; ++key_block) squares = squares << 1 | (contains(own, key_block) ? 1 : 0);
  }
  signature.add(squares);
  signature.add_signed(tile.rows.begin % block_), signature.add_signed(tile.keys.begin % block_);
}

}  // namespace longspan::pattern
