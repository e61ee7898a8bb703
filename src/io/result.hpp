// Writes O and LSE to an HDF5 file (DESIGN section 3), and reads them back. Rank 0 creates the file: both datasets contiguous, allocated
// at once and reserved on disk, attributes set, `complete` = 0, flushed under a temporary name and renamed. After that every rank writes
// its rows with pwrite at the datasets' offsets, so a killed job leaves a file that opens, and a stripe is safe once sync() has returned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "longspan/shape.hpp"

namespace longspan::io {

struct ResultAttributes {
  std::string longspan_version, pattern;
  double scale = 0;
  std::string input_name;  // as given on the command line
  int64_t input_bytes = 0;
  int64_t input_modified_ns = 0;
  int complete = 0;
  std::string device = "cpu";  // what computed it: "cpu AVX3", "cuda 9.0" (files of older versions do not say: CPUs)
};

// Where O and LSE lie in the file; plain values that rank 0 broadcasts.
struct ResultLayout {
  std::string file;
  int64_t tokens = 0;
  int heads = 0, head_dim = 0;
  ElementType output_type = ElementType::float32;
  int64_t o_offset = 0, lse_offset = 0;
  int64_t device = 0, inode = 0;  // of the file: a writer that opens another one says so
  ResultAttributes attributes;
  std::string to_json() const;
  static ResultLayout from_json(const std::string& text);
};

// On one rank. Throws Error(io) when the folder is missing or not writable or the disk has no room (nothing is left behind then).
ResultLayout create_result(const std::string& file, int64_t tokens, int heads, int head_dim, ElementType output_type,
                           const ResultAttributes& attributes);
// Of an existing file. Throws Error(io/input) when it is no result of Longspan.
ResultLayout inspect_result(const std::string& file);
// Sets `complete` = 1 and syncs. On one rank, after all have synced and closed.
void mark_complete(const std::string& file);

class ResultFile {
 public:
  enum class Access { read, write };  // write: to read as well
  ResultFile(const ResultLayout& layout, Access access);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  // Tokens [begin, begin + count): o [count][heads][head_dim] of the output type, lse [count][heads]. Throws Error(io).
  void write(int64_t begin, int64_t count, const std::byte* o, const float* lse);
  void read(int64_t begin, int64_t count, std::byte* o, float* lse) const;
  void sync();  // fsync

 private:
  ResultLayout layout_;
  int descriptor_ = -1;
};

}  // namespace longspan::io
