#include "engine/long_rows.hpp"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

namespace longspan::engine {

namespace {

constexpr int64_t kWord = 4;
constexpr int kTags = 1 << 19;  // queries use tags [0, kTags), states [kTags, 2·kTags)

int tag_of(int64_t piece) { return kTags + static_cast<int>(piece % kTags); }

std::vector<comm::BlockExchange::Message> message(int peer, std::byte* bytes, int64_t count) { return {{peer, {{bytes, count / kWord}}}}; }

// So many pieces' states are copied to or from the device at once, and so many come while others are merged. In the host's memory the plan
// has room for one and one. Copies of a GPU wait each for what else is on its link, so there are fewer and larger ones; of its memory they
// take that many pieces and one more than the plan says (at most 18 MB with 16 heads of head_dim 128).
constexpr size_t kTogetherOnHost = 1, kTogetherOnGpu = 16;

}  // namespace

LongRows::LongRows(const comm::Communicator& ranks, const plan::Shared& shared, const pattern::BoundPattern& pattern,
                   const plan::Blocks& blocks, int rank, kernels::Device& device)
    : shared_(shared), pattern_(pattern), blocks_(blocks), rank_(rank), device_(device), exchange_(ranks, kWord) {
  for (const pattern::HeadGroup& group : pattern.groups()) heads_.emplace_back(group.heads.begin(), group.heads.end());
  for (int head = 0; head < shared.shape.heads; ++head) all_heads_.push_back(head);
  for (const Interval& batch : shared.batches) {
    Layout& layout = layouts_[batch.begin];
    for (int64_t p = batch.begin; p < batch.end; ++p) {
      const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
      if (piece.rank != rank_) continue;
      const int64_t block = shared_.long_rows[static_cast<size_t>(piece.row)].block;
      const int64_t rows = blocks_.rows(block);
      if (layout.q_row.emplace(block, layout.q_rows).second) layout.q_rows += rows;
      for (const Interval& part : plan::parts_of(shared_, piece))
        if (layout.state_row.emplace(std::pair(block, part.begin), layout.state_rows).second) layout.state_rows += rows;
    }
  }
}

int64_t LongRows::states_of(const plan::LongRow& row) const {
  return blocks_.rows(row.block) * static_cast<int64_t>(pattern_.groups()[static_cast<size_t>(row.group)].heads.size());
}

void LongRows::begin(double timeout) {
  exchange_.set_timeout(timeout);
  merged_.clear();
  received_before_ = exchange_.bytes_received();
}

void LongRows::read_queries(const plan::Stripe& stripe, Input& input, std::byte* q) {
  std::set<int64_t> own;  // blocks
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p)
    if (home_of(p) == rank_) own.insert(row_of(p).block);
  read_own(own, layout(stripe), input, q);
}

void LongRows::start_queries(const plan::Stripe& stripe, std::byte* q) {
  const Layout& layout = this->layout(stripe);
  using Heads = std::vector<bool>;                   // whose rows travel
  std::map<int, std::map<int64_t, Heads>> from, to;  // by peer and block: both sides go through them alike
  const auto add = [&](std::map<int64_t, Heads>& blocks, const plan::LongRow& row) {
    Heads& heads = blocks.try_emplace(row.block, all_heads_.size()).first->second;
    for (int head : heads_[static_cast<size_t>(row.group)]) heads[static_cast<size_t>(head)] = true;
  };
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const int home = home_of(p), there = shared_.pieces[static_cast<size_t>(p)].rank;
    if (home == rank_ && there != rank_) add(to[there], row_of(p));
    if (home != rank_ && there == rank_) add(from[home], row_of(p));
  }
  queries_.tag = static_cast<int>(stripe.pieces.begin % kTags);
  while (!device_.is_downloaded()) std::this_thread::yield();
  const auto messages = [&](const std::map<int, std::map<int64_t, Heads>>& peers) {
    std::vector<comm::BlockExchange::Message> messages;
    for (const auto& [peer, blocks] : peers) {
      messages.push_back({peer, {}});
      for (const auto& [block, heads] : blocks)
        append_queries(heads, blocks_.rows(block), queries_of(block, layout, q), messages.back().pieces);
    }
    return messages;
  };
  exchange_.start(queries_.tag, messages(from), messages(to));
}

std::byte* LongRows::queries_of(int64_t block, const Layout& layout, std::byte* q) {
  const auto place = layout.q_row.find(block);
  return place != layout.q_row.end() ? q + place->second * q_row_bytes() : queries_.only_leaving.at(block).data();
}

// Blocks whose rows lie side by side at both ends are read together.
void LongRows::read_own(const std::set<int64_t>& own, const Layout& layout, Input& input, std::byte* q) {
  for (const int64_t block : own)
    if (layout.q_row.count(block) == 0) queries_.only_leaving[block].resize(static_cast<size_t>(blocks_.rows(block) * q_row_bytes()));
  for (auto block = own.begin(); block != own.end();) {
    std::byte* const into = queries_of(*block, layout, q);
    Interval tokens = blocks_.tokens(*block);
    const bool only_leaves = layout.q_row.count(*block) == 0;  // from memory of its own, which is not allocate_host()'s
    for (++block; block != own.end() && blocks_.tokens(*block).begin == tokens.end &&
                  queries_of(*block, layout, q) == into + tokens.length() * q_row_bytes();
         ++block)
      tokens.end = blocks_.tokens(*block).end;
    const std::byte* const there = device_.memory_is_host() ? nullptr : input.q_in_place(tokens.begin, tokens.length());
    if (there != nullptr && only_leaves)
      device_.download(there, tokens.length() * q_row_bytes(), into);
    else if (there != nullptr)
      device_.start_download(there, tokens.length() * q_row_bytes(), into);
    else
      input.read_q(tokens.begin, tokens.length(), into);
  }
}

// Of 4 heads, of which 0, 1 and 3 travel: rows 0 and 1 are the pieces {0 1} {3 0 1} {3}, those that abut being joined by the exchange.
void LongRows::append_queries(const std::vector<bool>& heads, int64_t rows, std::byte* q,
                              std::vector<comm::BlockExchange::Piece>& to) const {
  const int64_t head_bytes = q_row_bytes() / shared_.shape.heads;
  for (int64_t r = 0; r < rows; ++r) {
    for (auto begin = heads.begin(), end = begin; (begin = std::find(end, heads.end(), true)) != heads.end();) {
      end = std::find(begin, heads.end(), false);
      to.push_back({q + r * q_row_bytes() + (begin - heads.begin()) * head_bytes, (end - begin) * head_bytes / kWord});
    }
  }
}

bool LongRows::queries_are_here() { return exchange_.received(queries_.tag); }

void LongRows::finish_queries() { exchange_.finish_receives(queries_.tag); }

int64_t LongRows::packed_bytes(const plan::LongRow& row) const {
  return states_of(row) * (shared_.shape.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

void LongRows::append_parts(int64_t piece, const Layout& layout, const States& states, std::vector<kernels::StateBlock>& to) const {
  const plan::LongRow& row = row_of(piece);
  for (const Interval& part : plan::parts_of(shared_, shared_.pieces[static_cast<size_t>(piece)])) {
    to.push_back({.heads = shared_.shape.heads,
                  .head_dim = shared_.shape.head_dim,
                  .first_row = layout.state_row.at({row.block, part.begin}),
                  .rows = blocks_.rows(row.block),
                  .head_list = heads_[static_cast<size_t>(row.group)],
                  .m = states.m,
                  .l = states.l,
                  .o = states.o});
  }
}

void LongRows::make_room(const std::vector<plan::Stripe>& stripes) {
  if (coming_) return;  // a run before has made it
  int64_t most_leaving = 0, most = 0, all = 0;
  size_t most_pieces = 1;  // of a stripe
  place_.clear();
  for (const plan::Stripe& stripe : stripes) {
    int64_t leaving = 0;
    size_t pieces = 0;
    for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
      const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
      const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(piece.row)];
      const bool is_home = shared_.partition.rank_of(row.block) == rank_;
      if (!is_home && piece.rank != rank_) continue;
      most = std::max(most, packed_bytes(row));
      if (!is_home || piece.rank != rank_) ++pieces;
      if (!is_home) leaving += packed_bytes(row);
      if (!is_home || !place_.emplace(piece.row, all).second) continue;
      constexpr int64_t kAlignment = 256;
      all += (packed_bytes(row) + kAlignment - 1) / kAlignment * kAlignment;
    }
    most_leaving = std::max(most_leaving, leaving);
    most_pieces = std::max(most_pieces, pieces);
  }
  if (most == 0) return;
  piece_bytes_ = most;
  together_ = device_.memory_is_host() ? kTogetherOnHost : std::min(kTogetherOnGpu, most_pieces);
  if (all > 0 && !states_) states_ = device_.allocate(all);
  // All of others' pieces come at once where they are merged late: until then nobody would ask for more of them.
  const auto is_long = [](const plan::Stripe& stripe) { return stripe.is_long(); };
  const auto batch = std::find_if(stripes.begin(), stripes.end(), is_long);
  // Decided by the whole job, so that one which goes on merges as it began.
  if (!device_.memory_is_host() && shared_.batches.size() == 1 && batch != stripes.end()) {
    const int64_t most_bytes = std::min(int64_t{256} << 20, shared_.options.memory / 16);
    const int64_t states = (layout(*batch).state_rows * shared_.shape.heads + 3) / 4 * 4;  // so that o is aligned to 16 bytes, as m
    const int64_t bytes = states * (shared_.shape.head_dim + 2) * kWord;
    if (bytes + static_cast<int64_t>(most_pieces) * most <= most_bytes) {
      piece_states_ = device_.allocate(bytes);
      piece_states_count_ = states;
      together_ = most_pieces;
    }
  }
  const auto room = static_cast<int64_t>(together_) * piece_bytes_;
  passing_ = device_.allocate(room + (together_ > 1 ? piece_bytes_ : 0));
  coming_ = device_.allocate_host(piece_states_ ? room : 2 * room);
  if (most_leaving > 0) leaving_ = device_.allocate_host(most_leaving);
}

std::optional<LongRows::States> LongRows::own_states() const {
  if (!piece_states_) return std::nullopt;
  auto* const m = reinterpret_cast<float*>(piece_states_.get());
  return States{m, m + piece_states_count_, m + 2 * piece_states_count_};
}

const plan::LongRow& LongRows::row_of(int64_t piece) const {
  return shared_.long_rows[static_cast<size_t>(shared_.pieces[static_cast<size_t>(piece)].row)];
}

int LongRows::home_of(int64_t piece) const { return shared_.partition.rank_of(row_of(piece).block); }

int64_t LongRows::pack(std::span<const int64_t> pieces, const Layout& layout, const States& states, std::byte* into) {
  std::vector<std::vector<kernels::StateBlock>> parts(pieces.size());
  std::vector<kernels::MergeBlocks> all;
  int64_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    append_parts(pieces[i], layout, states, parts[i]);
    all.push_back({parts[i], reinterpret_cast<float*>(into + bytes)});
    bytes += packed_bytes(row_of(pieces[i]));
  }
  device_.merge_blocks(all);
  return bytes;
}

std::vector<int64_t> LongRows::leaving_of(const plan::Stripe& stripe) const {
  std::vector<int64_t> leaving;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p)
    if (home_of(p) != rank_ && shared_.pieces[static_cast<size_t>(p)].rank == rank_) leaving.push_back(p);
  return leaving;
}

std::byte* LongRows::send(std::span<const int64_t> pieces, std::byte* from) {
  for (const int64_t piece : pieces) {
    const int64_t bytes = packed_bytes(row_of(piece));
    exchange_.start(tag_of(piece), {}, message(home_of(piece), from, bytes));
    sending_.push_back(tag_of(piece));
    from += bytes;
  }
  return from;
}

void LongRows::pack_states(const plan::Stripe& stripe, const Layout& layout, const States& states) {
  std::vector<int64_t> leaving = leaving_of(stripe);
  if (leaving.empty()) return;
  device_.start_download(passing_.get(), pack(leaving, layout, states, passing_.get()), leaving_.get());
  packed_ = std::move(leaving), is_packed_ = true;
}

bool LongRows::send_packed() {
  if (!packed_.empty() && device_.is_downloaded()) send(std::exchange(packed_, {}), leaving_.get());
  return packed_.empty();
}

void LongRows::progress() {
  send_packed();
  exchange_.progress();
}

void LongRows::send_states(const plan::Stripe& stripe, const Layout& layout, const States& states) {
  exchange_.finish_sends(queries_.tag);  // they had the time of the stripe
  queries_.only_leaving.clear();
  const bool is_packed = std::exchange(is_packed_, false);
  if (!is_packed) finish_sending();  // of the last stripe: its memory is used again
  pieces_ = stripe.pieces;
  others_.clear();
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p)
    if (home_of(p) == rank_ && shared_.pieces[static_cast<size_t>(p)].rank != rank_) others_.push_back(p);
  post(0);
  if (is_packed) return;
  const std::vector<int64_t> leaving = leaving_of(stripe);
  std::byte* to = leaving_.get();
  for (size_t first = 0; first < leaving.size(); first += together_) {
    const auto pieces = std::span(leaving).subspan(first, std::min(leaving.size() - first, together_));
    device_.download(passing_.get(), pack(pieces, layout, states, passing_.get()), to);
    to = send(pieces, to);
  }
}

// Of the pieces of others, those that come together lie at the same places in coming_ and, once here, in passing_.
int64_t LongRows::place_together(size_t other) const { return static_cast<int64_t>(other % together_) * piece_bytes_; }
std::byte* LongRows::coming(size_t other) const {
  return coming_.get() + static_cast<int64_t>(other / together_ % 2 * together_) * piece_bytes_;  // late: all are in the first half
}

void LongRows::post(size_t first) {
  for (size_t i = first; i < std::min(others_.size(), first + together_); ++i) {
    const int peer = shared_.pieces[static_cast<size_t>(others_[i])].rank;
    exchange_.start(tag_of(others_[i]), message(peer, coming(i) + place_together(i), packed_bytes(row_of(others_[i]))), {});
  }
}

// Where all of others' pieces have come: together with the own ones, row by row.
void LongRows::merge_at_once(const Layout& layout, const States& states_of_stripe) {
  hand_over();  // and what is packed is in passing_ till then
  for (const int64_t other : others_) exchange_.finish_receives(tag_of(other));
  if (!others_.empty())
    device_.start_upload(coming(0), place_together(others_.size() - 1) + packed_bytes(row_of(others_.back())), passing_.get());
  std::map<int, std::vector<kernels::StateBlock>> blocks;  // by long row, in ascending order of keys, as the pieces are
  size_t taken = 0;
  for (int64_t p = pieces_.begin; p < pieces_.end; ++p) {
    if (home_of(p) != rank_) continue;
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = row_of(p);
    if (piece.rank == rank_) {
      append_parts(p, layout, states_of_stripe, blocks[piece.row]);
      continue;
    }
    auto* const packed = reinterpret_cast<float*>(passing_.get() + place_together(taken++));
    const auto heads = heads_[static_cast<size_t>(row.group)].size();
    blocks[piece.row].push_back({.heads = static_cast<int>(heads),
                                 .head_dim = shared_.shape.head_dim,
                                 .rows = blocks_.rows(row.block),
                                 .head_list = std::span(all_heads_).first(heads),
                                 .m = packed,
                                 .l = packed + states_of(row),
                                 .o = packed + 2 * states_of(row)});
  }
  std::vector<kernels::MergeBlocks> all;
  for (const auto& [row, of_row] : blocks) {
    merged_[row] = reinterpret_cast<float*>(states_.get() + place_.at(row));
    all.push_back({of_row, merged_.at(row)});
  }
  device_.merge_blocks(all);
}

bool LongRows::states_are_here() {
  return std::all_of(others_.begin(), others_.end(), [this](int64_t piece) { return exchange_.received(tag_of(piece)); });
}

void LongRows::merge_states(const Layout& layout, const States& states_of_stripe) {
  if (piece_states_) {
    merge_at_once(layout, states_of_stripe);
    return;
  }
  std::byte* packed = passing_.get() + (together_ > 1 ? static_cast<int64_t>(together_) * piece_bytes_ : 0);  // an own piece meanwhile
  // Pieces are in ascending order of keys for every row, so merging them as they stand is the order wanted.
  size_t taken = 0;
  for (int64_t p = pieces_.begin; p < pieces_.end; ++p) {
    if (home_of(p) != rank_) continue;
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = row_of(p);
    const bool is_first = merged_.count(piece.row) == 0;
    std::byte* own = states_.get() + place_.at(piece.row);
    const std::byte* part = nullptr;
    if (piece.rank == rank_) {
      part = is_first ? own : packed;
      pack({&p, 1}, layout, states_of_stripe, const_cast<std::byte*>(part));
    } else {
      if (taken % together_ == 0) {
        const size_t end = std::min(others_.size(), taken + together_);
        for (size_t i = taken; i < end; ++i) exchange_.finish_receives(tag_of(others_[i]));
        post(end);  // the next ones come while these are merged
        device_.upload(coming(taken), place_together(end - 1) + packed_bytes(row_of(others_[end - 1])), passing_.get());
      }
      part = passing_.get() + place_together(taken++);
    }
    const int64_t states = states_of(row);
    const auto* from = reinterpret_cast<const float*>(part);
    auto* into = reinterpret_cast<float*>(own);
    if (is_first) merged_.emplace(piece.row, into);
    if (part == own) continue;
    if (is_first) device_.clear_states(states, shared_.shape.head_dim, into, into + states, into + 2 * states);
    device_.merge({shared_.shape.head_dim, states, from, from + states, from + 2 * states, into, into + states, into + 2 * states});
  }
}

void LongRows::hand_over() {
  while (!send_packed()) std::this_thread::yield();
}

void LongRows::finish_sending() {
  hand_over();
  for (int tag : sending_) exchange_.finish_sends(tag);
  sending_.clear();
}

void LongRows::give_room_back() {
  if (!device_.memory_is_host() || !coming_) return;
  finish_sending();
  leaving_.reset();
  coming_.reset();
}

std::set<int64_t> LongRows::own_blocks() const {
  std::set<int64_t> blocks;
  for (const auto& [row, place] : place_) blocks.insert(shared_.long_rows[static_cast<size_t>(row)].block);
  return blocks;
}

void LongRows::finish(const std::vector<std::pair<int64_t, int64_t>>& blocks, const kernels::Results& results) const {
  const Shape& shape = shared_.shape;
  const auto element = static_cast<int64_t>(size_of(results.type));
  std::vector<kernels::Finish> rows;
  for (const auto& [block, row] : blocks) {
    const int64_t first = row * shape.heads;
    for (const auto& [number, states] : merged_) {
      const plan::LongRow& long_row = shared_.long_rows[static_cast<size_t>(number)];
      if (long_row.block != block) continue;
      const int64_t count = states_of(long_row);
      rows.push_back({.heads = shape.heads,
                      .head_dim = shape.head_dim,
                      .rows = blocks_.rows(block),
                      .m = states,
                      .l = states + count,
                      .o = states + 2 * count,
                      .output_type = results.type,
                      .out = results.o + first * shape.head_dim * element,
                      .lse = results.lse + first,
                      .head_list = heads_[static_cast<size_t>(long_row.group)]});
    }
  }
  device_.finish(rows);
}

}  // namespace longspan::engine
