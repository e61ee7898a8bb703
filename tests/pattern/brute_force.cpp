#include "brute_force.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "pattern/block_mask.hpp"

namespace longspan::pattern::brute {
namespace {

int64_t uniform(std::mt19937& random, int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random); }

// First word of Philox4x32-10, in the form of the paper's pseudo-code (64-bit products taken apart).
uint32_t philox_word(uint32_t d, uint32_t row_block, uint32_t document, uint32_t head, uint64_t seed) {
  uint32_t r0 = d, l0 = row_block, r1 = document, l1 = head;
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * r0, b = uint64_t{0xCD9E8D57u} * r1;
    r0 = static_cast<uint32_t>(b >> 32) ^ l0 ^ k0;
    l0 = static_cast<uint32_t>(b & 0xffffffffu);
    r1 = static_cast<uint32_t>(a >> 32) ^ l1 ^ k1;
    l1 = static_cast<uint32_t>(a & 0xffffffffu);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return r0;
}

std::set<int64_t> drawn(int64_t n, int64_t count, uint64_t seed, int64_t row_block, int64_t document, int head) {
  std::set<int64_t> blocks;
  if (n <= count) {
    for (int64_t block = 0; block < n; ++block) blocks.insert(block);
    return blocks;
  }
  for (uint32_t d = 0; static_cast<int64_t>(blocks.size()) < count; ++d) {
    const uint64_t w = philox_word(d, static_cast<uint32_t>(row_block), static_cast<uint32_t>(document), static_cast<uint32_t>(head), seed);
    blocks.insert(static_cast<int64_t>(w * static_cast<uint64_t>(n) / 4294967296ull));
  }
  return blocks;
}

bool power_of_two(int64_t n) { return n == 1 || (n > 1 && n % 2 == 0 && power_of_two(n / 2)); }

bool in_power(int64_t distance, int64_t width) {
  if (distance == 0) return true;
  for (int64_t power = 1; power <= distance; power *= 2)
    if (distance < power + width) return true;
  return false;
}

Predicate window(int64_t left, int64_t right) {
  return [=](const Pair& p) { return p.i - left <= p.j && p.j <= p.i + right; };
}
Predicate global(int64_t begin, int64_t end) {
  return [=](const Pair& p) { return (begin <= p.i && p.i < end) || (begin <= p.j && p.j < end); };
}
Predicate block_random(int64_t block, int64_t count, uint64_t seed, bool past, bool per_head) {
  // Lists are made once for each (document, row block, head): the comparison asks for all pairs.
  auto known = std::make_shared<std::map<std::tuple<int64_t, int64_t, int64_t, int>, std::set<int64_t>>>();
  return [=](const Pair& p) {
    const int64_t row_block = p.i / block, blocks = (p.length + block - 1) / block;
    const int head = per_head ? p.head : p.kv_head;
    const auto key = std::make_tuple(p.document, p.length, row_block, head);
    auto found = known->find(key);
    if (found == known->end())
      found = known->emplace(key, drawn(past ? row_block + 1 : blocks, count, seed, row_block, p.document, head)).first;
    return found->second.count(p.j / block) > 0;
  };
}
Predicate block_window(int64_t block, int64_t left, int64_t right) {
  return [=](const Pair& p) {
    const int64_t distance = p.i / block - p.j / block;
    return -right <= distance && distance <= left;
  };
}
Predicate either(std::vector<Predicate> parts) {
  return [=](const Pair& p) { return std::any_of(parts.begin(), parts.end(), [&](const Predicate& part) { return part(p); }); };
}

std::string call(const std::string& name, const std::vector<int64_t>& arguments) {
  std::string text = name + "(";
  for (size_t k = 0; k < arguments.size(); ++k) text.append(k ? "," : "").append(std::to_string(arguments[k]));
  return text + ")";
}

}  // namespace

Masks random_masks(const Documents& documents, int heads, int kv_heads, std::mt19937& random) {
  Masks masks;
  const std::map<std::string, std::pair<int64_t, int>> wanted{{"one", {32, 1}}, {"perkv", {64, kv_heads}}, {"perhead", {7, heads}}};
  for (const auto& [name, shape] : wanted) {
    masks.block[name] = shape.first;
    masks.lists[name].resize(static_cast<size_t>(shape.second));
    for (int64_t document = 0; document < documents.count(); ++document) {
      masks.first_row[name].push_back(static_cast<int64_t>(masks.lists[name][0].size()));
      const int64_t blocks = (documents.length(document) + shape.first - 1) / shape.first;
      for (auto& rows : masks.lists[name]) {
        for (int64_t row = 0; row < blocks; ++row) {
          std::vector<int64_t> list;
          const int64_t chance = uniform(random, 0, 4);
          for (int64_t block = 0; block < blocks; ++block)
            if (uniform(random, 0, 4) < chance) list.push_back(block);
          rows.push_back(list);
        }
      }
    }
  }
  return masks;
}

std::vector<std::shared_ptr<const BlockMaskSource>> Masks::sources_for(const Pattern& pattern, const Documents& documents) const {
  std::vector<std::shared_ptr<const BlockMaskSource>> sources;
  for (const auto& use : pattern.block_masks()) {
    sources.push_back(std::make_shared<const MemoryBlockMask>(MemoryBlockMask::from_lists(use.block, documents, lists.at(use.name))));
  }
  return sources;
}

Meaning random_term(std::mt19937& random, int64_t size, const Masks& masks) {
  const auto any = [&](int64_t least, int64_t most) { return uniform(random, least, std::max(least, most)); };
  const auto small = [&](int64_t least) { return any(0, 2) == 0 ? any(least, size + 10) : any(least, 20); };
  switch (any(0, 20)) {  // one case for each row of the table
    case 0:
      return {"full", [](const Pair&) { return true; }};
    case 1:
      return {"causal", [](const Pair& p) { return p.j <= p.i; }};
    case 2: {
      const int64_t left = small(0), right = small(0);
      return {call("window", {left, right}), window(left, right)};
    }
    case 3: {
      const int64_t n = small(0);
      return {call("sink", {n}), [=](const Pair& p) { return p.j < n; }};
    }
    case 4: {
      const int64_t begin = any(0, size), end = any(begin, begin + size);
      return {call("rows", {begin, end}), [=](const Pair& p) { return begin <= p.i && p.i < end; }};
    }
    case 5: {
      const int64_t begin = any(0, size), end = any(begin, begin + size);
      return {call("columns", {begin, end}), [=](const Pair& p) { return begin <= p.j && p.j < end; }};
    }
    case 6: {
      const int64_t begin = any(0, size), end = any(begin, begin + 30);
      return {call("global", {begin, end}), global(begin, end)};
    }
    case 7: {
      const int64_t length = small(1);
      return {call("segment", {length}), [=](const Pair& p) { return p.i / length == p.j / length; }};
    }
    case 8: {
      const int64_t stride = small(1), width = any(0, stride);
      return {call("fixed", {stride, width}), [=](const Pair& p) { return p.j % stride >= stride - width; }};
    }
    case 9: {
      const int64_t stride = small(1);
      return {call("strided", {stride}), [=](const Pair& p) { return (p.i - p.j) % stride == 0; }};
    }
    case 10: {
      const int64_t left = small(0), right = small(0), dilation = small(1);
      return {call("dilated_window", {left, right, dilation}), [=](const Pair& p) {
                const int64_t d = p.i - p.j;
                return -right * dilation <= d && d <= left * dilation && d % dilation == 0;
              }};
    }
    case 11: {
      const int64_t length = small(1), dilation = small(1), offset = any(0, dilation - 1);
      return {call("dilated_segment", {length, dilation, offset}), [=](const Pair& p) {
                return p.i / length == p.j / length && p.i % length % dilation == offset && p.j % length % dilation == offset;
              }};
    }
    case 12: {
      const int64_t width = any(0, 6);
      return {call("power", {width}), [=](const Pair& p) { return in_power(std::abs(p.i - p.j), width); }};
    }
    case 13: {
      const int64_t block = small(1), left = any(0, 4), right = any(0, 4);
      return {call("block_window", {block, left, right}), block_window(block, left, right)};
    }
    case 14: {
      const int64_t block = small(1);
      return {call("block_power", {block}), [=](const Pair& p) {
                const int64_t distance = std::abs(p.i / block - p.j / block);
                return distance == 0 || power_of_two(distance);
              }};
    }
    case 15: {
      const int64_t block = small(1), stride = any(1, 8), begin = any(0, stride), end = any(begin, stride + 2);
      return {call("block_columns", {block, stride, begin, end}), [=](const Pair& p) {
                const int64_t rest = p.j / block % stride;
                return begin <= rest && rest < end;
              }};
    }
    case 16: {
      const int64_t block = small(1), count = any(0, 5), seed = any(0, 1) ? any(0, 9) : any(0, int64_t{1} << 50), past = any(0, 1),
                    per = any(0, 1);
      return {call("block_random", {block, count, seed, past, per}), block_random(block, count, static_cast<uint64_t>(seed), past, per)};
    }
    case 17: {
      const std::string name = std::vector<std::string>{"one", "perkv", "perhead"}[static_cast<size_t>(any(0, 2))];
      const int64_t block = masks.block.at(name);
      const auto lists = std::make_shared<decltype(masks.lists)>(masks.lists);
      const auto first_row = masks.first_row.at(name);
      return {
          "block_mask(\"" + name + "\", " + std::to_string(block) + ")", [=](const Pair& p) {
            const auto& heads_lists = lists->at(name);
            const int list_head = name == "one" ? 0 : name == "perkv" ? p.kv_head : p.head;
            const auto& row =
                heads_lists[static_cast<size_t>(list_head)][static_cast<size_t>(first_row[static_cast<size_t>(p.document)] + p.i / block)];
            return std::binary_search(row.begin(), row.end(), p.j / block);
          }};
    }
    case 18: {
      const int64_t half = any(0, 20), globals = any(1, 20);
      return {call("longformer", {2 * half + 1, globals}), either({window(half, half), global(0, globals)})};
    }
    case 19: {
      const int64_t block = small(1), half = any(0, 2), count = any(1, 4), globals = any(1, 2), seed = any(0, 99);
      return {call("bigbird", {block, 2 * half + 1, count, globals, seed}),
              either({block_window(block, half, half), block_random(block, count, static_cast<uint64_t>(seed), false, false),
                      global(0, globals * block)})};
    }
    default: {
      const int64_t sinks = any(1, 20), width = small(1);
      return {call("streaming", {sinks, width}), [=](const Pair& p) { return p.j <= p.i && (p.j < sinks || p.i - p.j < width); }};
    }
  }
}

Meaning random_pattern(std::mt19937& random, int depth, int64_t size, const Masks& masks) {
  const int64_t choice = uniform(random, 0, 9);
  if (depth == 0 || choice == 0) return random_term(random, size, masks);
  const auto part = [&] { return random_pattern(random, depth - 1, size, masks); };
  if (choice <= 2) {
    const Meaning inner = part();
    return {"!(" + inner.text + ")", [inner](const Pair& p) { return !inner.allows(p); }};
  }
  const Meaning a = part(), b = part();
  if (choice <= 5) return {"(" + a.text + ") & (" + b.text + ")", [a, b](const Pair& p) { return a.allows(p) && b.allows(p); }};
  return {"(" + a.text + ") | (" + b.text + ")", [a, b](const Pair& p) { return a.allows(p) || b.allows(p); }};
}

TileBits expanded(const TileMask& mask, int rows, int keys) {
  TileBits bits;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < keys; ++c) {
      bool set = false;
      switch (mask.form) {
        case TileMask::Form::band:
          set = mask.lo <= r - c && r - c <= mask.hi;
          break;
        case TileMask::Form::subtiles:
          set = mask.subtiles >> (8 * (r / 16) + c / 16) & 1;
          break;
        case TileMask::Form::bits:
          set = mask.bits.rows[static_cast<size_t>(r)][static_cast<size_t>(c / 64)] >> (c % 64) & 1;
          break;
      }
      if (set) bits.rows[static_cast<size_t>(r)][static_cast<size_t>(c / 64)] |= uint64_t{1} << (c % 64);
    }
  }
  return bits;
}

namespace {

// One document of one group: the truth as a matrix, and the questions asked against it.
class Comparison {
 public:
  Comparison(const BoundPattern& bound, int group, int64_t document, const std::function<bool(int64_t, int64_t)>& allows)
      : bound_(bound), group_(group), document_(document), length_(bound.documents().length(document)) {
    truth_.resize(static_cast<size_t>(length_ * length_));
    for (int64_t i = 0; i < length_; ++i)
      for (int64_t j = 0; j < length_; ++j) truth_[static_cast<size_t>(i * length_ + j)] = allows(i, j);
  }

  int64_t length() const { return length_; }

  void pairs() const {
    for (int64_t i = 0; i < length_; ++i) {
      for (int64_t j = 0; j < length_; ++j) {
        if (bound_.allowed(group_, document_, i, j) != truth(i, j)) FAIL() << "allowed(" << i << ", " << j << ") is " << !truth(i, j);
      }
    }
  }

  void keys(Interval rows, Interval clip, bool exact) const {
    const auto sets = bound_.keys(group_, document_, rows, clip);
    Intervals any, every;
    for (int64_t j = clip.begin; j < clip.end; ++j) {
      bool some = false, all = true;
      for (int64_t i = rows.begin; i < rows.end; ++i) some |= truth(i, j), all &= truth(i, j);
      if (some) append(any, {j, j + 1});
      if (all) append(every, {j, j + 1});
    }
    const std::string where = "keys of rows " + std::to_string(rows.begin) + "…" + std::to_string(rows.end) + " in " +
                              std::to_string(clip.begin) + "…" + std::to_string(clip.end);
    ASSERT_EQ(sets.may, normalised(sets.may)) << where;
    ASSERT_EQ(sets.must, normalised(sets.must)) << where;
    ASSERT_EQ(clipped(sets.may, clip), sets.may) << where;
    if (exact || rows.length() == 1) {
      ASSERT_EQ(sets.may, any) << where;
      ASSERT_EQ(sets.must, every) << where;
    } else {
      ASSERT_EQ(subtract(any, sets.may), Intervals{}) << where;
      ASSERT_EQ(subtract(sets.must, every), Intervals{}) << where;
    }
  }

  void tile(Interval rows, Interval keys) {
    const auto height = static_cast<int>(rows.length()), width = static_cast<int>(keys.length());
    TileBits wanted;
    uint8_t quarters = 0;
    int64_t set = 0;
    for (int r = 0; r < height; ++r) {
      for (int c = 0; c < width; ++c) {
        if (!truth(rows.begin + r, keys.begin + c)) continue;
        wanted.rows[static_cast<size_t>(r)][static_cast<size_t>(c / 64)] |= uint64_t{1} << (c % 64);
        quarters |= static_cast<uint8_t>(1 << (2 * (r / 64) + c / 64));
        ++set;
      }
    }
    const Coverage coverage = set == 0 ? Coverage::none : set == rows.length() * keys.length() ? Coverage::all : Coverage::some;
    TileMask mask;
    const std::string where = "tile " + std::to_string(rows.begin) + "…" + std::to_string(rows.end) + " × " + std::to_string(keys.begin) +
                              "…" + std::to_string(keys.end);
    ASSERT_EQ(bound_.tile(group_, document_, rows, keys, mask), coverage) << where;
    if (coverage == Coverage::some) {
      ASSERT_EQ(mask.bits, wanted) << where;
      ASSERT_EQ(expanded(mask, height, width), wanted) << where << " form " << static_cast<int>(mask.form);
      ASSERT_EQ(mask.quarters, quarters) << where;
    }
    const uint64_t signature = bound_.signature(group_, document_, rows, keys);
    if (signature == 0) return;
    const auto [known, is_new] = seen_.try_emplace({signature, height, width}, wanted);
    ASSERT_TRUE(is_new || known->second == wanted) << where << ": equal signatures, other masks";
  }

 private:
  bool truth(int64_t i, int64_t j) const { return truth_[static_cast<size_t>(i * length_ + j)]; }

  const BoundPattern& bound_;
  int group_;
  int64_t document_, length_;
  std::vector<uint8_t> truth_;
  std::map<std::tuple<uint64_t, int, int>, TileBits> seen_;
};

}  // namespace

void expect_agreement(const BoundPattern& bound, int heads, int kv_heads, const Predicate& allows, bool exact, std::mt19937& random) {
  for (int group = 0; group < static_cast<int>(bound.groups().size()); ++group) {
    const int head = bound.groups()[static_cast<size_t>(group)].heads.front();
    for (int64_t document = 0; document < bound.documents().count(); ++document) {
      SCOPED_TRACE("group " + std::to_string(group) + ", document " + std::to_string(document));
      const int64_t length = bound.documents().length(document);
      Pair pair{document, length, head, head / (heads / kv_heads), 0, 0};
      Comparison comparison(bound, group, document, [&](int64_t i, int64_t j) {
        pair.i = i, pair.j = j;
        return allows(pair);
      });
      if (length == 0) {
        EXPECT_TRUE(bound.keys(group, document, {0, 0}, {0, 0}).may.empty());
        continue;
      }
      comparison.pairs();
      for (int64_t row = 0; row < length; row += kTile) {
        const Interval rows{row, std::min(length, row + kTile)};
        comparison.keys(rows, {0, length}, exact);
        for (int64_t key = 0; key < length; key += kTile) comparison.tile(rows, {key, std::min(length, key + kTile)});
      }
      const auto part = [&](int64_t most) {
        const int64_t begin = uniform(random, 0, length - 1);
        return Interval{begin, uniform(random, begin + 1, std::min(length, begin + most))};
      };
      for (int k = 0; k < 12; ++k) comparison.tile(part(kTile), part(kTile));
      for (int k = 0; k < 12; ++k) {
        const Interval row = part(1);
        comparison.keys(row, {0, length}, exact);
        comparison.keys(row, part(length), exact);
        comparison.keys(part(uniform(random, 2, 200)), part(length), exact);
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace longspan::pattern::brute
