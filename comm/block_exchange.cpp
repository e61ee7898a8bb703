#include "comm/block_exchange.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <thread>
#include <tuple>

namespace longspan::comm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxTag = 1 << 20;

// While waiting: yield the core after each poll; when nothing has completed for kBusyTime, also sleep after every kPollsPerNap polls, so
// that a rank that waits long leaves its core to those that compute. Polls come in bursts because one poll may move only one fragment.
constexpr auto kBusyTime = std::chrono::milliseconds(10);
constexpr auto kNap = std::chrono::microseconds(50);
constexpr int kPollsPerNap = 16;

// An MPI datatype that is freed at the end of the scope; requests started with it keep what they need.
class Datatype {
 public:
  Datatype() = default;
  ~Datatype() {
    if (type != MPI_DATATYPE_NULL) MPI_Type_free(&type);
  }
  Datatype(const Datatype&) = delete;
  Datatype& operator=(const Datatype&) = delete;

  MPI_Datatype type = MPI_DATATYPE_NULL;
};

// Walks along the blocks of a message: pieces of none left out, pieces that abut joined.
class PieceWalk {
 public:
  PieceWalk(const std::vector<BlockExchange::Piece>& pieces, int64_t block_bytes) : block_bytes_(block_bytes) {
    for (const BlockExchange::Piece& piece : pieces) {
      if (piece.blocks < 0) internal_error("a piece of a message has a negative number of blocks");
      if (piece.blocks == 0) continue;
      total_ += piece.blocks;
      if (!pieces_.empty() && pieces_.back().address + pieces_.back().blocks * block_bytes == piece.address)
        pieces_.back().blocks += piece.blocks;
      else
        pieces_.push_back(piece);
    }
  }

  int64_t total() const { return total_; }

  // The pieces of the next `blocks` blocks.
  //   pieces {a, 3}, {b, 4}:   take(5) -> {a, 3}, {b, 2};   take(2) -> {b+2, 2}
  std::vector<BlockExchange::Piece> take(int64_t blocks) {
    std::vector<BlockExchange::Piece> taken;
    while (blocks > 0) {
      BlockExchange::Piece& front = pieces_[next_];
      const int64_t count = std::min(blocks, front.blocks);
      taken.push_back({front.address, count});
      front.address += count * block_bytes_;
      front.blocks -= count;
      blocks -= count;
      if (front.blocks == 0) ++next_;
    }
    return taken;
  }

 private:
  std::vector<BlockExchange::Piece> pieces_;
  size_t next_ = 0;
  int64_t block_bytes_;
  int64_t total_ = 0;
};

}  // namespace

struct BlockExchange::State {
  enum Direction { kReceive, kSend };
  using Key = std::tuple<int, Direction, int>;  // tag, direction, peer
  struct Part {
    Key message;
    int64_t bytes = 0;
  };
  struct Message {
    int64_t parts_left = 0;
    int64_t bytes_left = 0;
  };

  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;
  int64_t block_bytes = 0;
  int64_t blocks_per_part = 0;
  Datatype block;
  double timeout = 300;
  int64_t bytes_received = 0, bytes_sent = 0;

  // Parts in flight: requests[i] belongs to parts[i].
  std::vector<MPI_Request> requests;
  std::vector<Part> parts;
  std::map<Key, Message> in_flight;  // messages with a part in flight; ordered, so that one tag's messages of one direction are a range
  std::vector<int> completed;        // scratch of poll()
  std::vector<MPI_Status> statuses;  // scratch of poll()

  void post(int tag, Direction direction, const BlockExchange::Message& message);
  bool poll();
  void account(size_t request, MPI_Status status);
  bool awaits(int tag, Direction direction) const {
    const auto first = in_flight.lower_bound({tag, direction, 0});
    return first != in_flight.end() && std::get<0>(first->first) == tag && std::get<1>(first->first) == direction;
  }
  void finish(int tag, Direction direction);
  [[noreturn]] void throw_timeout(int tag, Direction direction, double waited) const;
};

// Posts one message, part by part. Both sides cut at the same blocks because a part's size depends on nothing but the block's size:
//   10 blocks, 4 per part:   blocks 0-3, 4-7, 8-9, whatever the pieces are
// and MPI matches messages of one sender, receiver and tag in the order in which they were posted.
void BlockExchange::State::post(int tag, Direction direction, const BlockExchange::Message& message) {
  if (message.peer < 0 || message.peer >= size || message.peer == rank)
    internal_error(fmt::format("rank {} of {} exchanges blocks with rank {}", rank, size, message.peer));
  PieceWalk walk(message.pieces, block_bytes);
  if (walk.total() == 0) return;
  const Key key{tag, direction, message.peer};
  const auto [entry, is_new] = in_flight.try_emplace(key);
  if (!is_new) internal_error(fmt::format("two messages of step {} with rank {} are in flight in the same direction", tag, message.peer));

  for (int64_t begin = 0; begin < walk.total(); begin += blocks_per_part) {
    const int64_t blocks = std::min(blocks_per_part, walk.total() - begin);
    const std::vector<Piece> pieces = walk.take(blocks);
    Datatype scattered;
    void* address = pieces.front().address;
    int count = static_cast<int>(blocks);
    MPI_Datatype type = block.type;
    if (pieces.size() > 1) {
      std::vector<int> lengths;
      std::vector<MPI_Aint> addresses;
      for (const Piece& piece : pieces) {
        lengths.push_back(static_cast<int>(piece.blocks));
        check(MPI_Get_address(piece.address, &addresses.emplace_back()), "MPI_Get_address");
      }
      check(MPI_Type_create_hindexed(static_cast<int>(pieces.size()), lengths.data(), addresses.data(), block.type, &scattered.type),
            "MPI_Type_create_hindexed");
      check(MPI_Type_commit(&scattered.type), "MPI_Type_commit");
      address = MPI_BOTTOM;
      count = 1;
      type = scattered.type;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    if (direction == kReceive)
      check(MPI_Irecv(address, count, type, message.peer, tag, comm, &request), "MPI_Irecv");
    else
      check(MPI_Isend(address, count, type, message.peer, tag, comm, &request), "MPI_Isend");
    requests.push_back(request);
    parts.push_back({key, blocks * block_bytes});
    ++entry->second.parts_left;
    entry->second.bytes_left += blocks * block_bytes;
  }
}

// Books a completed part; a received one must have the planned length.
void BlockExchange::State::account(size_t request, MPI_Status status) {
  const auto& [key, bytes] = parts[request];
  const auto& [tag, direction, peer] = key;
  if (direction == kReceive) {
    MPI_Count arrived = 0;
    check(MPI_Get_elements_x(&status, MPI_BYTE, &arrived), "MPI_Get_elements_x");
    if (arrived != bytes)
      throw Error({.code = ExitCode::communication,
                   .what = fmt::format("rank {} sent rank {} a message of the wrong length in step {}", peer, rank, tag),
                   .seen = fmt::format("{} bytes", arrived),
                   .expected = fmt::format("{} bytes", bytes),
                   .mend = "the ranks' plans disagree: please report this with the run record"});
  }
  (direction == kReceive ? bytes_received : bytes_sent) += bytes;
  const auto entry = in_flight.find(key);
  entry->second.bytes_left -= bytes;
  if (--entry->second.parts_left == 0) in_flight.erase(entry);
}

// True when a part completed.
bool BlockExchange::State::poll() {
  if (requests.empty()) return false;
  completed.resize(requests.size());
  statuses.resize(requests.size());
  int count = 0;
  const int result = MPI_Testsome(static_cast<int>(requests.size()), requests.data(), &count, completed.data(), statuses.data());
  if (result == MPI_ERR_IN_STATUS) {
    for (int i = 0; i < count; ++i) {
      const auto& [tag, direction, peer] = parts[static_cast<size_t>(completed[static_cast<size_t>(i)])].message;
      const int failure = statuses[static_cast<size_t>(i)].MPI_ERROR;
      if (failure != MPI_SUCCESS && failure != MPI_ERR_PENDING)
        check(failure, fmt::format("{} step {} {} rank {}", direction == kReceive ? "receiving" : "sending", tag,
                                   direction == kReceive ? "from" : "to", peer)
                           .c_str());
    }
  }
  check(result, "MPI_Testsome");
  if (count <= 0) return false;  // none, or MPI_UNDEFINED

  for (int i = 0; i < count; ++i) account(static_cast<size_t>(completed[static_cast<size_t>(i)]), statuses[static_cast<size_t>(i)]);
  size_t kept = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i] == MPI_REQUEST_NULL) continue;
    requests[kept] = requests[i];
    parts[kept++] = parts[i];
  }
  requests.resize(kept);
  parts.resize(kept);
  return true;
}

void BlockExchange::State::finish(int tag, Direction direction) {
  auto last = Clock::now();
  for (int64_t polls = 1; awaits(tag, direction); ++polls) {
    if (poll()) {
      last = Clock::now();
      continue;
    }
    const auto idle = Clock::now() - last;
    const double waited = std::chrono::duration<double>(idle).count();
    if (timeout > 0 && waited >= timeout) throw_timeout(tag, direction, waited);
    sched_yield();
    if (idle > kBusyTime && polls % kPollsPerNap == 0) std::this_thread::sleep_for(kNap);
  }
}

void BlockExchange::State::throw_timeout(int tag, Direction direction, double waited) const {
  std::vector<int> peers;
  int64_t bytes = 0;
  for (auto entry = in_flight.lower_bound({tag, direction, 0}); entry != in_flight.end(); ++entry) {
    const auto& [entry_tag, entry_direction, peer] = entry->first;
    if (entry_tag != tag || entry_direction != direction) break;
    peers.push_back(peer);
    bytes += entry->second.bytes_left;
  }
  throw Error(
      {.code = ExitCode::communication,
       .what = fmt::format("time-out: nothing moved for {:.3g} s in step {} of the exchange", waited, tag),
       .seen = fmt::format("{} bytes still to {} {}", bytes, direction == kReceive ? "come from" : "be taken by", describe_ranks(peers)),
       .from = fmt::format("rank {}", rank),
       .mend = "see whether those ranks still run and their hosts can be reached"});
}

BlockExchange::BlockExchange(const Communicator& communicator, int64_t block_bytes, int64_t part_bytes)
    : state_(std::make_unique<State>()) {
  if (block_bytes < 1 || block_bytes > kPieceBytes) internal_error(fmt::format("blocks of {} bytes cannot be exchanged", block_bytes));
  State& s = *state_;
  s.rank = communicator.rank();
  s.size = communicator.size();
  s.block_bytes = block_bytes;
  s.blocks_per_part = std::max<int64_t>(1, std::min(part_bytes, kPieceBytes) / block_bytes);

  int* most = nullptr;
  int is_set = 0;
  check(MPI_Comm_get_attr(communicator.handle(), MPI_TAG_UB, static_cast<void*>(&most), &is_set), "MPI_Comm_get_attr");
  if (is_set && *most < kMaxTag)
    throw Error({.code = ExitCode::environment,
                 .what = "this MPI library has too few message tags",
                 .seen = std::to_string(*most),
                 .expected = fmt::format("at least {}", kMaxTag),
                 .from = library_version(),
                 .mend = "use another MPI library or transport"});
  check(MPI_Comm_dup(communicator.handle(), &s.comm), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(s.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Type_contiguous(static_cast<int>(block_bytes), MPI_BYTE, &s.block.type), "MPI_Type_contiguous");
  check(MPI_Type_commit(&s.block.type), "MPI_Type_commit");
}

BlockExchange::~BlockExchange() {
  int finalized = 0;
  if (MPI_Finalized(&finalized) != MPI_SUCCESS || finalized) {
    state_->block.type = MPI_DATATYPE_NULL;
    return;
  }
  for (size_t i = 0; i < state_->requests.size(); ++i) {
    if (state_->requests[i] == MPI_REQUEST_NULL) continue;  // failed
    int done = 0;
    if (std::get<1>(state_->parts[i].message) == State::kReceive) {
      MPI_Cancel(&state_->requests[i]);
      MPI_Test(&state_->requests[i], &done, MPI_STATUS_IGNORE);
    }
    if (!done) MPI_Request_free(&state_->requests[i]);
  }
  if (std::uncaught_exceptions() == 0) MPI_Comm_free(&state_->comm);
}

void BlockExchange::start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) {
  if (tag < 0 || tag > kMaxTag) internal_error(fmt::format("exchange step {} is out of range", tag));
  for (const Message& message : receives) state_->post(tag, State::kReceive, message);
  for (const Message& message : sends) state_->post(tag, State::kSend, message);
}

int64_t BlockExchange::messages_in_flight() const { return static_cast<int64_t>(state_->requests.size()); }

void BlockExchange::progress() { state_->poll(); }

bool BlockExchange::received(int tag) {
  if (!state_->awaits(tag, State::kReceive)) return true;
  state_->poll();
  return !state_->awaits(tag, State::kReceive);
}

bool BlockExchange::sent(int tag) {
  if (!state_->awaits(tag, State::kSend)) return true;
  state_->poll();
  return !state_->awaits(tag, State::kSend);
}

void BlockExchange::finish_receives(int tag) { state_->finish(tag, State::kReceive); }
void BlockExchange::finish_sends(int tag) { state_->finish(tag, State::kSend); }
void BlockExchange::set_timeout(double seconds) { state_->timeout = seconds; }

int64_t BlockExchange::bytes_received() const { return state_->bytes_received; }
int64_t BlockExchange::bytes_sent() const { return state_->bytes_sent; }

}  // namespace longspan::comm
