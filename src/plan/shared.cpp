// What all ranks know of a job: partition, key classes, long rows and who computes which piece of them.
#include <algorithm>
#include <map>
#include <set>

#include "plan/halves.hpp"
#include "plan/memory.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::plan {

namespace {

std::vector<KeyClass> key_classes(const pattern::BoundPattern& pattern, const Shape& shape) {
  std::vector<KeyClass> classes;
  for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    std::vector<int> groups;
    const int group_size = shape.heads / shape.kv_heads;
    for (int head = kv_head * group_size; head < (kv_head + 1) * group_size; ++head) groups.push_back(pattern.group_of(head));
    std::sort(groups.begin(), groups.end());
    groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
    if (!classes.empty() && classes.back().groups == groups) {
      classes.back().kv_heads.push_back(kv_head);
    } else {
      classes.push_back({{kv_head}, std::move(groups)});
    }
  }
  return classes;
}

int kv_heads_of(const pattern::HeadGroup& group, const Shape& shape) {
  std::set<int> kv_heads;
  for (int head : group.heads) kv_heads.insert(shape.kv_head_of(head));
  return static_cast<int>(kv_heads.size());
}

// The row's keys cut at multiples of a piece's length from its document's first block, and, unless the result must not depend on the number
// of ranks, where the keys' home changes: then no key moves at all.
std::vector<Piece> pieces_of(const Shared& shared, const Blocks& blocks, int number, std::vector<int64_t>& load) {
  const LongRow& row = shared.long_rows[static_cast<size_t>(number)];
  const Interval reach = blocks.reach(row.block);
  const int64_t segment = shared.options.longest_piece();
  std::vector<int64_t> cuts;
  for (int64_t cut = reach.begin; cut < reach.end; cut += segment) cuts.push_back(cut);
  if (!shared.options.reproducible)
    for (int64_t bound : shared.partition.bounds())
      if (reach.contains(bound)) cuts.push_back(bound);
  cuts.push_back(reach.end);
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

  std::vector<Piece> pieces;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const Intervals keys = clipped(row.key_blocks, {cuts[i], cuts[i + 1]});
    if (keys.empty()) continue;
    // The home of most of the piece's keys computes it; of several, the one with least to do.
    std::map<int, int64_t> held;
    shared.partition.for_each_home(keys, [&](int home, Interval part) { held[home] += part.length(); });
    const auto better = [&](const std::pair<const int, int64_t>& a, const std::pair<const int, int64_t>& b) {
      if (a.second != b.second) return a.second < b.second;
      return load[static_cast<size_t>(a.first)] > load[static_cast<size_t>(b.first)];
    };
    const int rank = std::max_element(held.begin(), held.end(), better)->first;
    load[static_cast<size_t>(rank)] += size_of(keys);
    pieces.push_back({number, {cuts[i], cuts[i + 1]}, rank});
  }
  return pieces;
}

// Whether a step of own keys does not pay on a GPU: most rows look at keys of other ranks, too, and all in all at so few that a good part
// of their time would go to reading and writing their states in between. Example: BigBird with 64-token blocks looks at 9 tiles a row; its
// states take an H100 as long as 4 to 6 (reckoned from its memory's rate and what a row costs by itself).
bool rows_find_little(const Shared& shared, const TileLists& lists, const pattern::BoundPattern& pattern, const Blocks& blocks) {
  constexpr int64_t kSamples = 32;
  constexpr double kLittle = 32;  // tiles
  const Interval all{0, blocks.count()};
  double rows = 0, reaching = 0, tiles = 0;  // × query heads
  for (int64_t sample = 0; sample < std::min(kSamples, blocks.count()); ++sample) {
    const int64_t block = (2 * sample + 1) * blocks.count() / (2 * std::min(kSamples, blocks.count()));
    const Intervals own = shared.partition.blocks_of(shared.partition.rank_of(block));
    for (size_t group = 0; group < pattern.groups().size(); ++group) {
      if (shared.is_long(static_cast<int>(group), block)) continue;
      const auto heads = static_cast<double>(pattern.groups()[group].heads.size());
      const Intervals keys = lists.candidates(static_cast<int>(group), block, all);
      rows += heads, tiles += heads * static_cast<double>(size_of(keys));
      if (!subtract(keys, own).empty()) reaching += heads;
    }
  }
  return 2 * reaching > rows && tiles < kLittle * rows;
}

}  // namespace

Shared make_shared(const pattern::BoundPattern& pattern, const Blocks& blocks, const Shape& shape, int ranks, const Options& options) {
  const TileLists lists(pattern, blocks);
  const RowCosts costs(lists, pattern, blocks, options);
  Shared shared{.shape = shape,
                .options = options,
                .partition = choose_partition(lists, pattern, blocks, shape, costs, ranks, options),
                .classes = key_classes(pattern, shape)};
  shared.mean_entries = costs.mean_entries();
  // Long rows: the queries travel where that moves less. A reproducible result cuts them in any case, at fixed places.
  const int64_t unit = kernels::unit_bytes(shape.type, shape.head_dim);
  std::vector<int64_t> load(static_cast<size_t>(ranks)), resting(static_cast<size_t>(ranks));
  for (const LongRow& row : costs.long_rows()) {
    const pattern::HeadGroup& group = pattern.groups()[static_cast<size_t>(row.group)];
    const int home = shared.partition.rank_of(row.block);
    const int64_t states = blocks.rows(row.block) * static_cast<int64_t>(group.heads.size());
    shared.long_rows.push_back(row);
    std::vector<Piece> pieces = pieces_of(shared, blocks, static_cast<int>(shared.long_rows.size()) - 1, load);
    const int64_t pulled = size_of(subtract(row.key_blocks, shared.partition.blocks_of(home))) * unit * kv_heads_of(group, shape);
    int64_t travelling = 0;
    std::set<int> receivers;
    for (const Piece& piece : pieces) {
      if (piece.rank == home) continue;
      receivers.insert(piece.rank);
      travelling += states * state_bytes(shape);
    }
    travelling += static_cast<int64_t>(receivers.size()) * states * shape.head_dim * static_cast<int64_t>(size_of(shape.type));
    const bool travels = travelling < pulled;
    // Their states rest until the stripe they belong to: too many of them would leave no memory for anything else.
    const bool fits = resting[static_cast<size_t>(home)] + states * state_bytes(shape) <= options.memory / 8;
    // On a GPU a long row that keeps its few multiprocessors busy makes the others wait: there it is cut also where it looks at own keys
    // only, if these stay all the same.
    const bool cut = travels || (options.on_gpu && pulled == 0 &&
                                 keys_stay_beside(shape, options, shared.partition.most_blocks(),
                                                  resting[static_cast<size_t>(home)] + states * state_bytes(shape)));
    if (!options.reproducible && (!cut || !fits)) {
      for (const Piece& piece : pieces) load[static_cast<size_t>(piece.rank)] -= size_of(clipped(row.key_blocks, piece.key_blocks));
      shared.long_rows.pop_back();
      continue;
    }
    if (!travels)
      for (Piece& piece : pieces) piece.rank = home;
    resting[static_cast<size_t>(home)] += states * state_bytes(shape);
    shared.long_bytes_if_pulled += pulled;
    shared.long_bytes_travelling += travels ? travelling : 0;
    shared.pieces.insert(shared.pieces.end(), pieces.begin(), pieces.end());
  }
  const int64_t most_resting = *std::max_element(resting.begin(), resting.end());
  shared.memory = share_memory(shape, options, shared.partition.most_blocks(), most_resting, shared.keys_stay);
  shared.own_keys_first = shared.keys_stay && !options.reproducible;
  // Keys that several stripes need must have a place until then, or they move again.
  const bool place_to_keep = shared.memory.received >= 2 * shared.memory.home;
  if (options.rows_are_copied)
    shared.options.stripes = ranks > 1 && !place_to_keep ? 1 : stripes_of_copied_rows(shape, options.output_type, ranks);
  if (shared.own_keys_first && options.on_gpu && place_to_keep && rows_find_little(shared, lists, pattern, blocks)) {
    // Fewer stripes end less often, more of them wait less for their keys, of which there are few for what is computed where query heads
    // share them. Bigbird of 1Mi tokens with 16 heads took two H200 8.4, 8.5 and 8.7 ms in 2, 3 and 4 stripes (the first of which is
    // divided in three) with 4 KV heads, and 17.6, 17.0 and 16.6 with 16; since halves of blocks travel 8.4, 8.6, 8.6 and 14.7, 14.9, 14.8.
    const int stripes = shape.heads >= 4 * shape.kv_heads ? 2 : 4;
    shared.own_keys_first = false;
    shared.short_stripes_first = true;
    shared.options.stripes = std::max(shared.options.stripes, stripes);
  }
  shared.in_halves = ranks > 1 && shared.keys_stay && halves_pay(shared, pattern, blocks);

  // Groups of one block share state rows, so their pieces stand side by side: by block, then keys, then group.
  std::stable_sort(shared.pieces.begin(), shared.pieces.end(), [&](const Piece& a, const Piece& b) {
    return std::pair(shared.long_rows[static_cast<size_t>(a.row)].block, a.key_blocks.begin) <
           std::pair(shared.long_rows[static_cast<size_t>(b.row)].block, b.key_blocks.begin);
  });
  // Batches such that what travels fits where the results of a stripe will lie: for each piece a copy of its states, and the queries of a
  // block that only leaves; one piece more that is being packed or merged, and two that arrive.
  const int64_t stripe_blocks = std::max<int64_t>(1, shared.memory.stripe / block_row_bytes(shape, options.output_type));
  const int64_t spare = 2 * stripe_blocks * block_result_bytes(shape, options.output_type) + shared.memory.long_rows - most_resting;
  const int64_t state = block_state_bytes(shape);
  const int64_t most_pieces = std::clamp<int64_t>((spare - 3 * state) / (state + block_query_bytes(shape)), 1, stripe_blocks);
  // And so that the states of all parts fit into a stripe's: where a piece's do not, it is one part.
  const auto parts_in = [&](int64_t key_blocks) { return (key_blocks + options.longest_part() - 1) / options.longest_part(); };
  shared.part_blocks = parts_in(options.longest_piece()) <= stripe_blocks ? options.longest_part() : options.longest_piece();
  std::vector<int64_t> filled(static_cast<size_t>(ranks)), states(static_cast<size_t>(ranks)), packed(static_cast<size_t>(ranks));
  int64_t last_block = -1;
  std::vector<std::pair<int64_t, int64_t>> last(static_cast<size_t>(ranks), {-1, -1});
  int64_t begin = 0;
  for (int64_t p = 0; p < static_cast<int64_t>(shared.pieces.size()); ++p) {
    const Piece& piece = shared.pieces[static_cast<size_t>(p)];
    const auto rank = static_cast<size_t>(piece.rank);
    const std::pair place(shared.long_rows[static_cast<size_t>(piece.row)].block, piece.key_blocks.begin);
    if (last[rank] == place) continue;  // another group of the same rows and keys
    const auto home = static_cast<size_t>(shared.partition.rank_of(place.first));
    const int64_t parts = shared.part_blocks < options.longest_piece() ? parts_in(piece.key_blocks.length()) : 1;
    if (filled[rank] == most_pieces || states[rank] + parts > stripe_blocks || (place.first != last_block && packed[home] == most_pieces)) {
      shared.batches.push_back({begin, p});
      begin = p;
      last_block = -1;
      std::fill(filled.begin(), filled.end(), 0);
      std::fill(states.begin(), states.end(), 0);
      std::fill(packed.begin(), packed.end(), 0);
      std::fill(last.begin(), last.end(), std::pair<int64_t, int64_t>(-1, -1));
    }
    last[rank] = place;
    ++filled[rank], states[rank] += parts;
    if (place.first != last_block) ++packed[home];
    last_block = place.first;
  }
  if (!shared.pieces.empty()) shared.batches.push_back({begin, static_cast<int64_t>(shared.pieces.size())});
  return shared;
}

}  // namespace longspan::plan
