#include "plan/partition.hpp"

#include <algorithm>

namespace longspan::plan {

std::optional<PartitionKind> partition_kind_named(std::string_view name) {
  for (PartitionKind kind : {PartitionKind::automatic, PartitionKind::contiguous, PartitionKind::zigzag, PartitionKind::balanced})
    if (name_of(kind) == name) return kind;
  return std::nullopt;
}

std::optional<ExchangeKind> exchange_kind_named(std::string_view name) {
  for (ExchangeKind kind : {ExchangeKind::automatic, ExchangeKind::flat, ExchangeKind::node})
    if (name_of(kind) == name) return kind;
  return std::nullopt;
}

Partition Partition::contiguous(int64_t blocks, int ranks) {
  std::vector<int64_t> bounds;
  std::vector<int> owners;
  for (int rank = 0; rank <= ranks; ++rank) bounds.push_back(blocks * rank / ranks);
  for (int rank = 0; rank < ranks; ++rank) owners.push_back(rank);
  return {PartitionKind::contiguous, ranks, std::move(bounds), std::move(owners)};
}

Partition Partition::zigzag(int64_t blocks, int ranks) {
  const int chunks = 2 * ranks;
  std::vector<int64_t> bounds;
  std::vector<int> owners;
  for (int chunk = 0; chunk <= chunks; ++chunk) bounds.push_back(blocks * chunk / chunks);
  for (int chunk = 0; chunk < chunks; ++chunk) owners.push_back(chunk < ranks ? chunk : chunks - 1 - chunk);
  return {PartitionKind::zigzag, ranks, std::move(bounds), std::move(owners)};
}

Partition Partition::balanced(std::vector<int64_t> bounds) {
  const int ranks = static_cast<int>(bounds.size()) - 1;
  std::vector<int> owners;
  for (int rank = 0; rank < ranks; ++rank) owners.push_back(rank);
  return {PartitionKind::balanced, ranks, std::move(bounds), std::move(owners)};
}

int Partition::rank_of(int64_t block) const {
  const auto chunk = std::upper_bound(bounds_.begin(), bounds_.end(), block) - bounds_.begin() - 1;
  return owners_[static_cast<size_t>(chunk)];
}

Intervals Partition::blocks_of(int rank) const {
  const auto chunk = [&](int c) { return Interval{bounds_[static_cast<size_t>(c)], bounds_[static_cast<size_t>(c) + 1]}; };
  Intervals blocks;
  append(blocks, chunk(rank));
  if (kind_ == PartitionKind::zigzag) append(blocks, chunk(2 * ranks_ - 1 - rank));
  return blocks;
}

int64_t Partition::most_blocks() const {
  int64_t most = 0;
  for (int rank = 0; rank < ranks_; ++rank) most = std::max(most, size_of(blocks_of(rank)));
  return most;
}

}  // namespace longspan::plan
