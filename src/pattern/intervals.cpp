#include "pattern/intervals.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace longspan {

Intervals normalised(Intervals any) {
  const auto ascending = [](const Interval& a, const Interval& b) { return a.begin < b.begin; };
  if (!std::is_sorted(any.begin(), any.end(), ascending)) std::sort(any.begin(), any.end(), ascending);
  Intervals set;
  for (const Interval& interval : any) append(set, interval);
  return set;
}

Intervals unite(const Intervals& a, const Intervals& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  Intervals set;
  set.reserve(a.size() + b.size());
  size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    const bool take_a = j == b.size() || (i < a.size() && a[i].begin <= b[j].begin);
    append(set, take_a ? a[i++] : b[j++]);
  }
  return set;
}

Intervals intersect(const Intervals& a, const Intervals& b) {
  Intervals set;
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    append(set, overlap(a[i], b[j]));
    if (a[i].end < b[j].end) {
      ++i;
    } else {
      ++j;
    }
  }
  return set;
}

Intervals subtract(const Intervals& a, const Intervals& b) {
  Intervals set;
  size_t j = 0;
  for (Interval rest : a) {
    while (j < b.size() && b[j].end <= rest.begin) ++j;
    for (size_t k = j; k < b.size() && b[k].begin < rest.end; ++k) {
      append(set, {rest.begin, b[k].begin});
      rest.begin = std::max(rest.begin, b[k].end);
    }
    append(set, rest);
  }
  return set;
}

Intervals clipped(const Intervals& a, Interval clip) {
  Intervals set;
  auto first = std::partition_point(a.begin(), a.end(), [&](const Interval& x) { return x.end <= clip.begin; });
  for (; first != a.end() && first->begin < clip.end; ++first) append(set, overlap(*first, clip));
  return set;
}

Intervals complement(const Intervals& a, Interval within) { return subtract(within.empty() ? Intervals{} : Intervals{within}, a); }

int64_t size_of(const Intervals& set) {
  int64_t size = 0;
  for (const Interval& interval : set) size += interval.length();
  return size;
}

bool contains(const Intervals& set, int64_t x) {
  const auto next = std::partition_point(set.begin(), set.end(), [&](const Interval& interval) { return interval.end <= x; });
  return next != set.end() && next->begin <= x;
}

Intervals first_of(const Intervals& set, int64_t count) {
  Intervals first;
  for (const Interval& interval : set) {
    if (count <= 0) break;
    append(first, {interval.begin, std::min(interval.end, interval.begin + count)});
    count -= interval.length();
  }
  return first;
}

Numbering::Numbering(Intervals set) : set_(std::move(set)) {
  for (const Interval& run : set_) {
    before_.push_back(count_);
    count_ += run.length();
  }
}

int64_t Numbering::of(int64_t x) const {
  const auto next = std::upper_bound(set_.begin(), set_.end(), x, [](int64_t value, const Interval& run) { return value < run.begin; });
  if (next == set_.begin() || !std::prev(next)->contains(x)) return -1;
  return before_[static_cast<size_t>(next - set_.begin()) - 1] + x - std::prev(next)->begin;
}

}  // namespace longspan
