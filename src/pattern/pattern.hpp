// The pattern language of DESIGN section 4: text -> rules -> a pattern bound to heads and documents, which answers, for
// any term and composition, the three questions of the plan. Pure functions of integers; nothing here knows of ranks or devices.
//
// Positions i (query) and j (key) always count from the start of their document.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "intervals.hpp"  // from beside this file: users find these headers as <longspan/pattern/…>, not as "pattern/…"
#include "longspan/shape.hpp"

namespace longspan::pattern {

constexpr int kTile = 128;  // rows and keys of a tile, at most

struct Node;  // one term or composition of the syntax tree (pattern/syntax.hpp)

// A parsed pattern: text that made sense, not yet bound to heads and documents.
class Pattern {
 public:
  // Throws Error(usage) whose message shows the text and a caret under the character where it stopped making sense.
  static Pattern parse(const std::string& text);

  // The pattern with presets written out, defaults filled in, one blank between tokens. parse(canonical()) is the same pattern
  // and has the same canonical text.
  std::string canonical() const;

  // Names and block sizes of the block_mask terms, each once.
  struct BlockMaskUse {
    std::string name;
    int64_t block;
  };
  std::vector<BlockMaskUse> block_masks() const;

  struct Rule {
    std::vector<std::pair<int, int>> heads;  // inclusive ranges; empty for "*" (all heads that no other rule names)
    std::shared_ptr<const Node> tree;
    int column = 0;  // where the rule starts in the text, for messages
  };
  const std::vector<Rule>& rules() const { return rules_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::vector<Rule> rules_;
};

// The stored lists of one block_mask term: for each list head and row block, ascending distinct key blocks of the row's document.
// Row blocks count through the documents one after another (an empty document has none).
class BlockMaskSource {
 public:
  virtual ~BlockMaskSource() = default;
  virtual int64_t block() const = 0;                                             // tokens
  virtual int list_heads() const = 0;                                            // 1, kv_heads or heads
  virtual std::vector<int64_t> row(int list_head, int64_t row_block) const = 0;  // thread-safe; throws Error(input) on bad lists
};

// Query heads that share their tile lists. A rule whose lists differ per KV head or per query head (block_random, block_mask)
// makes one group for each of them.
struct HeadGroup {
  std::vector<int> heads;  // ascending, at least one
  int rule = 0;
};

enum class Coverage : uint8_t { none, some, all };

// Bit c of row r: may row r of the tile look at key c? Word 0 holds keys 0…63.
struct TileBits {
  std::array<std::array<uint64_t, 2>, kTile> rows{};
  bool operator==(const TileBits&) const = default;
};

// What a tile's mask looks like, in the cheapest of three forms. Rows and keys count from the tile's corner.
struct TileMask {
  enum class Form : uint8_t { band, subtiles, bits };
  Form form = Form::band;
  int32_t lo = 0, hi = 0;  // band: allowed when lo <= row - key <= hi (row, key relative to the tile's corner)
  uint64_t subtiles = 0;   // subtiles: bit 8·(row/16) + key/16 allows that 16×16 square
  TileBits bits;           // bits: the mask itself. Filled for every form of a tile with coverage `some`.
  uint8_t quarters = 0xf;  // bit 2·(row/64) + key/64 is set when that 64×64 quarter has an allowed pair
};

// A pattern bound to heads and documents. Immutable; all members may be called from several threads.
class BoundPattern {
 public:
  // `sources`: one for each of pattern.block_masks(), in that order. Throws Error(usage) when a head is in two rules, in none, or
  // out of range, and Error(input) when a source's block differs from the term's.
  BoundPattern(const Pattern& pattern, int heads, int kv_heads, Documents documents,
               std::vector<std::shared_ptr<const BlockMaskSource>> sources = {});
  ~BoundPattern();
  BoundPattern(BoundPattern&&) noexcept;

  const std::vector<HeadGroup>& groups() const;
  int group_of(int head) const;
  const Documents& documents() const;

  // May position i of `document` look at position j? The oracle of everything below. Both inside the document.
  bool allowed(int group, int64_t document, int64_t i, int64_t j) const;

  // Exact for one row (`may` == `must`); for several rows `may` holds every key of `clip` that some row looks at and no key block's
  // worth of others beyond what composition costs, `must` only keys that every row looks at. Costs time in proportion to the
  // intervals returned, never to the keys of the row.
  struct Keys {
    Intervals may, must;
  };
  Keys keys(int group, int64_t document, Interval rows, Interval clip) const;

  // Exact classification of the tile rows × keys (each 1…128 long, inside the document); `mask` is written when the answer is `some`.
  Coverage tile(int group, int64_t document, Interval rows, Interval keys, TileMask& mask) const;

  // Tiles whose masks are equal may say so cheaply: two tiles of a group with equal, non-zero signatures and equal sizes have equal masks.
  uint64_t signature(int group, int64_t document, Interval rows, Interval keys) const;

  // True when the group's allowed pairs depend on i − j alone (up to the document's ends), so that cost models may sample few rows.
  bool translation_invariant(int group) const;

  // Rows of a document of this length that the group's terms single out by position (rows, global): where long rows can be.
  Intervals singled_out_rows(int group, int64_t length) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// The cheapest form of `bits` on a tile of rows × keys; for tiles that join several documents. Coverage of the bits.
Coverage describe(const TileBits& bits, int rows, int keys, TileMask& mask);

}  // namespace longspan::pattern
