// A term or composition as a tree of primitives, and the questions of the plan answered through that tree: sets of keys by interval
// algebra with a lower and an upper bound (`must`, `may`), tiles by three-valued logic first and by bits where that leaves a doubt.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "longspan/shape.hpp"
#include "pattern/primitives.hpp"
#include "pattern/syntax.hpp"

namespace longspan::pattern {

using Primitive = std::variant<BlockDistance, Stride, Rows, Columns, ColumnComb, DilatedSegment, std::shared_ptr<const BlockLists>>;

class Expression {
 public:
  enum class Kind : uint8_t { primitive, all_of, any_of, none_of };

  static Expression of(Primitive primitive);
  static Expression everything() { return of(BlockDistance{1, {{-kMaxInteger, kMaxInteger}}}); }
  static Expression nothing() { return of(BlockDistance{1, {}}); }
  // Compositions, simplified: nested ones spliced, constants folded, block distances of one block size joined into one set.
  static Expression all_of(std::vector<Expression> parts);
  static Expression any_of(std::vector<Expression> parts);
  static Expression none_of(Expression part);

  bool allowed(const Where& where, int64_t i, int64_t j) const;
  // rows and clip not empty and inside the document. For one row `must` stays empty and `may` is both.
  KeySets keys(const Where& where, Interval rows, Interval clip) const;
  // By three-valued logic alone: `some` may turn out to be `none` or `all` when the bits are looked at.
  Coverage coverage(const Where& where, const Corner& tile) const;
  // The tile's bits (only when coverage() says `some`); those past the tile's rows and keys are arbitrary.
  void fill(const Where& where, const Corner& tile, TileBits& bits) const;
  // coverage(), adding to `signature` all that fill() would depend on.
  Coverage sign(const Where& where, const Corner& tile, Signature& signature) const;

  // i − j decides, up to the document's ends.
  bool translation_invariant() const;
  // Ranges of rows that its primitives single out, appended in any order.
  void singled_out_rows(Intervals& rows) const;
  BlockLists::PerHead per_head() const;  // the finest of its lists

 private:
  bool is_everything() const;
  bool is_nothing() const;
  int cost() const;  // of keys(): how many intervals it may return, roughly
  static Expression composed(Kind kind, std::vector<Expression> parts);

  Kind kind_ = Kind::primitive;
  Primitive primitive_;
  std::vector<Expression> children_;
};

// What the lowering of a term needs to know of the problem.
struct LoweringContext {
  const Documents& documents;
  int64_t longest = 1;  // tokens of the longest document, at least 1
  int heads = 1, kv_heads = 1;
  const std::vector<Pattern::BlockMaskUse>& masks;
  const std::vector<std::shared_ptr<const BlockMaskSource>>& sources;  // as many as masks
};

// Throws Error(input) when a source does not fit its term.
Expression lowered(const Node& tree, const LoweringContext& context);

}  // namespace longspan::pattern
