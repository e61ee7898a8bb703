// Ranks: RAII over MPI. All MPI calls of Longspan are in comm/ and launch/; every call's result is checked and a failure names the
// call, the rank and MPI's own text. Counts are 64-bit here and narrowed inside.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "longspan/error.hpp"

namespace longspan::comm {

// Throws Error(communication) with MPI's text unless `result` is MPI_SUCCESS. Use: check(MPI_Barrier(c), "MPI_Barrier").
void check(int result, const char* call);

// Pieces that a longer transfer is cut into: MPI counts are int, and 1 GiB keeps clear of every library's 2 GiB limits.
inline constexpr int64_t kPieceBytes = int64_t{1} << 30;

// {3} -> "rank 3", {2, 3, 4, 5, 9} -> "ranks 2-5, 9"; after 16 runs "and 480 more". `ranks` ascend.
std::string describe_ranks(const std::vector<int>& ranks);

// MPI_Init_thread … MPI_Finalize for a program; does nothing if the host program has initialised MPI already. Asks for
// MPI_THREAD_FUNNELED: the thread that makes the Session makes every MPI call. Waiting ranks yield their core unless the
// environment says otherwise (OMPI_MCA_mpi_yield_when_idle), so that more ranks than cores work under any launcher.
// Make it outside the try block that reports errors: the destructor does not finalise while an exception unwinds (one rank's
// exception must not wait for the others, who may never come).
class Session {
 public:
  Session(int* argc, char*** argv);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  bool owned_ = false;
};

// The verdict of Communicator::agree and on_root: every rank throws the same one, so every rank may leave in good order. Any other Error
// may be one rank's own, whom the others wait for: Communicator::abort.
class AgreedError : public Error {
 public:
  using Error::Error;
};

// A private duplicate of a communicator, with errors returned rather than fatal. Collective to create and destroy
// (the destructor frees only when no exception is in flight: unwinding on one rank must not wait for the others).
class Communicator {
 public:
  // `piece_bytes` is for tests of long transfers with short ones.
  explicit Communicator(MPI_Comm from, int64_t piece_bytes = kPieceBytes);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm handle() const { return comm_; }
  const std::string& host() const { return host_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this host
  int local_size() const { return local_size_; }
  int hosts() const { return hosts_; }
  // The lowest rank on the host of each rank: two ranks share a host when theirs is the same.
  const std::vector<int>& host_of_rank() const { return host_of_rank_; }

  void barrier() const;
  // A barrier for ranks that may wait long beside others that compute: they sleep between two looks.
  void barrier_at_rest() const;
  // The ranks below `count` among themselves; null on the others. Collective over all of them, as is the destruction over the few.
  std::unique_ptr<Communicator> first(int count) const;
  // This rank alone. Not collective.
  std::unique_ptr<Communicator> alone() const;
  void broadcast(void* data, int64_t bytes, int root = 0) const;
  std::string broadcast(const std::string& text, int root = 0) const;
  int64_t sum(int64_t value) const;
  int64_t max(int64_t value) const;
  int64_t min(int64_t value) const;
  void max(std::span<int64_t> values) const;  // in place, element by element
  void sum(std::span<int64_t> values) const;
  // values[r] = rank r's value, on every rank.
  std::vector<double> all_gather(double value) const;
  std::vector<int64_t> all_gather(int64_t value) const;
  std::vector<std::string> gather(const std::string& text, int root = 0) const;  // empty on other ranks

  // Ends a set-up phase together: every rank passes the problems it found (maybe none). If any rank has one, every rank throws the
  // same AgreedError: all distinct problems in rank order, each naming the ranks when not all of them saw it ("cannot open x.h5 on
  // ranks 2-5, 9"). The error's code is that of its first problem. Collective.
  void agree(const std::vector<Problem>& mine) const;
  // Runs `body`, catches what it throws (other exceptions than Error become problems too), and agrees. Collective calls inside `body` are
  // allowed only if no rank can throw before them.
  void agreed(const std::function<void()>& body) const;

  // The same when rank 0 alone has something to do (look at a file, make it): `body` runs there, the others wait for its verdict.
  // Collective.
  void on_root(const std::function<void()>& body) const;

  // Running phases: prints one line "[rank 13 host] problem" and ends all ranks with its exit code. Never returns.
  [[noreturn]] void abort(const Problem& problem) const;

  // Each rank sends bytes to a few others, who do not know it yet (NBX: Hoefler, Siebert, Lumsdaine, PPoPP 2010).
  // Returns what came in, by ascending sender; several letters of one sender keep their order; letters to oneself and empty ones
  // arrive as well. Collective; time grows with the rank's own messages and log(size), not with size.
  struct Letter {
    int rank = 0;  // receiver going in, sender coming out
    std::vector<std::byte> bytes;
  };
  std::vector<Letter> sparse_all_to_all(const std::vector<Letter>& letters) const;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1, hosts_ = 1;
  int64_t piece_bytes_ = kPieceBytes;
  std::string host_;
  std::vector<int> host_of_rank_;
  mutable int next_tag_ = 0;  // of sparse_all_to_all: 0 and 1 in turns
};

// The largest of the ranks' values, found while they work on. All ranks start the same ones, in the same order as their other
// collective calls, and wait for each before it is destroyed (but for a job that ends).
class PendingMax {
 public:
  PendingMax(const Communicator& ranks, int64_t value);
  PendingMax(const PendingMax&) = delete;
  PendingMax& operator=(const PendingMax&) = delete;
  int64_t wait();

 private:
  int64_t value_, largest_ = 0;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

// Name and version of the MPI library, at run time.
std::string library_version();

}  // namespace longspan::comm
