#include "io/hdf5_handle.hpp"

namespace longspan::io {

namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

herr_t collect(unsigned level, const H5E_error2_t* error, void* data) {
  auto& failure = *static_cast<Hdf5Failure*>(data);
  const std::string text = error->desc ? error->desc : "";
  if (level == 0) failure.innermost = text;
  failure.all += (level == 0 ? "" : "; ") + text;
  return 0;
}

}  // namespace

Section::Section() : guard_(library_mutex()) {
  H5Eget_auto2(H5E_DEFAULT, &handler_, &handler_data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Section::~Section() { H5Eset_auto2(H5E_DEFAULT, handler_, handler_data_); }

Hdf5Failure last_failure() {
  Hdf5Failure failure;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, collect, &failure);
  if (failure.innermost.empty()) failure.innermost = failure.all = "no reason given";
  return failure;
}

void throw_failure(const char* call, const std::string& from, ExitCode code) {
  throw Error({.code = code, .what = std::string(call) + " failed", .seen = "HDF5: " + last_failure().innermost, .from = from});
}

}  // namespace longspan::io
