#include "pattern/expression.hpp"

#include <algorithm>

namespace longspan::pattern {
namespace {

// Calls `ask` with the primitive itself, lists being held by pointer.
template <class Ask>
auto with(const Primitive& primitive, Ask&& ask) {
  return std::visit(
      [&](const auto& held) {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::shared_ptr<const BlockLists>>) {
          return ask(*held);
        } else {
          return ask(held);
        }
      },
      primitive);
}

constexpr int kMostCost = 3;

const BlockDistance* distances_of(const Primitive& primitive) { return std::get_if<BlockDistance>(&primitive); }

}  // namespace

Expression Expression::of(Primitive primitive) {
  Expression expression;
  expression.primitive_ = std::move(primitive);
  return expression;
}

bool Expression::is_everything() const {
  const BlockDistance* d = kind_ == Kind::primitive ? distances_of(primitive_) : nullptr;
  return d && d->distances == Intervals{{-kMaxInteger, kMaxInteger}};
}

bool Expression::is_nothing() const {
  const BlockDistance* d = kind_ == Kind::primitive ? distances_of(primitive_) : nullptr;
  return d && d->distances.empty();
}

int Expression::cost() const {
  if (kind_ == Kind::primitive) {
    switch (primitive_.index()) {
      case 1:
      case 4:
        return 3;  // a comb over the whole document
      case 5:
        return 2;  // a comb over a segment
      case 6:
        return 1;  // lists
      default:
        return 0;
    }
  }
  int most = 0;
  for (const Expression& child : children_) most = std::max(most, child.cost());
  return most;
}

Expression Expression::composed(Kind kind, std::vector<Expression> parts) {
  const bool all = kind == Kind::all_of;
  std::vector<Expression> kept;
  for (Expression& part : parts) {
    if (part.kind_ == kind) {
      std::move(part.children_.begin(), part.children_.end(), std::back_inserter(kept));
    } else {
      kept.push_back(std::move(part));
    }
  }
  std::vector<Expression> joined;
  for (Expression& part : kept) {
    if (all ? part.is_everything() : part.is_nothing()) continue;
    if (all ? part.is_nothing() : part.is_everything()) return all ? nothing() : everything();
    const BlockDistance* own = part.kind_ == Kind::primitive ? distances_of(part.primitive_) : nullptr;
    const auto same_block = [&](const Expression& other) {
      const BlockDistance* d = other.kind_ == Kind::primitive ? distances_of(other.primitive_) : nullptr;
      return own && d && d->block == own->block;
    };
    const auto partner = std::find_if(joined.begin(), joined.end(), same_block);
    if (partner == joined.end()) {
      joined.push_back(std::move(part));
      continue;
    }
    auto& d = std::get<BlockDistance>(partner->primitive_);
    d.distances = all ? intersect(d.distances, own->distances) : unite(d.distances, own->distances);
    if (all ? partner->is_nothing() : partner->is_everything()) return all ? nothing() : everything();
  }
  if (joined.empty()) return all ? everything() : nothing();
  if (joined.size() == 1) return std::move(joined.front());
  // Cheap ones first: what they leave of the clip is all that the others are asked for.
  Expression expression;
  expression.kind_ = kind;
  std::vector<int> costs;
  for (const Expression& part : joined) costs.push_back(part.cost());
  for (int cost = 0; cost <= kMostCost; ++cost) {
    for (size_t k = 0; k < joined.size(); ++k)
      if (costs[k] == cost) expression.children_.push_back(std::move(joined[k]));
  }
  return expression;
}

Expression Expression::all_of(std::vector<Expression> parts) { return composed(Kind::all_of, std::move(parts)); }
Expression Expression::any_of(std::vector<Expression> parts) { return composed(Kind::any_of, std::move(parts)); }

Expression Expression::none_of(Expression part) {
  if (part.kind_ == Kind::none_of) return Expression(std::move(part.children_.front()));
  if (part.kind_ == Kind::primitive) {
    if (auto* d = std::get_if<BlockDistance>(&part.primitive_)) {
      d->distances = complement(d->distances, {-kMaxInteger, kMaxInteger});
      return part;
    }
  }
  Expression expression;
  expression.kind_ = Kind::none_of;
  expression.children_.push_back(std::move(part));
  return expression;
}

bool Expression::allowed(const Where& where, int64_t i, int64_t j) const {
  const auto child_allows = [&](const Expression& child) { return child.allowed(where, i, j); };
  switch (kind_) {
    case Kind::primitive:
      return with(primitive_, [&](const auto& own) { return own.allowed(where, i, j); });
    case Kind::all_of:
      return std::all_of(children_.begin(), children_.end(), child_allows);
    case Kind::any_of:
      return std::any_of(children_.begin(), children_.end(), child_allows);
    case Kind::none_of:
      break;
  }
  return !child_allows(children_.front());
}

KeySets Expression::keys(const Where& where, Interval rows, Interval clip) const {
  KeySets sets;
  if (kind_ == Kind::primitive) {
    with(primitive_, [&](const auto& own) { own.keys(where, rows, clip, sets); });
    return sets;
  }
  const bool single = rows.length() == 1;
  if (kind_ == Kind::none_of) {
    const KeySets inner = children_.front().keys(where, rows, clip);
    if (single) {
      sets.may = complement(inner.may, clip);
    } else {
      sets.may = complement(inner.must, clip);
      sets.must = complement(inner.may, clip);
    }
    return sets;
  }
  sets = children_.front().keys(where, rows, clip);
  Interval open = clip;  // the part of the clip in which further children can change anything
  for (size_t k = 1; k < children_.size(); ++k) {
    if (kind_ == Kind::all_of) {
      if (sets.may.empty()) return {};
      open = {sets.may.front().begin, sets.may.back().end};
      KeySets next = children_[k].keys(where, rows, open);
      // One interval is all of `open`, and the next child answered for just that.
      sets.may = sets.may.size() == 1 ? std::move(next.may) : intersect(sets.may, next.may);
      if (!single) sets.must = intersect(sets.must, next.must);
    } else {
      const Intervals& sure = single ? sets.may : sets.must;
      if (!sure.empty() && sure.front().begin <= open.begin) open.begin = sure.front().end;
      if (!sure.empty() && sure.back().end >= open.end) open.end = sure.back().begin;
      if (open.empty()) return sets;
      const KeySets next = children_[k].keys(where, rows, open);
      sets.may = unite(sets.may, next.may);
      if (!single) sets.must = unite(sets.must, next.must);
    }
  }
  return sets;
}

Coverage Expression::coverage(const Where& where, const Corner& tile) const {
  if (kind_ == Kind::primitive) return with(primitive_, [&](const auto& own) { return own.coverage(where, tile); });
  if (kind_ == Kind::none_of) {
    const Coverage inner = children_.front().coverage(where, tile);
    return inner == Coverage::none ? Coverage::all : inner == Coverage::all ? Coverage::none : Coverage::some;
  }
  const Coverage absorbing = kind_ == Kind::all_of ? Coverage::none : Coverage::all;
  bool some = false;
  for (const Expression& child : children_) {
    const Coverage own = child.coverage(where, tile);
    if (own == absorbing) return absorbing;
    some |= own == Coverage::some;
  }
  return some ? Coverage::some : kind_ == Kind::all_of ? Coverage::all : Coverage::none;
}

void Expression::fill(const Where& where, const Corner& tile, TileBits& bits) const {
  const auto rows = static_cast<size_t>(tile.rows.length());
  if (kind_ == Kind::primitive) {
    bits = TileBits{};
    with(primitive_, [&](const auto& own) { own.fill(where, tile, bits); });
    return;
  }
  if (kind_ == Kind::none_of) {
    children_.front().fill(where, tile, bits);
    for (size_t r = 0; r < rows; ++r) bits.rows[r] = {~bits.rows[r][0], ~bits.rows[r][1]};
    return;
  }
  bool first = true;
  for (const Expression& child : children_) {
    if (child.coverage(where, tile) != Coverage::some) continue;  // neutral: an absorbing child would have decided the tile
    if (first) {
      child.fill(where, tile, bits);
      first = false;
      continue;
    }
    TileBits next;
    child.fill(where, tile, next);
    for (size_t r = 0; r < rows; ++r) {
      if (kind_ == Kind::all_of) {
        bits.rows[r] &= next.rows[r];
      } else {
        bits.rows[r] |= next.rows[r];
      }
    }
  }
}

Coverage Expression::sign(const Where& where, const Corner& tile, Signature& signature) const {
  if (kind_ == Kind::primitive) {
    return with(primitive_, [&](const auto& own) {
      const Coverage coverage = own.coverage(where, tile);
      signature.add(static_cast<uint64_t>(coverage));
      if (coverage == Coverage::some) own.sign(where, tile, signature);
      return coverage;
    });
  }
  if (kind_ == Kind::none_of) {
    const Coverage inner = children_.front().sign(where, tile, signature);
    return inner == Coverage::none ? Coverage::all : inner == Coverage::all ? Coverage::none : Coverage::some;
  }
  const Signature before = signature;
  const Coverage absorbing = kind_ == Kind::all_of ? Coverage::none : Coverage::all;
  bool some = false;
  for (const Expression& child : children_) {
    const Coverage own = child.sign(where, tile, signature);
    if (own == absorbing) {  // what the other children say does not matter
      signature = before;
      signature.add(static_cast<uint64_t>(absorbing));
      return absorbing;
    }
    some |= own == Coverage::some;
  }
  return some ? Coverage::some : kind_ == Kind::all_of ? Coverage::all : Coverage::none;
}

bool Expression::translation_invariant() const {
  if (kind_ != Kind::primitive) {
    return std::all_of(children_.begin(), children_.end(), [](const Expression& child) { return child.translation_invariant(); });
  }
  if (const BlockDistance* d = distances_of(primitive_)) return d->block == 1;
  return std::holds_alternative<Stride>(primitive_);
}

void Expression::singled_out_rows(Intervals& rows) const {
  for (const Expression& child : children_) child.singled_out_rows(rows);
  if (kind_ != Kind::primitive) return;
  if (const Rows* primitive = std::get_if<Rows>(&primitive_)) rows.push_back(primitive->range);
}

BlockLists::PerHead Expression::per_head() const {
  if (kind_ == Kind::primitive) {
    const auto* lists = std::get_if<std::shared_ptr<const BlockLists>>(&primitive_);
    return lists ? (*lists)->per_head() : BlockLists::PerHead::none;
  }
  auto finest = BlockLists::PerHead::none;
  for (const Expression& child : children_) finest = std::max(finest, child.per_head());
  return finest;
}

}  // namespace longspan::pattern
