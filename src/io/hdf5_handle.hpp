// HDF5's C interface made safe: one lock around every call, handles that close themselves, and errors with HDF5's own innermost text.
// Only files of src/io include this header.
//
//   const Section section;                                     // first: handles close before it ends
//   const DatasetHandle d(check(H5Dopen2(f, "/q", H5P_DEFAULT), "H5Dopen", "corpus.h5:/q"));
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

#include "longspan/error.hpp"

namespace longspan::io {

// Everything that calls HDF5 holds one: the library is not thread-safe (Debian builds it so). Nested sections of a thread are fine.
// Meanwhile HDF5 prints nothing; the host program's own error handler is put back at the end.
class Section {
 public:
  Section();
  ~Section();
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;

 private:
  std::lock_guard<std::recursive_mutex> guard_;
  H5E_auto2_t handler_ = nullptr;
  void* handler_data_ = nullptr;
};

template <herr_t (*close)(hid_t)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Handle() { reset(); }
  void reset() {
    if (id_ >= 0) close(id_);
    id_ = H5I_INVALID_HID;
  }
  hid_t get() const { return id_; }
  hid_t release() { return std::exchange(id_, H5I_INVALID_HID); }
  explicit operator bool() const { return id_ >= 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

using FileHandle = Handle<H5Fclose>;
using GroupHandle = Handle<H5Gclose>;
using DatasetHandle = Handle<H5Dclose>;
using ObjectHandle = Handle<H5Oclose>;
using SpaceHandle = Handle<H5Sclose>;
using TypeHandle = Handle<H5Tclose>;
using PropertyHandle = Handle<H5Pclose>;
using AttributeHandle = Handle<H5Aclose>;

// What HDF5 says about its last failed call; read it before the next call.
struct Hdf5Failure {
  std::string innermost;  // the text nearest to the cause
  std::string all;        // every level's text, innermost first
  bool says(const char* words) const { return all.find(words) != std::string::npos; }
};
Hdf5Failure last_failure();

[[noreturn]] void throw_failure(const char* call, const std::string& from, ExitCode code);

// `result` unless it is negative: then throws Error(code) that names the call, where it was, and HDF5's innermost text.
template <typename Result>
Result check(Result result, const char* call, const std::string& from, ExitCode code = ExitCode::io) {
  if (result < 0) throw_failure(call, from, code);
  return result;
}

}  // namespace longspan::io
