#include "report/record.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "longspan/error.hpp"
#include "report/build_info.hpp"

namespace longspan::report {

nlohmann::ordered_json new_record(const std::string& command) {
  nlohmann::ordered_json record;
  record["schema_version"] = kSchemaVersion;
  record["command"] = command;
  record["longspan"] = {{"version", version()}, {"commit", git_commit()}, {"compiler", compiler()}, {"build_type", build_type()}};
  record["time"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  return record;
}

void write_record(const nlohmann::ordered_json& record, const std::string& file) {
  // Names that are not UTF-8 (a file's, say) are mended rather than fatal.
  write_text(record.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n", file);
}

void write_text(const std::string& text, const std::string& file) {
  if (file == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (std::fflush(stdout) != 0)
      throw Error({.code = ExitCode::io, .what = "cannot write to standard output", .seen = std::strerror(errno)});
    return;
  }
  // A device or a pipe (/dev/null, /dev/stderr) is written to, never replaced.
  struct stat status {};
  const bool replace = stat(file.c_str(), &status) != 0 || S_ISREG(status.st_mode);
  const std::string temporary = replace ? fmt::format("{}.{}.tmp", file, getpid()) : file;
  const auto fail = [&](const char* action) {
    const int reason = errno;
    if (replace) unlink(temporary.c_str());
    throw Error({.code = ExitCode::io,
                 .what = fmt::format("cannot {} {}", action, file),
                 .seen = std::strerror(reason),
                 .expected = "a folder that exists and may be written to"});
  };
  const int descriptor = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("create");
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = write(descriptor, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int reason = errno;
      close(descriptor);
      errno = reason;
      fail("write");
    }
    done += static_cast<size_t>(written);
  }
  const bool synced = fsync(descriptor) == 0 || errno == EINVAL || errno == EROFS;  // a pipe or a device cannot be synced
  if (close(descriptor) != 0 || !synced) fail("write");
  if (replace && std::rename(temporary.c_str(), file.c_str()) != 0) fail("rename to");
}

}  // namespace longspan::report
