// Writes input files: what `generate` and the tests make. Rank 0 creates the file, then any rank writes any rows of Q, K and V, and
// when all have synced rank 0 calls finish_corpus: until then inspect_corpus refuses the file as unfinished.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "io/corpus.hpp"
#include "io/posix_file.hpp"

namespace longspan::io {

// Attributes that the root gets besides longspan_version and complete (seed and the like), as text.
using CorpusAttributes = std::vector<std::pair<std::string, std::string>>;

// On one rank: /q, /k, /v (paths.q, …) contiguous and reserved on disk, /document_offsets written, `complete` = 0. `document_offsets`:
// 0, …, shape.tokens; empty: no such dataset, one document. Replaces a file of this name. Throws Error(io) when the folder is missing or
// not writable or the disk has no room (nothing is left behind then), Error(input) when shape or offsets are not valid.
CorpusLayout create_corpus(const CorpusPaths& paths, const Shape& shape, const std::vector<int64_t>& document_offsets,
                           const std::string& longspan_version, const CorpusAttributes& attributes = {});

class CorpusWriter {
 public:
  enum class Tensor { q, k, v };
  explicit CorpusWriter(CorpusLayout layout);  // of create_corpus, on any rank

  // Tokens [begin, begin + count) of all heads of a tensor: bytes [count][heads or kv_heads][head_dim] of shape.type. Thread-safe. Throws
  // Error(io).
  void write(Tensor tensor, int64_t begin, int64_t count, const std::byte* bytes);
  void sync();  // fsync

 private:
  CorpusLayout layout_;
  Descriptor descriptor_;
};

// Sets `complete` = 1 and syncs. On one rank, after all have synced.
void finish_corpus(const CorpusPaths& paths);

// Lists of a block_mask term: indptr [list_heads][row blocks + 1], absolute into indices (DESIGN section 3).
struct BlockMaskLists {
  int64_t block = 128;
  int list_heads = 1;
  std::vector<int64_t> indptr, indices;
};
// Adds /block_masks/NAME to a finished corpus that no one else has open. Throws Error(io), also when the name is taken.
void add_block_mask(const CorpusPaths& paths, const std::string& name, const BlockMaskLists& lists);

}  // namespace longspan::io
