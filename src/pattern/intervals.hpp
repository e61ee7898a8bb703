// Sets of integers as sorted, disjoint, non-touching half-open intervals, and their algebra. The currency of the plan:
// keys that a block of rows looks at, blocks that a rank needs, blocks that it holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace longspan {

struct Interval {
  int64_t begin = 0, end = 0;  // half-open; empty when end <= begin
  int64_t length() const { return end > begin ? end - begin : 0; }
  bool empty() const { return end <= begin; }
  bool contains(int64_t x) const { return begin <= x && x < end; }
  bool operator==(const Interval&) const = default;
};

inline Interval overlap(Interval a, Interval b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Sorted by begin, disjoint, and never touching (…,5) [5,…): two sets are equal exactly when their vectors are.
using Intervals = std::vector<Interval>;

// Appends `next`, which begins at or after the last interval's begin, and merges it if they overlap or touch. Empty ones are dropped.
// Here, with overlap(), because the lists of a plan are made of little else.
inline void append(Intervals& set, Interval next) {
  if (next.empty()) return;
  if (!set.empty() && next.begin <= set.back().end) {
    set.back().end = std::max(set.back().end, next.end);
  } else {
    set.push_back(next);
  }
}

// Any order, overlaps allowed -> a proper set.
Intervals normalised(Intervals any);

Intervals unite(const Intervals& a, const Intervals& b);
Intervals intersect(const Intervals& a, const Intervals& b);
Intervals subtract(const Intervals& a, const Intervals& b);
Intervals clipped(const Intervals& a, Interval clip);
// All of `within` that is not in `a`.
Intervals complement(const Intervals& a, Interval within);
int64_t size_of(const Intervals& set);
bool contains(const Intervals& set, int64_t x);
// The first `count` integers of the set.
Intervals first_of(const Intervals& set, int64_t count);

// Counts the integers of a set from 0 on: of {[10, 12), [20, 30)}, 11 is number 1 and 20 number 2.
class Numbering {
 public:
  Numbering() = default;
  explicit Numbering(Intervals set);
  int64_t count() const { return count_; }
  int64_t of(int64_t x) const;  // −1 if it is not in the set

 private:
  Intervals set_;
  std::vector<int64_t> before_;  // integers before each interval
  int64_t count_ = 0;
};

}  // namespace longspan
