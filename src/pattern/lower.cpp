// From the syntax tree to primitives. Distances are i − j, so a window of `left` keys to the left is the distances 0 … left.
#include <algorithm>

#include "longspan/error.hpp"
#include "pattern/expression.hpp"

namespace longspan::pattern {
namespace {

class Lowering {
 public:
  explicit Lowering(const LoweringContext& context) : context_(context) {}

  Expression tree(const Node& node) const {
    if (node.kind == Node::Kind::term) return term(node);
    std::vector<Expression> parts;
    for (const NodePtr& child : node.children) parts.push_back(tree(*child));
    if (node.kind == Node::Kind::all_of) return Expression::all_of(std::move(parts));
    if (node.kind == Node::Kind::any_of) return Expression::any_of(std::move(parts));
    return Expression::none_of(std::move(parts.front()));
  }

 private:
  Expression term(const Node& node) const {
    const auto& a = node.arguments;
    switch (node.term) {
      case Term::full:
        return Expression::everything();
      case Term::causal:
        return distances(1, {{0, kMaxInteger}});
      case Term::window:
        return distances(1, {{-a[1], a[0] + 1}});
      case Term::sink:
        return columns(0, a[0]);
      case Term::rows:
        return rows(a[0], a[1]);
      case Term::columns:
        return columns(a[0], a[1]);
      case Term::global:
        return Expression::any_of({rows(a[0], a[1]), columns(a[0], a[1])});
      case Term::segment:
        return distances(a[0], {{0, 1}});
      case Term::fixed:
        return comb(a[0], a[0] - a[1], a[0]);
      case Term::strided:
        return stride(a[0]);
      case Term::dilated_window: {
        const Interval reach{-times(a[1], a[2]), times(a[0], a[2]) + 1};
        return Expression::all_of({distances(1, {reach}), stride(a[2])});
      }
      case Term::dilated_segment:
        if (a[1] == 1) return distances(a[0], {{0, 1}});
        return Expression::of(DilatedSegment{std::min(a[0], context_.longest), a[1], a[2]});
      case Term::power:
        return distances(1, powers(a[0], context_.longest));
      case Term::block_window:
        return distances(a[0], {{-a[2], a[1] + 1}});
      case Term::block_power:
        return distances(a[0], powers(1, blocks(a[0])));
      case Term::block_columns:
        return block_columns(a[0], a[1], a[2], std::min(a[3], a[1]));
      case Term::block_random: {
        if (a[1] == 0) return Expression::nothing();
        const auto per_head = a[4] ? BlockLists::PerHead::head : BlockLists::PerHead::kv_head;
        const BlockLists::Random random{a[1], static_cast<uint64_t>(a[2]), a[3] != 0};
        return Expression::of(std::make_shared<const BlockLists>(a[0], per_head, random));
      }
      case Term::block_mask:
        return block_mask(node);
      case Term::longformer:
      case Term::bigbird:
      case Term::streaming:
        break;
    }
    internal_error("pattern: a preset was not written out");
  }

  int64_t blocks(int64_t block) const { return (context_.longest - 1) / block + 1; }

  static int64_t times(int64_t a, int64_t b) {
    int64_t product = 0;
    return __builtin_mul_overflow(a, b, &product) ? kMaxInteger : std::min(product, kMaxInteger);
  }

  // Distances that no document has are dropped, or extended to infinity where they go on from ones that some document has; so sets
  // that mean the same here are equal, and constants are seen as such.
  Expression distances(int64_t block, const Intervals& wanted) const {
    const int64_t reach = blocks(block);  // distances are −reach < d < reach
    Intervals set;
    for (Interval d : wanted) {
      if (overlap(d, {1 - reach, reach}).empty()) continue;
      if (d.begin <= 1 - reach) d.begin = -kMaxInteger;
      if (d.end >= reach) d.end = kMaxInteger;
      append(set, d);
    }
    if (set.empty()) return Expression::nothing();
    if (set == Intervals{{-kMaxInteger, kMaxInteger}}) return Expression::everything();
    return Expression::of(BlockDistance{block, std::move(set)});
  }

  // 0, and ±(2^k … 2^k + width − 1) for all k up to `reach`.
  static Intervals powers(int64_t width, int64_t reach) {
    Intervals set{{0, 1}};
    for (int64_t power = 1; power < reach; power *= 2) {
      const int64_t end = std::min(power + width, kMaxInteger);
      set.push_back({power, end});
      set.push_back({1 - end, 1 - power});
    }
    return normalised(std::move(set));
  }

  Expression rows(int64_t begin, int64_t end) const { return positions<Rows>(begin, end); }
  Expression columns(int64_t begin, int64_t end) const { return positions<Columns>(begin, end); }

  template <class Positions>
  Expression positions(int64_t begin, int64_t end) const {
    const Interval range = overlap({begin, end}, {0, context_.longest});
    if (range.empty()) return Expression::nothing();
    return range.length() == context_.longest ? Expression::everything() : Expression::of(Positions{range});
  }

  Expression stride(int64_t stride) const {
    if (stride == 1) return Expression::everything();
    return stride >= context_.longest ? distances(1, {{0, 1}}) : Expression::of(Stride{stride});
  }

  // begin <= j mod period < end
  Expression comb(int64_t period, int64_t begin, int64_t end) const {
    if (begin >= end) return Expression::nothing();
    if (end - begin == period) return Expression::everything();
    return period >= context_.longest ? columns(begin, end) : Expression::of(ColumnComb{period, {begin, end}});
  }

  Expression block_columns(int64_t block, int64_t stride, int64_t begin, int64_t end) const {
    // A period past the longest document is as good as any other, which also keeps the products small.
    if (times(block, stride) >= context_.longest && end - begin < stride) return columns(times(begin, block), times(end, block));
    return comb(times(block, stride), times(begin, block), times(end, block));
  }

  Expression block_mask(const Node& node) const {
    const int64_t block = node.arguments[1];
    const auto use = std::find_if(context_.masks.begin(), context_.masks.end(),
                                  [&](const Pattern::BlockMaskUse& each) { return each.name == node.name && each.block == block; });
    const auto& source = context_.sources[static_cast<size_t>(use - context_.masks.begin())];
    const std::string from = "block_mask(\"" + node.name + "\", " + std::to_string(block) + ")";
    if (source->block() != block) {
      throw Error({.code = ExitCode::input,
                   .what = "stored block lists have another block size than the pattern says",
                   .seen = std::to_string(source->block()),
                   .expected = std::to_string(block),
                   .from = from,
                   .mend = "write block_mask(\"" + node.name + "\", " + std::to_string(source->block()) + ")"});
    }
    const int lists = source->list_heads();
    auto per_head = BlockLists::PerHead::none;
    if (lists != 1) per_head = lists == context_.kv_heads ? BlockLists::PerHead::kv_head : BlockLists::PerHead::head;
    if (lists != 1 && lists != context_.kv_heads && lists != context_.heads) {
      throw Error({.code = ExitCode::input,
                   .what = "stored block lists are for another number of heads",
                   .seen = std::to_string(lists),
                   .expected = "1, " + std::to_string(context_.kv_heads) + " (KV heads) or " + std::to_string(context_.heads) + " (heads)",
                   .from = from});
    }
    auto first_row = std::make_shared<std::vector<int64_t>>();
    int64_t rows = 0;
    for (int64_t document = 0; document < context_.documents.count(); ++document) {
      first_row->push_back(rows);
      const int64_t length = context_.documents.length(document);
      rows += length / block + (length % block != 0);
    }
    return Expression::of(std::make_shared<const BlockLists>(block, per_head, BlockLists::Stored{source, std::move(first_row)}));
  }

  const LoweringContext& context_;
};

}  // namespace

Expression lowered(const Node& tree, const LoweringContext& context) { return Lowering(context).tree(tree); }

}  // namespace longspan::pattern
