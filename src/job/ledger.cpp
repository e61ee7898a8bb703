#include "job/ledger.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <map>

#define XXH_INLINE_ALL  // header only: nothing to link
#include <xxhash.h>

namespace longspan::job {

namespace {

static_assert(std::endian::native == std::endian::little, "the ledger's numbers are stored as they lie in memory: little-endian");

constexpr int64_t kPage = 4096;
constexpr uint64_t kHeadMagic = 0x31305245'47444c4cULL;    // "LLDGER01"
constexpr uint64_t kRecordMagic = 0x31305045'4e495353ULL;  // "SSINEP01"

// First bytes of the file; the JSON text follows.
struct Preamble {
  uint64_t magic = kHeadMagic;
  int64_t text_bytes = 0;
  int64_t ranks = 0, stripes = 0;
  uint64_t text_checksum = 0;
  uint64_t own_checksum = 0;  // of the fields before it
};
static_assert(sizeof(Preamble) == 48);

struct Record {
  uint64_t magic = kRecordMagic;
  int64_t stripe = 0;
  uint64_t checksum = 0;      // of the stripe's O and LSE bytes
  uint64_t own_checksum = 0;  // of the fields before it and the rank, seeded with the head's
};
static_assert(sizeof(Record) == 32 && kPage % sizeof(Record) == 0);

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
int64_t region_bytes(int64_t stripes) { return whole_pages(stripes * static_cast<int64_t>(sizeof(Record))); }

uint64_t own_checksum_of(const Preamble& preamble) { return XXH3_64bits(&preamble, offsetof(Preamble, own_checksum)); }
uint64_t own_checksum_of(const Record& record, int64_t rank, uint64_t seed) {
  return XXH3_64bits_withSeed(&record, offsetof(Record, own_checksum), seed + static_cast<uint64_t>(rank));
}

[[noreturn]] void damaged(const std::string& path, const std::string& seen) {
  throw Error({.code = ExitCode::io,
               .what = "the job's ledger is damaged",
               .seen = seen,
               .expected = "the head that a job wrote",
               .from = path,
               .mend = "use --overwrite to start anew"});
}

// Every value of nested objects under its full name, "input.bytes"; arrays count as values.
void flatten(const nlohmann::ordered_json& json, const std::string& prefix, std::vector<std::pair<std::string, std::string>>& values) {
  if (!json.is_object()) {
    values.emplace_back(prefix, json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return;
  }
  for (const auto& [key, value] : json.items()) flatten(value, prefix.empty() ? key : prefix + "." + key, values);
}

}  // namespace

struct Checksum::State {
  XXH3_state_t hash;
};

Checksum::Checksum() : state_(std::make_unique<State>()) { reset(); }
Checksum::~Checksum() = default;
void Checksum::add(const void* data, size_t bytes) {
  if (bytes > 0) XXH3_64bits_update(&state_->hash, data, bytes);
}
uint64_t Checksum::value() const { return XXH3_64bits_digest(&state_->hash); }
void Checksum::reset() { XXH3_64bits_reset(&state_->hash); }

bool Ledger::exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0;
}

void Ledger::create(const std::string& path, const nlohmann::ordered_json& head, int64_t ranks, int64_t stripes) {
  if (ranks < 1 || stripes < 0) internal_error(fmt::format("ledger of {} ranks and {} stripes", ranks, stripes));
  const std::string text = head.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  Preamble preamble{.text_bytes = static_cast<int64_t>(text.size()), .ranks = ranks, .stripes = stripes};
  preamble.text_checksum = XXH3_64bits(text.data(), text.size());
  preamble.own_checksum = own_checksum_of(preamble);
  std::vector<std::byte> bytes(static_cast<size_t>(whole_pages(static_cast<int64_t>(sizeof preamble + text.size()))));
  std::memcpy(bytes.data(), &preamble, sizeof preamble);
  std::memcpy(bytes.data() + sizeof preamble, text.data(), text.size());

  io::TemporaryFile temporary(path);
  const int64_t size = static_cast<int64_t>(bytes.size()) + ranks * region_bytes(stripes);
  io::reserve(temporary.descriptor(), size, path);
  // Where nothing can be reserved the file is given its length all the same: records then lie inside it.
  if (::ftruncate(temporary.descriptor(), size) != 0) throw Error(io::disk_full(path, size));
  io::write_at(temporary.descriptor(), 0, bytes.data(), static_cast<int64_t>(bytes.size()), path);
  temporary.commit();
}

void Ledger::remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    throw Error({.code = ExitCode::io, .what = "the job's ledger cannot be removed", .seen = io::errno_text(errno), .from = path});
  }
}

Ledger::Ledger(const std::string& path, int64_t rank) : path_(path), descriptor_(::open(path.c_str(), O_RDWR | O_CLOEXEC)), rank_(rank) {
  const int error = errno;
  if (descriptor_.get() < 0) {
    throw Error({.code = ExitCode::io,
                 .what = error == ENOENT ? "the job's ledger does not exist" : "the job's ledger cannot be opened",
                 .seen = io::errno_text(error),
                 .from = path,
                 .mend = error == ENOENT ? "all hosts must share the output folder" : "use --overwrite to start anew"});
  }
  const int64_t size = io::status_of(descriptor_.get(), path).bytes;
  Preamble preamble;
  if (size < static_cast<int64_t>(sizeof preamble)) damaged(path, fmt::format("a file of {} bytes", size));
  io::read_at(descriptor_.get(), 0, &preamble, sizeof preamble, path);
  if (preamble.magic != kHeadMagic) damaged(path, "a file that is no ledger");
  if (preamble.own_checksum != own_checksum_of(preamble)) damaged(path, "a wrong checksum of the head");
  const int64_t text_end = static_cast<int64_t>(sizeof preamble) + preamble.text_bytes;
  if (size < text_end) damaged(path, fmt::format("a file of {} bytes that ends inside the head", size));
  std::string text(static_cast<size_t>(preamble.text_bytes), '\0');
  io::read_at(descriptor_.get(), sizeof preamble, text.data(), preamble.text_bytes, path);
  if (XXH3_64bits(text.data(), text.size()) != preamble.text_checksum) damaged(path, "a wrong checksum of the head's text");
  head_ = nlohmann::ordered_json::parse(text, nullptr, false);
  if (head_.is_discarded()) damaged(path, "a head that is no JSON");
  ranks_ = preamble.ranks, stripes_ = preamble.stripes, seed_ = preamble.own_checksum;
  if (rank < 0 || rank >= ranks_) {
    throw Error({.code = ExitCode::usage,
                 .what = "the job to continue has another number of ranks",
                 .seen = fmt::format("rank {}", rank),
                 .expected = fmt::format("{} ranks", ranks_),
                 .from = path,
                 .mend = fmt::format("start it with {} ranks, or use --overwrite to start anew", ranks_)});
  }
  region_ = whole_pages(text_end) + rank * region_bytes(stripes_);
}

void Ledger::record(int64_t stripe, uint64_t checksum) {
  if (stripe < 0 || stripe >= stripes_) internal_error(fmt::format("ledger record of stripe {} of {}", stripe, stripes_));
  Record record{.stripe = stripe, .checksum = checksum};
  record.own_checksum = own_checksum_of(record, rank_, seed_);
  io::write_at(descriptor_.get(), region_ + stripe * static_cast<int64_t>(sizeof record), &record, sizeof record, path_);
  if (::fdatasync(descriptor_.get()) != 0) {
    throw Error({.code = ExitCode::io, .what = "writing to disk failed (fdatasync)", .seen = io::errno_text(errno), .from = path_});
  }
}

std::vector<std::optional<uint64_t>> Ledger::finished() const {
  std::vector<std::optional<uint64_t>> stripes(static_cast<size_t>(stripes_));
  // A file that was cut off holds fewer records; what is left of one does not match its checksum.
  std::vector<Record> records(stripes.size(), Record{.magic = 0});
  const int64_t size = io::status_of(descriptor_.get(), path_).bytes;
  const int64_t there = std::clamp<int64_t>(size - region_, 0, stripes_ * static_cast<int64_t>(sizeof(Record)));
  io::read_at(descriptor_.get(), region_, records.data(), there, path_);
  for (size_t i = 0; i < stripes.size(); ++i) {
    const Record& record = records[i];
    if (record.magic != kRecordMagic || record.stripe != static_cast<int64_t>(i) ||
        record.own_checksum != own_checksum_of(record, rank_, seed_))
      continue;
    stripes[i] = record.checksum;
  }
  return stripes;
}

std::vector<Problem> differences(const nlohmann::ordered_json& ledger, const nlohmann::ordered_json& job, const std::string& path) {
  std::vector<std::pair<std::string, std::string>> then, now;
  flatten(ledger, "", then);
  flatten(job, "", now);
  const std::map<std::string, std::string> now_by_key(now.begin(), now.end()), then_by_key(then.begin(), then.end());
  std::vector<Problem> problems;
  const auto differs = [&](const std::string& key, const std::string& seen, const std::string& expected) {
    problems.push_back({.code = ExitCode::usage,
                        .what = "the job to continue is another one: " + key + " differs",
                        .seen = seen,
                        .expected = expected,
                        .from = path,
                        .mend = "give what the first run had, or use --overwrite to start anew"});
  };
  for (const auto& [key, value] : then) {
    const auto found = now_by_key.find(key);
    if (found == now_by_key.end()) {
      differs(key, "nothing", value);
    } else if (found->second != value) {
      differs(key, found->second, value);
    }
  }
  for (const auto& [key, value] : now) {
    if (!then_by_key.contains(key)) differs(key, value, "nothing");
  }
  return problems;
}

}  // namespace longspan::job
