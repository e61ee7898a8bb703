// The ledger of a job, `<output>.ledger`: which stripes of which rank are safely in the output, with a checksum of their bytes.
//
//   head       what the job is, as JSON, with its length and checksum; padded to whole pages of 4 KiB
//   rank 0     one record of 32 bytes per stripe; padded to whole pages, so that no two ranks write the same page
//   rank 1     …
//
// Example: 3 ranks with 200 stripes: 200·32 = 6,400 bytes -> 2 pages each; with a head of 1 page rank 1's stripe 5 lies at
// byte (1 + 2)·4096 + 5·32. A record is a promise: its stripe's rows were on disk (ResultFile::sync) before it was written. One that was
// torn by a crash does not match its own checksum and counts as not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/posix_file.hpp"

namespace longspan::job {

// XXH3 (64 bits, Y. Collet's xxHash), fed piece by piece; the cut into pieces does not matter. It runs at memory speed, where zlib's
// CRC would cost more than writing the stripe, and 64 bits make an overlooked difference a matter of one in 10^19.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;
  void add(const void* data, size_t bytes);
  uint64_t value() const;  // of everything added so far
  void reset();            // as if new

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Ledger {
 public:
  static std::string path_of(const std::string& output) { return output + ".ledger"; }
  static bool exists(const std::string& path);
  // On one rank: a new ledger with no stripe finished, in place of one that may be there. Throws Error(io) (folder, disk full).
  static void create(const std::string& path, const nlohmann::ordered_json& head, int64_t ranks, int64_t stripes);
  static void remove(const std::string& path);  // fine if there is none

  // On any rank. Throws Error(io) when the file cannot be opened for writing or its head is damaged, Error(usage) when it has no such rank.
  Ledger(const std::string& path, int64_t rank);

  const nlohmann::ordered_json& head() const { return head_; }
  int64_t ranks() const { return ranks_; }
  int64_t stripes() const { return stripes_; }

  // Notes that this rank's stripe is finished; on disk when it returns. One thread at a time.
  void record(int64_t stripe, uint64_t checksum);
  // This rank's stripes, [stripes]: the checksum of each finished one.
  std::vector<std::optional<uint64_t>> finished() const;

 private:
  std::string path_;
  io::Descriptor descriptor_;
  nlohmann::ordered_json head_;
  int64_t rank_ = 0, ranks_ = 0, stripes_ = 0, region_ = 0;
  uint64_t seed_ = 0;  // of the records' checksums: the head's, so that another job's records never count
};

// What differs between the head of a ledger and that of the job that wants to go on with it: one Error(usage) problem per key, nested
// keys as "input.bytes", with both values.
std::vector<Problem> differences(const nlohmann::ordered_json& ledger, const nlohmann::ordered_json& job, const std::string& path);

}  // namespace longspan::job
