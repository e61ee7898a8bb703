// Plain files: whole reads and writes at an offset, reservation of disk space, and files that appear under their name only when they
// are whole. Errors name the file, the offset and the system's own text. Knows nothing of HDF5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "longspan/error.hpp"

namespace longspan::io {

// Largest transfer of one system or HDF5 call: Linux cuts at 2 GiB − 4 KiB, HDF5's parallel drivers fail at 2 GiB.
constexpr int64_t kPieceBytes = int64_t{1} << 30;

// An open file descriptor. Closing it reports nothing: what must be on disk was synced before.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(Descriptor&& other) noexcept : descriptor_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return descriptor_; }
  int release() {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    return descriptor;
  }

 private:
  int descriptor_ = -1;
};

struct FileStatus {
  int64_t bytes = 0;
  int64_t modified_ns = 0;  // time of last change, since the epoch
  int64_t device = 0, inode = 0;
};

std::string errno_text(int error);      // "No space left on device (errno 28)"
std::string bytes_text(int64_t bytes);  // "39.1 MiB"
std::string folder_of(const std::string& file);

// Opens an existing regular file to read it. Throws Error(input) that tells a missing file (naming a near one in the folder), a missing
// permission, a folder and other errors apart; `role` is "input file", "output file", … at the start of the message.
Descriptor open_existing(const std::string& file, const std::string& role);
FileStatus status_of(int descriptor, const std::string& file);

// Exactly `bytes` bytes at `offset`; short transfers and signals are retried, pieces are at most kPieceBytes. Throws Error(io); a file
// that ends too early is an error too.
void read_at(int descriptor, int64_t offset, void* out, int64_t bytes, const std::string& file);
void write_at(int descriptor, int64_t offset, const void* data, int64_t bytes, const std::string& file);

// Makes the file's bytes [0, bytes) exist on disk, so that later writes cannot fail for lack of room. Where the file system cannot
// reserve, its free space is compared instead. Throws Error(io) "disk full: needs X, free Y".
void reserve(int descriptor, int64_t bytes, const std::string& file);
void sync_file(int descriptor, const std::string& file);
// Asks the system to drop what it holds of the file in memory, so that the next read comes from the disk. It may not.
void forget_cached(const std::string& file);

// The problem "disk full" of `file`.
Problem disk_full(const std::string& file, int64_t needed);

// A file in the making: `<file>.tmp.<pid>` until commit() renames it; removed if that never happens.
class TemporaryFile {
 public:
  // Creates it empty, readable and writable. Throws Error(io) when the folder is missing or not writable, or `file` is a folder.
  explicit TemporaryFile(std::string file);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_.get(); }
  // Syncs the file, gives it its name (replacing what had it), syncs the folder.
  void commit();

 private:
  std::string file_, path_;
  Descriptor descriptor_;
  bool committed_ = false;
};

}  // namespace longspan::io
