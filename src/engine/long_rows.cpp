#include "engine/long_rows.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

namespace longspan::engine {

namespace {

constexpr int64_t kWord = 4;
constexpr int kTags = 1 << 19;         // queries use tags [0, kTags), states [kTags, 2·kTags)
constexpr size_t kStatesInFlight = 1;  // received while one is merged: what the plan has room for

}  // namespace

LongRows::LongRows(const comm::Communicator& ranks, const plan::Shared& shared, const pattern::BoundPattern& pattern,
                   const plan::Blocks& blocks, int rank, kernels::Device& device)
    : shared_(shared), pattern_(pattern), blocks_(blocks), rank_(rank), exchange_(ranks, kWord), device_(device) {
  for (const pattern::HeadGroup& group : pattern.groups()) heads_.emplace_back(group.heads.begin(), group.heads.end());
}

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

int64_t LongRows::packed_bytes(const plan::LongRow& row) const {
  return states_of(row) * (shared_.shape.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

kernels::StateBlock LongRows::block_of(const plan::LongRow& row, int64_t state_row, float* m, float* l, float* o) const {
  return {.heads = shared_.shape.heads,
          .head_dim = shared_.shape.head_dim,
          .first_row = state_row,
          .rows = blocks_.rows(row.block),
          .head_list = heads_[static_cast<size_t>(row.group)],
          .m = m,
          .l = l,
          .o = o};
}

void LongRows::bring_states_home(const plan::Stripe& stripe, const Layout& layout, float* m, float* l, float* o) {
  const auto tag_of = [](int64_t piece) { return kTags + static_cast<int>(piece % kTags); };
  const auto message = [](int peer, std::vector<std::byte>& bytes) {
    return std::vector<comm::BlockExchange::Message>{{peer, {{bytes.data(), static_cast<int64_t>(bytes.size()) / kWord}}}};
  };
  // Own rows that have no merged states yet lie side by side. What is packed, sent or merged otherwise passes through one buffer.
  std::map<int, int64_t> place;  // by long row
  int64_t all = 0, most = 1;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const int number = shared_.pieces[static_cast<size_t>(p)].row;
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(number)];
    most = std::max(most, packed_bytes(row));
    if (shared_.partition.rank_of(row.block) != rank_ || merged_.count(number) != 0 || !place.emplace(number, all).second) continue;
    constexpr int64_t kAlignment = 256;
    all += (packed_bytes(row) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::byte* own = all > 0 ? states_.emplace_back(device_.allocate(all)).get() : nullptr;
  if (passing_bytes_ < most) passing_ = device_.allocate(most), passing_bytes_ = most;
  const auto pack = [&](const plan::Piece& piece, const plan::LongRow& row, std::byte* to) {
    device_.pack_states(block_of(row, layout.state_row.at({row.block, piece.key_blocks.begin}), m, l, o), reinterpret_cast<float*>(to));
  };

  std::map<int64_t, std::vector<std::byte>> leaving, coming;  // by piece, in host memory
  std::vector<int64_t> others;                                // pieces that other ranks have computed for this one
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(piece.row)];
    const int home = shared_.partition.rank_of(row.block);
    if (home == rank_) {
      if (piece.rank != rank_) others.push_back(p);
    } else if (piece.rank == rank_) {
      pack(piece, row, passing_.get());
      leaving[p].resize(static_cast<size_t>(packed_bytes(row)));
      device_.download(passing_.get(), packed_bytes(row), leaving[p].data());
      exchange_.start(tag_of(p), {}, message(home, leaving[p]));
    }
  }
  // Pieces are in ascending order of keys for every row, so merging them as they stand is the order wanted.
  size_t posted = 0;
  const auto post = [&] {
    const int64_t p = others[posted++];
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    coming[p].resize(static_cast<size_t>(packed_bytes(shared_.long_rows[static_cast<size_t>(piece.row)])));
    exchange_.start(tag_of(p), message(piece.rank, coming[p]), {});
  };
  while (posted < std::min(others.size(), kStatesInFlight)) post();
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const plan::Piece& piece = shared_.pieces[static_cast<size_t>(p)];
    const plan::LongRow& row = shared_.long_rows[static_cast<size_t>(piece.row)];
    if (shared_.partition.rank_of(row.block) != rank_) continue;
    const auto found = merged_.find(piece.row);
    std::byte* part = found == merged_.end() ? own + place.at(piece.row) : passing_.get();
    if (piece.rank == rank_) {
      pack(piece, row, part);
    } else {
      exchange_.finish_receives(tag_of(p));
      device_.upload(coming.at(p).data(), packed_bytes(row), part);
      coming.erase(p);
      if (posted < others.size()) post();
    }
    if (found == merged_.end()) {
      merged_.emplace(piece.row, reinterpret_cast<float*>(part));
      continue;
    }
    const int64_t states = states_of(row);
    float* into = found->second;
    const auto* from = reinterpret_cast<const float*>(part);
    device_.merge({shared_.shape.head_dim, states, from, from + states, from + 2 * states, into, into + states, into + 2 * states});
  }
  for (const auto& [p, bytes] : leaving) exchange_.finish_sends(tag_of(p));
}

bool LongRows::has_states(int64_t block) const {
  return std::any_of(merged_.begin(), merged_.end(),
                     [&](const auto& merged) { return shared_.long_rows[static_cast<size_t>(merged.first)].block == block; });
}

bool LongRows::put_states(int64_t block, int64_t row, float* m, float* l, float* o) const {
  bool any = false;
  for (const auto& [number, states] : merged_) {
    const plan::LongRow& long_row = shared_.long_rows[static_cast<size_t>(number)];
    if (long_row.block != block) continue;
    device_.unpack_states(block_of(long_row, row, m, l, o), states);
    any = true;
  }
  return any;
}

}  // namespace longspan::engine
