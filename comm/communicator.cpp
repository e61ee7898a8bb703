#include "comm/communicator.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <unordered_map>

namespace longspan::comm {

namespace {

// Tags of point-to-point messages on a Communicator's own duplicate.
constexpr int kGatherTag = 1;
constexpr int kLetterTag = 2;  // and 3

size_t index(int64_t value) { return static_cast<size_t>(value); }

// The rank of this process in MPI_COMM_WORLD as far as it can be told, for messages.
std::string world_rank() {
  int initialized = 0, finalized = 0, rank = -1;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (!initialized || finalized || MPI_Comm_rank(MPI_COMM_WORLD, &rank) != MPI_SUCCESS) return "outside MPI";
  return fmt::format("rank {}", rank);
}

// Problems as one string: lists of fields, each with its length in front.
void put(std::string& packed, const std::string& field) {
  const auto size = static_cast<int64_t>(field.size());
  packed.append(reinterpret_cast<const char*>(&size), sizeof size);
  packed += field;
}

std::string pack(const Problem& problem) {
  std::string packed;
  put(packed, std::to_string(static_cast<int>(problem.code)));
  for (const std::string* field : {&problem.what, &problem.seen, &problem.expected, &problem.from, &problem.mend}) put(packed, *field);
  return packed;
}

std::string pack(const std::vector<Problem>& problems) {
  std::string packed;
  for (const Problem& problem : problems) packed += pack(problem);
  return packed;
}

std::vector<Problem> unpack(const std::string& packed) {
  std::vector<Problem> problems;
  size_t at = 0;
  const auto next = [&] {
    int64_t size;
    std::memcpy(&size, packed.data() + at, sizeof size);
    at += sizeof size;
    std::string field = packed.substr(at, index(size));
    at += index(size);
    return field;
  };
  while (at < packed.size()) {
    Problem problem;
    problem.code = static_cast<ExitCode>(std::stoi(next()));
    for (std::string* field : {&problem.what, &problem.seen, &problem.expected, &problem.from, &problem.mend}) *field = next();
    problems.push_back(std::move(problem));
  }
  return problems;
}

// What the ranks found, each distinct problem once in the order of the lowest rank that saw it:
//   rank 0: {}   rank 1: {A, B}   rank 2: {A}      ->      A on ranks 1-2, B on rank 1
std::vector<Problem> merge(const std::vector<std::string>& packed_by_rank) {
  std::vector<Problem> problems;
  std::vector<std::vector<int>> seen_by;
  std::unordered_map<std::string, size_t> known;
  for (size_t rank = 0; rank < packed_by_rank.size(); ++rank) {
    for (Problem& problem : unpack(packed_by_rank[rank])) {
      const auto [entry, is_new] = known.try_emplace(pack(problem), problems.size());
      if (is_new) {
        problems.push_back(std::move(problem));
        seen_by.emplace_back();
      }
      std::vector<int>& ranks = seen_by[entry->second];
      if (ranks.empty() || ranks.back() != static_cast<int>(rank)) ranks.push_back(static_cast<int>(rank));
    }
  }
  for (size_t i = 0; i < problems.size(); ++i)
    if (seen_by[i].size() != packed_by_rank.size()) problems[i].what += " on " + describe_ranks(seen_by[i]);
  return problems;
}

// What `body` throws.
std::vector<Problem> problems_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.problems();
  } catch (const std::bad_alloc&) {
    return {{.code = ExitCode::environment, .what = "out of memory", .mend = "use more hosts, or fewer ranks per host"}};
  } catch (const std::exception& error) {
    return {{.code = ExitCode::internal, .what = error.what()}};
  } catch (...) {
    return {{.code = ExitCode::internal, .what = "an exception of unknown type"}};
  }
  return {};
}

void all_reduce(std::span<int64_t> values, MPI_Op operation, MPI_Comm comm, int64_t piece_bytes) {
  const int64_t most = std::max<int64_t>(1, piece_bytes / static_cast<int64_t>(sizeof(int64_t)));
  const auto size = static_cast<int64_t>(values.size());
  for (int64_t begin = 0; begin < size; begin += most)
    check(MPI_Allreduce(MPI_IN_PLACE, values.data() + begin, static_cast<int>(std::min(most, size - begin)), MPI_INT64_T, operation, comm),
          "MPI_Allreduce");
}

}  // namespace

void check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (MPI_Error_string(result, text, &length) != MPI_SUCCESS) length = 0;
  throw Error({.code = ExitCode::communication,
               .what = fmt::format("{} failed", call),
               .seen = length > 0 ? std::string(text, index(length)) : fmt::format("MPI error {}", result),
               .from = world_rank(),
               .mend = "look for an earlier message of another rank or of the launcher"});
}

std::string describe_ranks(const std::vector<int>& ranks) {
  constexpr int kMostRuns = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  int runs = 0;
  for (size_t begin = 0, end = 0; begin < ranks.size(); begin = end, ++runs) {
    if (runs == kMostRuns) return text + fmt::format(" and {} more", ranks.size() - begin);
    for (end = begin + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    text += fmt::format("{}{}", runs == 0 ? "" : ", ", ranks[begin]);
    if (end - begin > 1) text += fmt::format("-{}", ranks[end - 1]);
  }
  return text;
}

Session::Session(int* argc, char*** argv) {
  int initialized = 0;
  check(MPI_Initialized(&initialized), "MPI_Initialized");
  if (initialized) return;
  // Without it, four waiting ranks on two cores spin their time slices away whenever the launcher does not notice (srun, -H):
  // a barrier took 8 ms instead of 5 µs.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  owned_ = true;
  // Calls without a communicator (datatypes) report to this one's handler.
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  if (provided < MPI_THREAD_FUNNELED) {
    MPI_Finalize();
    throw Error({.code = ExitCode::environment,
                 .what = "this MPI library does not allow threads",
                 .seen = "MPI_THREAD_SINGLE",
                 .expected = "MPI_THREAD_FUNNELED",
                 .from = library_version(),
                 .mend = "use a build of MPI with thread support"});
  }
}

Session::~Session() {
  int finalized = 0;
  if (!owned_ || std::uncaught_exceptions() > 0 || MPI_Finalized(&finalized) != MPI_SUCCESS || finalized) return;
  MPI_Finalize();
}

Communicator::Communicator(MPI_Comm from, int64_t piece_bytes) : piece_bytes_(piece_bytes) {
  check(MPI_Comm_dup(from, &comm_), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  char name[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  check(MPI_Get_processor_name(name, &length), "MPI_Get_processor_name");
  host_.assign(name, index(length));
  MPI_Comm host_comm = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host_comm), "MPI_Comm_split_type");
  check(MPI_Comm_rank(host_comm, &local_rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(host_comm, &local_size_), "MPI_Comm_size");
  int lowest = rank_;
  check(MPI_Bcast(&lowest, 1, MPI_INT, 0, host_comm), "MPI_Bcast");
  check(MPI_Comm_free(&host_comm), "MPI_Comm_free");
  host_of_rank_.resize(index(size_));
  check(MPI_Allgather(&lowest, 1, MPI_INT, host_of_rank_.data(), 1, MPI_INT, comm_), "MPI_Allgather");
  hosts_ = static_cast<int>(sum(local_rank_ == 0 ? 1 : 0));
}

Communicator::~Communicator() {
  int finalized = 0;
  if (std::uncaught_exceptions() > 0 || MPI_Finalized(&finalized) != MPI_SUCCESS || finalized) return;
  MPI_Comm_free(&comm_);
}

void Communicator::barrier() const { check(MPI_Barrier(comm_), "MPI_Barrier"); }

void Communicator::barrier_at_rest() const {
  constexpr auto kNap = std::chrono::milliseconds(1);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  for (int done = 0;;) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return;
    std::this_thread::sleep_for(kNap);
  }
}

std::unique_ptr<Communicator> Communicator::first(int count) const {
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, rank_ < count ? 0 : MPI_UNDEFINED, rank_, &part), "MPI_Comm_split");
  if (part == MPI_COMM_NULL) return nullptr;
  auto few = std::make_unique<Communicator>(part, piece_bytes_);
  check(MPI_Comm_free(&part), "MPI_Comm_free");
  return few;
}

std::unique_ptr<Communicator> Communicator::alone() const { return std::make_unique<Communicator>(MPI_COMM_SELF, piece_bytes_); }

void Communicator::broadcast(void* data, int64_t bytes, int root) const {
  for (int64_t begin = 0; begin < bytes; begin += piece_bytes_)
    check(MPI_Bcast(static_cast<std::byte*>(data) + begin, static_cast<int>(std::min(piece_bytes_, bytes - begin)), MPI_BYTE, root, comm_),
          "MPI_Bcast");
}

std::string Communicator::broadcast(const std::string& text, int root) const {
  auto size = static_cast<int64_t>(text.size());
  broadcast(&size, sizeof size, root);
  std::string result = rank_ == root ? text : std::string(index(size), '\0');
  broadcast(result.data(), size, root);
  return result;
}

int64_t Communicator::sum(int64_t value) const {
  sum(std::span(&value, 1));
  return value;
}

int64_t Communicator::max(int64_t value) const {
  max(std::span(&value, 1));
  return value;
}

int64_t Communicator::min(int64_t value) const {
  all_reduce(std::span(&value, 1), MPI_MIN, comm_, piece_bytes_);
  return value;
}

void Communicator::max(std::span<int64_t> values) const { all_reduce(values, MPI_MAX, comm_, piece_bytes_); }
void Communicator::sum(std::span<int64_t> values) const { all_reduce(values, MPI_SUM, comm_, piece_bytes_); }

std::vector<double> Communicator::all_gather(double value) const {
  std::vector<double> values(index(size_));
  check(MPI_Allgather(&value, 1, MPI_DOUBLE, values.data(), 1, MPI_DOUBLE, comm_), "MPI_Allgather");
  return values;
}

std::vector<int64_t> Communicator::all_gather(int64_t value) const {
  std::vector<int64_t> values(index(size_));
  check(MPI_Allgather(&value, 1, MPI_INT64_T, values.data(), 1, MPI_INT64_T, comm_), "MPI_Allgather");
  return values;
}

std::vector<std::string> Communicator::gather(const std::string& text, int root) const {
  const auto own_size = static_cast<int64_t>(text.size());
  std::vector<int64_t> sizes(rank_ == root ? index(size_) : 0);
  check(MPI_Gather(&own_size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, root, comm_), "MPI_Gather");
  std::vector<std::string> texts(sizes.size());

  if (sum(own_size) <= piece_bytes_) {  // fits int displacements: one collective, by a tree on many ranks
    std::vector<int> counts(sizes.begin(), sizes.end());
    std::vector<int> begins(counts.size());
    int total = 0;
    for (size_t r = 0; r < counts.size(); ++r) begins[r] = total, total += counts[r];
    std::string all(index(total), '\0');
    check(MPI_Gatherv(text.data(), static_cast<int>(own_size), MPI_CHAR, all.data(), counts.data(), begins.data(), MPI_CHAR, root, comm_),
          "MPI_Gatherv");
    for (size_t r = 0; r < texts.size(); ++r) texts[r] = all.substr(index(begins[r]), index(counts[r]));
    return texts;
  }
  if (rank_ != root) {
    for (int64_t begin = 0; begin < own_size; begin += piece_bytes_)
      check(MPI_Send(text.data() + begin, static_cast<int>(std::min(piece_bytes_, own_size - begin)), MPI_CHAR, root, kGatherTag, comm_),
            "MPI_Send");
    return texts;
  }
  for (int r = 0; r < size_; ++r) {
    if (r == root) {
      texts[index(r)] = text;
      continue;
    }
    std::string& incoming = texts[index(r)];
    const int64_t size = sizes[index(r)];
    incoming.resize(index(size));
    for (int64_t begin = 0; begin < size; begin += piece_bytes_)
      check(MPI_Recv(incoming.data() + begin, static_cast<int>(std::min(piece_bytes_, size - begin)), MPI_CHAR, r, kGatherTag, comm_,
                     MPI_STATUS_IGNORE),
            "MPI_Recv");
  }
  return texts;
}

void Communicator::agree(const std::vector<Problem>& mine) const {
  if (max(mine.empty() ? 0 : 1) == 0) return;
  const std::vector<std::string> found = gather(pack(mine));
  throw AgreedError(unpack(broadcast(rank_ == 0 ? pack(merge(found)) : std::string())));
}

void Communicator::agreed(const std::function<void()>& body) const { agree(problems_of(body)); }

void Communicator::on_root(const std::function<void()>& body) const {
  const std::string found = broadcast(rank_ == 0 ? pack(problems_of(body)) : std::string());
  if (!found.empty()) throw AgreedError(unpack(found));
}

void Communicator::abort(const Problem& problem) const {
  // One fwrite, so that the lines of ranks that fail together do not mix.
  const std::string line = fmt::format("longspan: [rank {} {}] {}\n", rank_, host_, problem.text());
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
  const int code = static_cast<int>(problem.code);
  MPI_Abort(comm_, code);
  std::_Exit(code);
}

// NBX: everybody sends with Issend and receives whatever comes. A rank whose letters were all taken enters a non-blocking barrier and
// goes on receiving; when the barrier completes, all letters of all ranks have been taken.
//
//   rank 0 -> rank 2, rank 1 -> nobody:   1 enters at once, 2 too and goes on probing, 0 enters when 2 has taken its letter.
//
// A rank may leave this call and send in the next one while a slower rank still probes here, hence two tags in turns; two are enough,
// as nobody completes the next call's barrier before everybody has left this one.
std::vector<Communicator::Letter> Communicator::sparse_all_to_all(const std::vector<Letter>& letters) const {
  const int tag = kLetterTag + next_tag_;
  next_tag_ ^= 1;

  // A letter ends with its first piece of less than piece_bytes_; one of exactly piece_bytes_ has an empty piece after it.
  std::vector<MPI_Request> sends;
  for (const Letter& letter : letters) {
    const auto size = static_cast<int64_t>(letter.bytes.size());
    for (int64_t begin = 0; begin <= size; begin += piece_bytes_) {
      sends.emplace_back();
      check(MPI_Issend(letter.bytes.data() + begin, static_cast<int>(std::min(piece_bytes_, size - begin)), MPI_BYTE, letter.rank, tag,
                       comm_, &sends.back()),
            "MPI_Issend");
    }
  }

  std::vector<Letter> received;
  std::unordered_map<int, size_t> unfinished;  // sender -> its letter that has more pieces to come
  MPI_Request everybody_sent = MPI_REQUEST_NULL;
  bool in_barrier = false;
  for (;;) {
    int there = 0, done = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, tag, comm_, &there, &status), "MPI_Iprobe");
    if (there) {
      int count = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
      const auto [entry, is_new] = unfinished.try_emplace(status.MPI_SOURCE, received.size());
      if (is_new) received.push_back({.rank = status.MPI_SOURCE});
      std::vector<std::byte>& bytes = received[entry->second].bytes;
      const size_t begin = bytes.size();
      bytes.resize(begin + index(count));
      check(MPI_Recv(bytes.data() + begin, count, MPI_BYTE, status.MPI_SOURCE, tag, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
      if (count < piece_bytes_) unfinished.erase(entry);
      continue;
    }
    if (!in_barrier) {
      check(MPI_Testall(static_cast<int>(sends.size()), sends.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (done) {
        check(MPI_Ibarrier(comm_, &everybody_sent), "MPI_Ibarrier");
        in_barrier = true;
      }
    } else {
      check(MPI_Test(&everybody_sent, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done) break;
    }
    if (!done) sched_yield();
  }
  std::stable_sort(received.begin(), received.end(), [](const Letter& a, const Letter& b) { return a.rank < b.rank; });
  return received;
}

PendingMax::PendingMax(const Communicator& ranks, int64_t value) : value_(value) {
  check(MPI_Iallreduce(&value_, &largest_, 1, MPI_INT64_T, MPI_MAX, ranks.handle(), &request_), "MPI_Iallreduce");
}

int64_t PendingMax::wait() {
  check(MPI_Wait(&request_, MPI_STATUS_IGNORE), "MPI_Wait");
  return largest_;
}

std::string library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  check(MPI_Get_library_version(text, &length), "MPI_Get_library_version");
  std::string version(text, index(length));
  // Open MPI adds package, host and a list of addresses after the first comma; MPICH adds lines.
  version.resize(std::min(version.find_first_of(",\n"), version.size()));
  return version;
}

}  // namespace longspan::comm
