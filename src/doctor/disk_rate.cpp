#include "doctor/disk_rate.hpp"

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <vector>

#include "io/posix_file.hpp"
#include "io/result.hpp"

namespace longspan::doctor {

namespace {

constexpr int kHeads = 16, kHeadDim = 128;
constexpr int64_t kTokenBytes = int64_t{kHeads} * (kHeadDim * 2 + 4);  // O in bfloat16, LSE

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void fill(int rank, std::vector<std::byte>& o, std::vector<float>& lse) {
  for (size_t i = 0; i < o.size(); ++i) o[i] = static_cast<std::byte>(i * 31 + static_cast<size_t>(rank) * 7 + (i >> 8));
  for (size_t i = 0; i < lse.size(); ++i) lse[i] = static_cast<float>(rank) + static_cast<float>(i % 1024);
}

}  // namespace

DiskRate disk_rate(const comm::Communicator& ranks, const std::string& folder, int64_t bytes_per_rank) {
  DiskRate rate;
  const int64_t tokens = std::max<int64_t>(1, bytes_per_rank / kTokenBytes);
  rate.bytes_per_rank = tokens * kTokenBytes;
  // `body` on ranks where nothing has gone wrong so far; its seconds.
  const auto attempt = [&](const auto& body) {
    const double start = now();
    try {
      if (rate.problem.empty()) body();
    } catch (const Error& error) {
      rate.problem = error.problems().front().text();
    }
    return now() - start;
  };
  const auto all_well = [&] { return ranks.max(rate.problem.empty() ? 0 : 1) == 0; };
  const auto slowest = [&](double seconds) { return static_cast<double>(ranks.max(static_cast<int64_t>(seconds * 1e9))) * 1e-9; };

  std::string layout_text;
  const std::string file = ranks.broadcast(folder + "/longspan-doctor-" + std::to_string(getpid()) + ".h5");
  if (ranks.rank() == 0)
    attempt([&] { layout_text = io::create_result(file, tokens * ranks.size(), kHeads, kHeadDim, ElementType::bfloat16, {}).to_json(); });
  layout_text = ranks.broadcast(layout_text);
  if (layout_text.empty()) return rate;
  const io::ResultLayout layout = io::ResultLayout::from_json(layout_text);

  std::vector<std::byte> o(static_cast<size_t>(tokens) * kHeads * kHeadDim * 2);
  std::vector<float> lse(static_cast<size_t>(tokens) * kHeads);
  fill(ranks.rank(), o, lse);
  std::optional<io::ResultFile> result;
  attempt([&] { result.emplace(layout, io::ResultFile::Access::write); });
  ranks.barrier();
  rate.write_seconds = attempt([&] {
    result->write(tokens * ranks.rank(), tokens, o.data(), lse.data());
    result->sync();
  });
  const auto bytes = static_cast<double>(rate.bytes_per_rank * ranks.size());
  if (const double seconds = slowest(rate.write_seconds); seconds > 0) rate.write_bytes_per_second = bytes / seconds;
  const auto leave = [&] {
    result.reset();
    ranks.barrier();
    if (ranks.rank() == 0) ::unlink(file.c_str());
    return rate;
  };
  if (!all_well()) return leave();  // what others would miss when they read is that rank's fault

  attempt([&] { io::forget_cached(file); });
  ranks.barrier();
  const auto host_ranks = static_cast<int>(ranks.max(ranks.local_size()));
  const int writer = (ranks.rank() + (ranks.hosts() > 1 ? host_ranks : 1)) % ranks.size();
  std::vector<std::byte> read_o(o.size());
  std::vector<float> read_lse(lse.size());
  rate.read_seconds = attempt([&] { result->read(tokens * writer, tokens, read_o.data(), read_lse.data()); });
  if (const double seconds = slowest(rate.read_seconds); seconds > 0) rate.read_bytes_per_second = bytes / seconds;
  fill(writer, o, lse);
  if (rate.problem.empty() && (read_o != o || read_lse != lse))
    rate.problem = file + " does not hold what rank " + std::to_string(writer) + " wrote: do all hosts see the same folder?";

  return leave();
}

}  // namespace longspan::doctor
