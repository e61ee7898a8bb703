// Reads Q, K, V from an HDF5 file (DESIGN section 3): contiguous, chunked or compressed; any rank reads any rows. HDF5 itself is not
// thread-safe, so a process-wide lock in src/io guards every call of it; contiguous data is read with pread and needs no lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "longspan/error.hpp"
#include "longspan/shape.hpp"
#include "pattern/pattern.hpp"

namespace longspan::io {

// Where things are in the file.
struct CorpusPaths {
  std::string file;
  std::string q = "/q", k = "/k", v = "/v";
  std::string document_offsets = "/document_offsets";  // may be absent in the file
  std::string block_masks = "/block_masks";
};

// One dataset: what a rank needs to read rows of it without opening the file's metadata again.
struct DatasetLayout {
  std::string path;
  std::vector<int64_t> dims;
  ElementType type = ElementType::float32;
  bool native = true;        // stored little-endian in just these bits: bytes can be taken as they are
  int64_t file_offset = -1;  // of the first byte, contiguous unfiltered native data only; −1: goes through HDF5
};

// Everything rank 0 learns from the file's metadata. Plain values: to_json/from_json carry it to the other ranks.
struct CorpusLayout {
  CorpusPaths paths;
  Shape shape;
  DatasetLayout q, k, v;
  std::vector<int64_t> document_offsets;
  int64_t file_bytes = 0;
  int64_t modified_ns = 0;  // time of last change, since the epoch
  std::string to_json() const;
  static CorpusLayout from_json(const std::string& text);
};

// Opens and checks the file: throws Error(input) with *all* problems found (missing file, not HDF5, truncated, unreadable, dataset missing,
// wrong number of dimensions, wrong type, shapes that disagree, heads not a multiple of kv_heads, head_dim not 8…256 in steps of 8,
// offsets that do not ascend or do not end at tokens).
CorpusLayout inspect_corpus(const CorpusPaths& paths);

class CorpusReader {
 public:
  explicit CorpusReader(CorpusLayout layout);  // opens the file on this rank only
  ~CorpusReader();
  CorpusReader(const CorpusReader&) = delete;
  CorpusReader& operator=(const CorpusReader&) = delete;

  const CorpusLayout& layout() const { return layout_; }
  // Tokens [begin, begin + count) of all heads: out [count][heads][head_dim]. Thread-safe. Throws Error(io).
  void read_q(int64_t begin, int64_t count, std::byte* out) const;
  // The same of K or V, KV heads [head, head + heads) only: out [count][heads][head_dim].
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) const;
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) const;

 private:
  struct State;
  CorpusLayout layout_;
  std::unique_ptr<State> state_;
};

// The lists of /block_masks/NAME, read row by row when asked (rows are cached in pieces). Throws Error(input) when the datasets are
// missing, misshapen, or their `block` attribute differs from `block`.
std::shared_ptr<const pattern::BlockMaskSource> open_block_mask(const CorpusPaths& paths, const std::string& name, int64_t block,
                                                                const Shape& shape, const Documents& documents);

}  // namespace longspan::io
