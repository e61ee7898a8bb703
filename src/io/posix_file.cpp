#include "io/posix_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

namespace longspan::io {

namespace {

[[noreturn]] void fail(const std::string& what, int error, const std::string& file, int64_t offset = -1) {
  throw Error({.code = ExitCode::io,
               .what = what,
               .seen = errno_text(error),
               .from = offset < 0 ? file : fmt::format("{}, byte {}", file, offset)});
}

std::string near_file(const std::string& file) {
  std::error_code ignored;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator entry(folder_of(file), ignored), end; !ignored && entry != end && names.size() < 10'000;
       entry.increment(ignored)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());  // folders list in any order; the message is the same each time
  return nearest_name(std::filesystem::path(file).filename().string(), names);
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = other.release();
  }
  return *this;
}

Descriptor::~Descriptor() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::string errno_text(int error) { return fmt::format("{} (errno {})", std::generic_category().message(error), error); }

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

std::string folder_of(const std::string& file) {
  const std::string folder = std::filesystem::path(file).parent_path().string();
  return folder.empty() ? "." : folder;
}

Descriptor open_existing(const std::string& file, const std::string& role) {
  // O_NONBLOCK: opening a pipe by mistake must not hang; it means nothing to a regular file.
  Descriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  const int error = errno;
  if (descriptor.get() < 0) {
    Problem problem{.code = ExitCode::input, .from = file};
    if (error == ENOENT || error == ENOTDIR) {
      const std::string near = near_file(file);
      problem.what = role + " does not exist";
      problem.mend = near.empty() ? "check the path; on a cluster, that every host sees it" : "did you mean " + near + "?";
    } else if (error == EACCES || error == EPERM) {
      problem.what = role + " may not be read";
      problem.seen = errno_text(error);
      problem.mend = "ask its owner for read permission on the file and its folders (chmod a+r)";
    } else {
      problem.what = role + " cannot be opened";
      problem.seen = errno_text(error);
    }
    throw Error(problem);
  }
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) fail(role + " cannot be examined", errno, file);
  if (!S_ISREG(status.st_mode)) {
    throw Error({.code = ExitCode::input,
                 .what = role + " is not a regular file",
                 .seen = S_ISDIR(status.st_mode) ? "a folder" : "a device, pipe or socket",
                 .expected = "an HDF5 file",
                 .from = file});
  }
  return descriptor;
}

FileStatus status_of(int descriptor, const std::string& file) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("file cannot be examined", errno, file);
  return {.bytes = status.st_size,
          .modified_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec,
          .device = static_cast<int64_t>(status.st_dev),
          .inode = static_cast<int64_t>(status.st_ino)};
}

void read_at(int descriptor, int64_t offset, void* out, int64_t bytes, const std::string& file) {
  auto* to = static_cast<std::byte*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor, to, static_cast<size_t>(std::min(bytes, kPieceBytes)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("reading failed", errno, file, offset);
    if (got == 0) {
      throw Error({.code = ExitCode::io,
                   .what = "file ends too early",
                   .seen = "its end",
                   .expected = bytes_text(bytes) + " more",
                   .from = fmt::format("{}, byte {}", file, offset),
                   .mend = "it was cut off or replaced while in use"});
    }
    to += got, offset += got, bytes -= got;
  }
}

void write_at(int descriptor, int64_t offset, const void* data, int64_t bytes, const std::string& file) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(descriptor, from, static_cast<size_t>(std::min(bytes, kPieceBytes)), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(errno == ENOSPC ? "writing failed: disk full" : "writing failed", errno, file, offset);
    if (done == 0) fail("writing failed: nothing was taken", EIO, file, offset);
    from += done, offset += done, bytes -= done;
  }
}

Problem disk_full(const std::string& file, int64_t needed) {
  struct statvfs disk {};
  const std::string folder = folder_of(file);
  const bool known = ::statvfs(folder.c_str(), &disk) == 0;
  const auto free = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  return {.code = ExitCode::io,
          .what = fmt::format("disk full: needs {}, free {}", bytes_text(needed), known ? bytes_text(free) : "unknown"),
          .from = file,
          .mend = fmt::format("make room in {} or choose another folder", folder)};
}

void reserve(int descriptor, int64_t bytes, const std::string& file) {
  // fallocate itself, not posix_fallocate: glibc's replaces a missing one by writing a byte into each block, hours on a large file.
  int error = 0;
  do {
    error = ::fallocate(descriptor, 0, 0, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0) return;
  if (error == ENOSPC) throw Error(disk_full(file, bytes));
  if (error == EDQUOT) {
    Problem problem = disk_full(file, bytes);
    problem.what = "disk quota exceeded: needs " + bytes_text(bytes);
    throw Error(problem);
  }
  if (error == EOPNOTSUPP || error == ENOSYS || error == EINVAL) {
    struct statvfs disk {};
    struct stat status {};
    // A file system that reports no size at all (some network ones) is believed to have room.
    if (::fstatvfs(descriptor, &disk) != 0 || disk.f_blocks == 0 || ::fstat(descriptor, &status) != 0) return;
    const auto free = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
    if (bytes - int64_t{status.st_blocks} * 512 > free) throw Error(disk_full(file, bytes));
    return;
  }
  fail("disk space cannot be reserved (" + bytes_text(bytes) + ")", error, file);
}

void forget_cached(const std::string& file) {
  const Descriptor descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::posix_fadvise(descriptor.get(), 0, 0, POSIX_FADV_DONTNEED);
}

void sync_file(int descriptor, const std::string& file) {
  if (::fsync(descriptor) != 0) fail("writing to disk failed (fsync)", errno, file);
}

TemporaryFile::TemporaryFile(std::string file) : file_(std::move(file)), path_(fmt::format("{}.tmp.{}", file_, ::getpid())) {
  const std::string folder = folder_of(file_);
  struct stat status {};
  if (::stat(file_.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    throw Error({.code = ExitCode::io, .what = "output file is a folder", .expected = "the name of a file", .from = file_});
  }
  descriptor_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (descriptor_.get() >= 0) return;
  const int error = errno;
  Problem problem{.code = ExitCode::io, .seen = errno_text(error), .from = file_};
  if (error == ENOENT) {
    problem.what = "output folder does not exist";
    problem.seen = folder;
    problem.mend = "create it: mkdir -p " + folder;
  } else if (error == ENOTDIR) {
    problem.what = "output folder is not a folder";
    problem.seen = folder;
  } else if (error == EACCES || error == EPERM || error == EROFS) {
    problem.what = "output folder is not writable";
    problem.mend = "choose another folder, or ask for write permission on " + folder;
  } else if (error == ENOSPC || error == EDQUOT) {
    problem = disk_full(file_, 0);
    problem.what = "disk full: no room even for an empty file";
  } else {
    problem.what = "output file cannot be created";
  }
  throw Error(problem);
}

TemporaryFile::~TemporaryFile() {
  if (!committed_ && descriptor_.get() >= 0) ::unlink(path_.c_str());
}

void TemporaryFile::commit() {
  sync_file(descriptor_.get(), path_);
  if (::rename(path_.c_str(), file_.c_str()) != 0) fail("output file cannot be given its name", errno, file_);
  committed_ = true;
  const std::string folder = folder_of(file_);
  const Descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // EINVAL, EBADF: file systems that cannot sync a folder have nothing to lose there. A folder we may write but not list: the same.
  if (opened.get() >= 0 && ::fsync(opened.get()) != 0 && errno != EINVAL && errno != EBADF)
    fail("writing to disk failed (fsync)", errno, folder);
}

}  // namespace longspan::io
