#include "cli/census.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <unordered_map>

#include "kernels/cpu/thread_pool.hpp"
#include "plan/blocks.hpp"

namespace longspan::cli {

namespace {

using pattern::BoundPattern;
using pattern::Coverage;
using pattern::kTile;
using pattern::TileMask;
using plan::Blocks;

// What one thread has counted of one group.
struct Tally {
  int64_t pairs = 0, ahead = 0, full = 0, partial = 0;
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0;

  void row(int64_t keys, int64_t rows = 1) {
    if (rows == 0) return;
    pairs += keys * rows;
    least = std::min(least, keys);
    most = std::max(most, keys);
  }
  void add(const Tally& other) {
    pairs += other.pairs, ahead += other.ahead, full += other.full, partial += other.partial;
    least = std::min(least, other.least), most = std::max(most, other.most);
  }
};

// A tile's mask as far as counting goes.
struct Counted {
  Coverage coverage = Coverage::none;
  int64_t pairs = 0;
  int64_t ahead = 0;                    // pairs right of the diagonal, if the tile is a diagonal one
  std::array<uint8_t, kTile> of_row{};  // allowed keys, 0…128
};

class Tiles {
 public:
  Tiles(const BoundPattern& pattern, int group) : pattern_(pattern), group_(group) {}

  const Counted& count(int64_t document, Interval rows, Interval keys) {
    const uint64_t signature = pattern_.signature(group_, document, rows, keys);
    if (signature == 0) return scratch_ = classify(document, rows, keys);
    constexpr size_t kMost = 1 << 16;  // entries; some 10 MB
    if (known_.size() >= kMost) known_.clear();
    const Key key{signature, static_cast<int32_t>(rows.length()), static_cast<int32_t>(keys.length())};
    const auto [entry, fresh] = known_.try_emplace(key);
    if (fresh) entry->second = classify(document, rows, keys);
    return entry->second;
  }

 private:
  struct Key {
    uint64_t signature;
    int32_t rows, keys;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const {
      return static_cast<size_t>((key.signature ^ (static_cast<uint64_t>(key.rows) << 32 ^ static_cast<uint64_t>(key.keys))) *
                                 0x9e3779b97f4a7c15u);
    }
  };

  Counted classify(int64_t document, Interval rows, Interval keys) const {
    Counted counted;
    TileMask mask;
    counted.coverage = pattern_.tile(group_, document, rows, keys, mask);
    if (counted.coverage == Coverage::none) return counted;
    const bool all = counted.coverage == Coverage::all;
    for (int row = 0; row < rows.length(); ++row) {
      const auto& words = mask.bits.rows[static_cast<size_t>(row)];
      const int64_t allowed = all ? keys.length() : std::popcount(words[0]) + std::popcount(words[1]);
      counted.of_row[static_cast<size_t>(row)] = static_cast<uint8_t>(allowed);
      counted.pairs += allowed;
      // Keys row+1 … 127 are ahead; `upto` has the bits 0 … row of the row.
      const uint64_t upto0 = row >= 63 ? ~uint64_t{0} : (uint64_t{2} << row) - 1;
      const uint64_t upto1 = row < 64 ? 0 : row >= 127 ? ~uint64_t{0} : (uint64_t{2} << (row - 64)) - 1;
      counted.ahead +=
          all ? std::max<int64_t>(0, keys.length() - 1 - row) : std::popcount(words[0] & ~upto0) + std::popcount(words[1] & ~upto1);
    }
    return counted;
  }

  const BoundPattern& pattern_;
  int group_;
  std::unordered_map<Key, Counted, Hash> known_;
  Counted scratch_;
};

// Walks a sorted set with ascending questions, without starting over.
class Walker {
 public:
  explicit Walker(const Intervals& set) : set_(set) {}
  // The set's parts inside `clip`, which never begins before the one asked for last.
  void clip_to(Interval clip) {
    while (at_ < set_.size() && set_[at_].end <= clip.begin) ++at_;
    next_ = at_;
    clip_ = clip;
  }
  Interval next() {  // empty: no more
    if (next_ == set_.size() || set_[next_].begin >= clip_.end) return {};
    return overlap(set_[next_++], clip_);
  }

 private:
  const Intervals& set_;
  size_t at_ = 0, next_ = 0;
  Interval clip_;
};

// The rows of one query block of a long document.
void count_block(const BoundPattern& pattern, int group, const Blocks::Run& run, int64_t block, Tiles& tiles, Tally& tally,
                 report::BlockMap& map) {
  const int64_t document = run.documents.begin, length = run.tokens.length();
  const int64_t own = block - run.first_block;
  const auto tokens = [&](int64_t local) { return Interval{local * kTile, std::min<int64_t>((local + 1) * kTile, length)}; };
  const Interval rows = tokens(own);
  const BoundPattern::Keys keys = pattern.keys(group, document, rows, {0, length});
  Intervals touched, full;  // key blocks of the document
  for (const Interval& part : keys.may) append(touched, {part.begin / kTile, (part.end - 1) / kTile + 1});
  for (const Interval& part : keys.must)
    append(full, {(part.begin + kTile - 1) / kTile, part.end == length ? run.blocks : part.end / kTile});

  int64_t common = 0;                 // keys that every row of the block looks at
  std::array<int64_t, kTile> more{};  // and those of single rows
  for (const Interval& blocks : full) {
    tally.full += blocks.length();
    map.add_full(block, run.first_block + blocks.begin, run.first_block + blocks.end);
    const int64_t begin = blocks.begin * kTile, end = std::min(blocks.end * kTile, length);
    common += end - begin;
    // Ahead of row i: keys i+1 and later. The block's own tile gives the triangle above the diagonal.
    tally.ahead += rows.length() * std::max<int64_t>(0, end - std::max(begin, rows.end));
    if (blocks.contains(own)) tally.ahead += rows.length() * (rows.length() - 1) / 2;
  }
  Walker may(keys.may), must(keys.must);
  for (const Interval& blocks : subtract(touched, full)) {
    for (int64_t other = blocks.begin; other < blocks.end; ++other) {
      const Interval at = tokens(other);
      if (other != own) {
        // Where both bounds agree, every row looks at just these keys: no need to look at the tile.
        may.clip_to(at), must.clip_to(at);
        bool same = true;
        int64_t count = 0;
        for (Interval part = may.next(); same; part = may.next()) {
          same = part == must.next();
          if (part.empty()) break;
          count += part.length();
        }
        if (same) {
          common += count;
          if (other > own) tally.ahead += count * rows.length();
          tally.partial += count > 0;
          map.add_partial(block, run.first_block + other, run.first_block + other + (count > 0));
          continue;
        }
      }
      const Counted& tile = tiles.count(document, rows, at);
      if (tile.coverage == Coverage::none) continue;
      if (tile.coverage == Coverage::all) {
        ++tally.full;
        map.add_full(block, run.first_block + other, run.first_block + other + 1);
      } else {
        ++tally.partial;
        map.add_partial(block, run.first_block + other, run.first_block + other + 1);
      }
      for (size_t row = 0; row < static_cast<size_t>(rows.length()); ++row) more[row] += tile.of_row[row];
      tally.ahead += other > own ? tile.pairs : other == own ? tile.ahead : 0;
    }
  }
  for (size_t row = 0; row < static_cast<size_t>(rows.length()); ++row) tally.row(common + more[row]);
}

// A block shared by short documents: one tile, on the diagonal.
void count_shared(const BoundPattern& pattern, const Blocks::Run& run, Tiles& tiles, Tally& tally, report::BlockMap& map) {
  int64_t pairs = 0;
  for (int64_t document = run.documents.begin; document < run.documents.end; ++document) {
    const int64_t length = pattern.documents().length(document);
    if (length == 0) continue;
    const Counted& tile = tiles.count(document, {0, length}, {0, length});
    pairs += tile.pairs;
    tally.ahead += tile.ahead;
    for (int64_t row = 0; row < length; ++row) tally.row(tile.of_row[static_cast<size_t>(row)]);
  }
  if (pairs == 0) return;
  if (pairs == run.tokens.length() * run.tokens.length()) {
    ++tally.full;
    map.add_full(run.first_block, run.first_block, run.first_block + 1);
  } else {
    ++tally.partial;
    map.add_partial(run.first_block, run.first_block, run.first_block + 1);
  }
}

// Σ of (length − |d|) over d in [begin, end), for one sign of d.
int64_t pairs_at_distances(int64_t length, Interval d) {
  if (d.empty()) return 0;
  if (d.begin < 0 && d.end > 0) return pairs_at_distances(length, {d.begin, 0}) + pairs_at_distances(length, {0, d.end});
  const int64_t nearest = d.begin >= 0 ? d.begin : 1 - d.end;  // |d| from nearest to farthest
  const int64_t farthest = d.begin >= 0 ? d.end - 1 : -d.begin;
  return d.length() * length - (nearest + farthest) * d.length() / 2;
}

// A long document under a pattern of i − j alone: everything follows from the set of allowed distances d = i − j.
//   causal & window(2, 0), 300 tokens: distances {0, 1, 2}; tile (I, J) holds the distances 128·(I−J)−127 … 128·(I−J)+127
class Distances {
 public:
  Distances(const BoundPattern& pattern, int group, const Blocks::Run& run) : length_(run.tokens.length()), run_(run) {
    const int64_t last = length_ - 1;
    Intervals distances;
    for (const Interval& keys : pattern.keys(group, run.documents.begin, {last, length_}, {0, length_}).may)
      distances.push_back({last - keys.end + 1, last - keys.begin + 1});
    for (const Interval& keys : pattern.keys(group, run.documents.begin, {0, 1}, {0, length_}).may)
      distances.push_back({1 - keys.end, 1 - keys.begin});
    set_ = normalised(std::move(distances));
    for (const Interval& interval : set_) before_.push_back((before_.empty() ? 0 : before_.back()) + interval.length());
  }

  void count(Tally& tally, report::BlockMap& map) const {
    for (const Interval& d : set_) {
      tally.pairs += pairs_at_distances(length_, d);
      tally.ahead += pairs_at_distances(length_, overlap(d, {-length_, 0}));
    }
    // Row i looks at the keys i − d with −length+i < d <= i. Between the places where an end of the set enters or leaves that range, the
    // number of keys goes up or down evenly, so that its extremes are at those places.
    const auto row = [&](int64_t i) {
      if (i < 0 || i >= length_) return;
      const int64_t keys = below(i + 1) - below(i - length_ + 1);
      tally.least = std::min(tally.least, keys), tally.most = std::max(tally.most, keys);
    };
    row(0), row(length_ - 1);
    for (const Interval& d : set_)
      for (const int64_t end : {d.begin, d.end}) row(end - 1), row(end), row(end + length_ - 1), row(end + length_ - 2);
    count_tiles(tally, map);
  }

 private:
  // Members of the set below x.
  int64_t below(int64_t x) const {
    const auto next = std::partition_point(set_.begin(), set_.end(), [&](const Interval& d) { return d.end <= x; });
    const auto index = next - set_.begin();
    const int64_t whole = index == 0 ? 0 : before_[static_cast<size_t>(index - 1)];
    return whole + (next != set_.end() && next->begin < x ? x - next->begin : 0);
  }
  Coverage tile(Interval rows, Interval keys) const {
    const int64_t begin = rows.begin - keys.end + 1, end = rows.end - keys.begin;
    const int64_t members = below(end) - below(begin);
    return members == 0 ? Coverage::none : members == end - begin ? Coverage::all : Coverage::some;
  }

  void count_tiles(Tally& tally, report::BlockMap& map) const {
    const int64_t whole = length_ / kTile;  // blocks of 128 tokens; a shorter one may follow
    // Is a diagonal I − J full or partial, for tiles of 128×128; summed once and twice, so that a rectangle of tiles is four look-ups.
    const auto size = static_cast<size_t>(2 * whole + 3);
    std::vector<int64_t> full(size), partial(size), full2(size + 1), partial2(size + 1);
    const auto slot = [&](int64_t diagonal) { return static_cast<size_t>(diagonal + whole + 1); };
    for (int64_t diagonal = 1 - whole; diagonal < whole; ++diagonal) {
      const Coverage coverage = tile({diagonal * kTile, (diagonal + 1) * kTile}, {0, kTile});
      full[slot(diagonal)] = coverage == Coverage::all;
      partial[slot(diagonal)] = coverage == Coverage::some;
      const int64_t tiles = whole - std::abs(diagonal);
      tally.full += tiles * full[slot(diagonal)];
      tally.partial += tiles * partial[slot(diagonal)];
    }
    const auto sum_twice = [&](std::vector<int64_t>& once, std::vector<int64_t>& twice) {
      for (size_t i = 1; i < size; ++i) once[i] += once[i - 1];
      for (size_t i = 0; i < size; ++i) twice[i + 1] = twice[i] + once[i];
    };
    sum_twice(full, full2), sum_twice(partial, partial2);
    // Σ over I in rows, J in columns of the class of I − J.
    const auto in_rectangle = [&](const std::vector<int64_t>& twice, Interval rows, Interval columns) {
      const auto column = [&](int64_t j) { return twice[slot(rows.end - 1 - j) + 1] - twice[slot(rows.begin - 1 - j) + 1]; };
      return column(columns.begin) - column(columns.end);
    };
    if (whole > 0) {
      const int64_t first = run_.first_block;
      const int64_t low = map.cell_of(first), high = map.cell_of(first + whole - 1);
      const auto part = [&](int64_t cell) {
        return overlap({map.first_block(cell) - first, map.first_block(cell + 1) - first}, {0, whole});
      };
      for (int64_t y = low; y <= high; ++y) {
        for (int64_t x = low; x <= high; ++x) {
          const auto cell = static_cast<size_t>(y * map.cells + x);
          map.full[cell] += in_rectangle(full2, part(y), part(x));
          map.partial[cell] += in_rectangle(partial2, part(y), part(x));
        }
      }
    }
    if (whole == run_.blocks) return;
    const auto single = [&](int64_t row, int64_t column) {
      const auto tokens = [&](int64_t block) { return Interval{block * kTile, std::min<int64_t>((block + 1) * kTile, length_)}; };
      const Coverage coverage = tile(tokens(row), tokens(column));
      const int64_t y = run_.first_block + row, x = run_.first_block + column;
      if (coverage == Coverage::all) ++tally.full, map.add_full(y, x, x + 1);
      if (coverage == Coverage::some) ++tally.partial, map.add_partial(y, x, x + 1);
    };
    for (int64_t other = 0; other < whole; ++other) single(whole, other), single(other, whole);
    single(whole, whole);
  }

  int64_t length_;
  const Blocks::Run& run_;
  Intervals set_;
  std::vector<int64_t> before_;  // members of set_[0 … i]
};

GroupCensus count_group(const BoundPattern& pattern, int group, const Blocks& blocks, kernels::cpu::ThreadPool& pool) {
  GroupCensus census;
  census.heads = pattern.groups()[static_cast<size_t>(group)].heads;
  census.rule = pattern.groups()[static_cast<size_t>(group)].rule;
  census.map = report::BlockMap(blocks.count());
  Tally total;
  const bool by_distance = pattern.translation_invariant(group);
  if (by_distance) {
    for (const Blocks::Run& run : blocks.runs())
      if (!run.shared) Distances(pattern, group, run).count(total, census.map);
  }
  const auto workers = static_cast<size_t>(pool.threads());
  std::vector<Tally> tallies(workers);
  std::vector<Tiles> tiles(workers, Tiles(pattern, group));
  // One item per row of the picture's cells: no two threads write the same cell.
  pool.for_each(census.map.cells, [&](int64_t cell, int worker) {
    for (int64_t block = census.map.first_block(cell); block < census.map.first_block(cell + 1); ++block) {
      const Blocks::Run& run = blocks.run_of(block);
      Tally& tally = tallies[static_cast<size_t>(worker)];
      if (run.shared) {
        count_shared(pattern, run, tiles[static_cast<size_t>(worker)], tally, census.map);
      } else if (!by_distance) {
        count_block(pattern, group, run, block, tiles[static_cast<size_t>(worker)], tally, census.map);
      }
    }
  });
  for (const Tally& tally : tallies) total.add(tally);
  census.pairs = total.pairs, census.pairs_ahead = total.ahead, census.full = total.full, census.partial = total.partial;
  census.least_keys = blocks.count() == 0 ? 0 : total.least, census.most_keys = total.most;
  for (const Blocks::Run& run : blocks.runs())
    if (run.first_block > 0 && census.map.borders.size() < report::BlockMap::kMostCells) census.map.borders.push_back(run.first_block);
  return census;
}

}  // namespace

Census take_census(const pattern::BoundPattern& pattern, int threads) {
  const Documents& documents = pattern.documents();
  const Blocks blocks(documents);
  Census census;
  census.tokens = documents.tokens(), census.documents = documents.count(), census.blocks = blocks.count();
  census.tiles = census.blocks * census.blocks;
  for (int64_t document = 0; document < documents.count(); ++document) {
    const int64_t length = documents.length(document);
    census.causal_pairs += length * (length + 1) / 2;
    census.all_pairs += length * length;
  }
  kernels::cpu::ThreadPool pool(threads);
  for (size_t group = 0; group < pattern.groups().size(); ++group)
    census.groups.push_back(count_group(pattern, static_cast<int>(group), blocks, pool));
  return census;
}

}  // namespace longspan::cli
