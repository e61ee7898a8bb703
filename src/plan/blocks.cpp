#include "plan/blocks.hpp"

#include <algorithm>

namespace longspan::plan {

Blocks::Blocks(const Documents& documents) {
  Run open;  // the shared block that is being filled
  open.shared = true;
  const auto close = [&] {
    if (open.tokens.empty()) return;
    open.first_block = count_;
    open.blocks = 1;
    runs_.push_back(open);
    ++count_;
    open.tokens = {};
  };
  for (int64_t document = 0; document < documents.count(); ++document) {
    const int64_t begin = documents.begin(document), length = documents.length(document);
    if (length == 0) continue;
    if (length >= kBlock) {
      close();
      const int64_t blocks = (length + kBlock - 1) / kBlock;
      runs_.push_back({count_, blocks, {begin, begin + length}, {document, document + 1}, false});
      count_ += blocks;
      continue;
    }
    if (open.tokens.length() + length > kBlock) close();
    if (open.tokens.empty()) open.tokens = {begin, begin}, open.documents.begin = document;
    open.tokens.end = begin + length;
    open.documents.end = document + 1;
  }
  close();
}

const Blocks::Run& Blocks::run_of(int64_t block) const {
  if (runs_.size() == 1) return runs_.front();
  return *std::prev(std::upper_bound(runs_.begin(), runs_.end(), block, [](int64_t b, const Run& run) { return b < run.first_block; }));
}

Interval Blocks::tokens(int64_t block) const {
  const Run& run = run_of(block);
  const int64_t begin = run.tokens.begin + (block - run.first_block) * kBlock;
  return {begin, std::min(begin + kBlock, run.tokens.end)};
}

Intervals Blocks::tokens(const Intervals& blocks) const {
  Intervals of_runs;
  for (const Interval& run : blocks) of_runs.push_back({tokens(run.begin).begin, tokens(run.end - 1).end});
  return of_runs;
}

std::vector<int32_t> Blocks::rows(const Intervals& blocks) const {
  std::vector<int32_t> all;
  all.reserve(static_cast<size_t>(size_of(blocks)));
  for (const Interval& part : blocks) {
    for (int64_t block = part.begin; block < part.end;) {
      const Run& run = run_of(block);
      const int64_t end = run.first_block + run.blocks, stop = std::min(part.end, end);
      all.insert(all.end(), static_cast<size_t>(stop - block), static_cast<int32_t>(kBlock));
      if (stop == end) all.back() = rows(end - 1);  // which may be short
      block = stop;
    }
  }
  return all;
}

int64_t Blocks::holding(int64_t token) const {
  const auto next = std::upper_bound(runs_.begin(), runs_.end(), token, [](int64_t t, const Run& run) { return t < run.tokens.begin; });
  const Run& run = *std::prev(next);
  return run.first_block + (token - run.tokens.begin) / kBlock;
}

Interval Blocks::reach(int64_t block) const {
  const Run& run = run_of(block);
  return {run.first_block, run.first_block + run.blocks};
}

}  // namespace longspan::plan
