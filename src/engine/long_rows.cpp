#include "engine/long_rows.hpp"

#include <cstring>
#include <memory>
#include <set>

namespace longspan::engine {

namespace {

constexpr int64_t kWord = 4;
constexpr int kTags = 1 << 19;         // queries use tags [0, kTags), states [kTags, 2·kTags)
constexpr size_t kStatesInFlight = 2;  // received ahead of the merge

}  // namespace

LongRows::LongRows(const comm::Communicator& ranks, const plan::Shared& shared, const pattern::BoundPattern& pattern,
                   const plan::Blocks& blocks, int rank)
    : shared_(shared), pattern_(pattern), blocks_(blocks), rank_(rank), exchange_(ranks, kWord) {}

int64_t LongRows::states_of(const plan::LongRow& row) const {
  return blocks_.rows(row.block) * static_cast<int64_t>(pattern_.groups()[static_cast<size_t>(row.group)].heads.size());
}

LongRows::Layout LongRows::layout(const plan::Stripe& stripe) const {
  Layout layout;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    if (piece.rank != rank_) continue;
    const int64_t block = shared_.long_rows[static_cast<size_t>(piece.row)].block;
    const int64_t rows = blocks_.rows(block);
    if (layout.q_row.emplace(block, layout.q_rows).second) layout.q_rows += rows;
    if (layout.state_row.emplace(std::pair(block, piece.key_blocks.begin), layout.state_rows).second) layout.state_rows += rows;
  }
  return layout;
}

void LongRows::bring_queries(const plan::Stripe& stripe, const Layout& layout, Input& input, std::byte* q) {
  const Shape& shape = shared_.shape;
  const auto head_bytes = static_cast<int64_t>(size_of(shape.type)) * shape.head_dim;
  // Which ranks need the queries of which long row.
  std::map<int, std::set<int>> receivers;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    receivers[piece.row].insert(piece.rank);
  }
  struct Packed {
    int row, peer, tag;
    bool incoming;
    std::shared_ptr<std::vector<std::byte>> bytes;  // one copy for all peers
  };
  std::vector<Packed> messages;
  std::vector<std::byte> all;  // the queries of one own block, all heads: the rows of its groups stand side by side
  int64_t block_of_all = -1;
  for (const auto& [number, ranks] : receivers) {
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(number)];
    const int home = shared_.partition.rank_of(row.block);
    const int64_t rows = blocks_.rows(row.block);
    const std::vector<int>& heads = pattern_.groups()[static_cast<size_t>(row.group)].heads;
    const int64_t bytes = states_of(row) * head_bytes;
    const int tag = number % kTags;
    if (home == rank_) {
      if (block_of_all != row.block) {
        all.resize(static_cast<size_t>(rows * shape.heads * head_bytes));
        input.read_q(blocks_.tokens(row.block).begin, rows, all.data());
        block_of_all = row.block;
      }
      const auto packed = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(bytes));
      std::byte* to = packed->data();
      for (int64_t r = 0; r < rows; ++r)
        for (int head : heads)
          std::memcpy(to, all.data() + (r * shape.heads + head) * head_bytes, static_cast<size_t>(head_bytes)), to += head_bytes;
      for (int peer : ranks) messages.push_back({number, peer, tag, false, packed});
    } else if (ranks.count(rank_) != 0) {
      messages.push_back({number, home, tag, true, std::make_shared<std::vector<std::byte>>(static_cast<size_t>(bytes))});
    }
  }
  // One start per tag: all peers of a row's queries together.
  std::map<int, std::pair<std::vector<comm::BlockExchange::Message>, std::vector<comm::BlockExchange::Message>>> by_tag;
  for (Packed& message : messages) {
    if (message.peer == rank_) continue;
    auto& [receives, sends] = by_tag[message.tag];
    (message.incoming ? receives : sends)
        .push_back({message.peer, {{message.bytes->data(), static_cast<int64_t>(message.bytes->size()) / kWord}}});
  }
  for (auto& [tag, both] : by_tag) exchange_.start(tag, both.first, both.second);
  for (auto& [tag, both] : by_tag) exchange_.finish_receives(tag);
  for (const Packed& message : messages) {
    if (!message.incoming && message.peer != rank_) continue;
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(message.row)];
    const std::byte* from = message.bytes->data();
    const int64_t first = layout.q_row.at(row.block);
    for (int64_t r = 0; r < blocks_.rows(row.block); ++r) {
      for (int head : pattern_.groups()[static_cast<size_t>(row.group)].heads) {
        std::memcpy(q + ((first + r) * shape.heads + head) * head_bytes, from, static_cast<size_t>(head_bytes));
        from += head_bytes;
      }
    }
  }
  for (auto& [tag, both] : by_tag) exchange_.finish_sends(tag);
}

LongRows::State LongRows::packed(const plan::LongRow& row, int64_t state_row, const float* m, const float* l, const float* o) const {
  const std::vector<int>& heads = pattern_.groups()[static_cast<size_t>(row.group)].heads;
  const int64_t states = states_of(row), all_heads = shared_.shape.heads, head_dim = shared_.shape.head_dim;
  State state{std::vector<float>(static_cast<size_t>(states * (head_dim + 2)))};
  float* to_m = state.values.data();
  float* to_l = to_m + states;
  float* to_o = to_l + states;
  for (int64_t r = 0; r < blocks_.rows(row.block); ++r) {
    for (int head : heads) {
      const int64_t from = (state_row + r) * all_heads + head;
      *to_m++ = m[from];
      *to_l++ = l[from];
      std::memcpy(to_o, o + from * head_dim, static_cast<size_t>(head_dim) * sizeof(float));
      to_o += head_dim;
    }
  }
  return state;
}

void LongRows::bring_states_home(const plan::Stripe& stripe, const Layout& layout, const float* m, const float* l, const float* o,
                                 kernels::cpu::ThreadPool& threads) {
  const auto tag_of = [](int64_t piece) { return kTags + static_cast<int>(piece % kTags); };
  std::map<int64_t, State> mine;  // by piece
  std::vector<int64_t> sent, coming;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(piece.row)];
    const int home = shared_.partition.rank_of(row.block);
    if (piece.rank == rank_) {
      State& state = mine[p];
      state = packed(row, layout.state_row.at({row.block, piece.key_blocks.begin}), m, l, o);
      if (home == rank_) continue;
      exchange_.start(tag_of(p), {},
                      {{home, {{reinterpret_cast<std::byte*>(state.values.data()), static_cast<int64_t>(state.values.size())}}}});
      sent.push_back(p);
    } else if (home == rank_) {
      coming.push_back(p);
    }
  }
  // Pieces are in ascending order of keys for every row, so merging them as they stand is the order wanted.
  std::map<int64_t, State> arriving;
  size_t posted = 0;
  const auto post = [&] {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(coming[posted])];
    const int64_t states = states_of(shared_.long_rows[static_cast<size_t>(piece.row)]);
    State& state = arriving[coming[posted]];
    state.values.resize(static_cast<size_t>(states * (shared_.shape.head_dim + 2)));
    exchange_.start(tag_of(coming[posted]),
                    {{piece.rank, {{reinterpret_cast<std::byte*>(state.values.data()), static_cast<int64_t>(state.values.size())}}}}, {});
    ++posted;
  };
  while (posted < std::min(coming.size(), kStatesInFlight)) post();
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(piece.row)];
    if (shared_.partition.rank_of(row.block) != rank_) continue;
    State part;
    if (piece.rank == rank_) {
      part = std::move(mine.at(p));
    } else {
      exchange_.finish_receives(tag_of(p));
      part = std::move(arriving.at(p));
      arriving.erase(p);
      if (posted < coming.size()) post();
    }
    const auto found = merged_.find(piece.row);
    if (found == merged_.end()) {
      merged_.emplace(piece.row, std::move(part));
      continue;
    }
    const int64_t states = states_of(row);
    float* into = found->second.values.data();
    const float* from = part.values.data();
    kernels::cpu::merge({shared_.shape.head_dim, states, from, from + states, from + 2 * states, into, into + states, into + 2 * states},
                        threads);
  }
  for (int64_t p : sent) exchange_.finish_sends(tag_of(p));
}

void LongRows::put_states(int64_t block, int64_t row, float* m, float* l, float* o) const {
  const int64_t all_heads = shared_.shape.heads, head_dim = shared_.shape.head_dim;
  for (const auto& [number, state] : merged_) {
    const plan::LongRow& long_row = shared_.long_rows[static_cast<size_t>(number)];
    if (long_row.block != block) continue;
    const int64_t states = states_of(long_row);
    int64_t from = 0;
    for (int64_t r = 0; r < blocks_.rows(block); ++r) {
      for (int head : pattern_.groups()[static_cast<size_t>(long_row.group)].heads) {
        const int64_t to = (row + r) * all_heads + head;
        m[to] = state.values[static_cast<size_t>(from)];
        l[to] = state.values[static_cast<size_t>(states + from)];
        std::memcpy(o + to * head_dim, state.values.data() + 2 * states + from * head_dim, static_cast<size_t>(head_dim) * sizeof(float));
        ++from;
      }
    }
  }
}

}  // namespace longspan::engine
