// What a rank computes on: its memory, what happens there, and the way in and out. The engine drives a plan through this and does not know
// whether it is the CPUs of the process (kernels/cpu) or a GPU (kernels/cuda).
//
//   one thread:      allocate, clear, prepare and start a step, wait for it, finish, merge; start loads, uploads and downloads, and ask
//                    whether they are done
//   the I/O thread:  load_rows, load_units, store_rows, beside the compute; store_rows may be another's, beside the other two
//   either:          reach, upload, download
//
// "Device memory" is what allocate() returns; for CPUs it is plain memory and nothing is copied that need not be. Failures are thrown:
// Error(device), or std::bad_alloc where memory is the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "kernels/kernel.hpp"
#include "longspan/error.hpp"

namespace longspan::kernels {

// Memory of a device, which outlives it.
struct Release {
  void (*release)(void* memory, void* device) = nullptr;
  void* device = nullptr;
  void operator()(std::byte* memory) const { release(memory, device); }
};
using Buffer = std::unique_ptr<std::byte, Release>;

// Units by slot, and what the device knows of each.
struct Pool {
  std::byte* units = nullptr;    // [slots], as Step::pool
  uint8_t* nonfinite = nullptr;  // [slots] the unit's V holds NaN or ∞; kept by the device, unused by CPUs
  int64_t slots = 0;
};

// How a device comes to memory that is not from its allocate().
struct Reach {
  bool by_host = true;      // the host's CPUs may read and write it
  bool straight = false;    // copies between it and the device need no memory in between
  bool in_kernels = false;  // kernels read and write it as fast as what allocate() returns, if it is aligned to 16 bytes
};

// Rows of keys and values as files and callers have them, block after block, and the units they go to.
struct KeyRows {
  const std::byte *k = nullptr, *v = nullptr;  // [rows][kv_heads][head_dim]
};
struct KeyBlocks {
  ElementType type = ElementType::bfloat16;
  int head_dim = 0, kv_heads = 0;
  std::span<const int32_t> rows;      // of each block, 1…128
  std::span<const int32_t> slots;     // [blocks][kv_heads]
  std::span<const KeyRows> in_place;  // of each block, where its rows lie that are in reach of kernels; empty: they are read
};

// Where the results of rows go: o [rows][heads][head_dim] of `type`, lse [rows][heads].
struct Results {
  ElementType type = ElementType::bfloat16;
  std::byte* o = nullptr;
  float* lse = nullptr;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "AVX3_ZEN4", "NVIDIA H200"
  // A step's kernel writes O and LSE of items that end, and reads no state of items that begin: finish() is for rows without any item.
  virtual bool finishes_in_steps() const = 0;

  virtual Buffer allocate(int64_t bytes) = 0;
  // Whether what allocate() returns is the host's own memory.
  virtual bool memory_is_host() const { return false; }
  // Host memory that copies to and from this device's are fastest with. A GPU gives it back only when all that it does is done.
  virtual Buffer allocate_host(int64_t bytes) = 0;
  // How many threads may make lists and copy rows in host memory while this device computes: several where that is not the CPU's work.
  virtual int spare_threads() const { return 1; }
  // Zeroes memory of allocate() that nothing else uses yet; done on return.
  virtual void clear(void* memory, int64_t bytes) = 0;
  // Copies between host memory and this device's; done on return.
  virtual void upload(const void* from, int64_t bytes, void* to) = 0;
  virtual void download(const void* from, int64_t bytes, void* to) = 0;

  // For CPUs all memory is theirs. A GPU copies from and to pinned memory straight; its own memory is in reach of its kernels, and not of
  // the host.
  virtual Reach reach(const void* memory) const = 0;

  // `read` is asked for rows [0, rows) in ascending pieces, each into host memory of the device's choice, and says where they are: there,
  // or where they lie anyway, in memory that is reached straight. On return all are at `to`.
  using ReadRows = std::function<const std::byte*(int64_t first, int64_t count, std::byte* to)>;
  virtual void load_rows(int64_t rows, int64_t row_bytes, const ReadRows& read, std::byte* to) = 0;
  // The same for keys and values, which become units. Nothing is read of blocks that are used in place.
  using ReadKeys = std::function<KeyRows(int64_t first, int64_t count, std::byte* k, std::byte* v)>;
  virtual void load_units(const KeyBlocks& blocks, const ReadKeys& read, const Pool& pool) = 0;
  // The same of blocks that are all used in place: returns a number by which to ask whether it is done. The lists may go on return, the
  // rows stay until then. Loads end in their order.
  virtual bool starts_loads() const { return false; }
  virtual int64_t start_loading(const KeyBlocks&, const Pool&) { internal_error("this device loads nothing by itself"); }
  virtual bool is_loaded(int64_t) { return true; }
  // Whether steps of this kind may have units in rows that are in reach of kernels (Step::in_rows).
  virtual bool attends_rows(ElementType, int /*head_dim*/, float /*scale*/) const { return false; }
  // Starts to find out KeysInRows::nonfinite, memory of allocate(), of these 128 rows (numbers below ⌈rows/128⌉), and returns a number as
  // start_loading() does. The list may go on return.
  virtual int64_t start_checking(const KeysInRows&, ElementType, int /*kv_heads*/, int /*head_dim*/, std::span<const int32_t> /*parts*/) {
    internal_error("this device loads all keys");
  }
  // Results of rows [0, rows) in ascending pieces: straight to where `place` wants them, in memory that is reached so, or, if it is
  // empty or names no place for o, to `write`.
  struct ResultRows {
    std::byte* o = nullptr;
    float* lse = nullptr;  // null: nobody wants them
  };
  using PlaceRows = std::function<ResultRows(int64_t first, int64_t count)>;
  using WriteRows = std::function<void(int64_t first, int64_t count, const std::byte* o, const float* lse)>;
  virtual void store_rows(const Results& results, int64_t rows, int heads, int head_dim, const PlaceRows& place,
                          const WriteRows& write) = 0;
  // Units that were filled from elsewhere (messages) are about to be used; by no step that runs. Where attends_rows(), those that are in no
  // tile with a mask need not be told of.
  virtual void units_arrived(const Pool& pool, std::span<const int32_t> slots, ElementType type, int head_dim) = 0;

  // Of the next step that will be started, lists and what they are for (type, heads, kv_heads, head_dim, scale, resident): host memory that
  // stays until that step has run. May come while another one runs; start() has less to do then. Another step may be started all the same.
  virtual void prepare(const Step&) {}
  // What is kept of the step with this work, whose lists stay, goes. It does not run.
  virtual void forget_lists(const Work*) {}
  // Starts a step and returns. Lists, slots and key_rows are host memory, the rest is the device's; all of it stays until wait_for() says
  // yes. `q_rows`: rows of step.q.
  virtual void start(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) = 0;
  // The same while another step runs, whose states and results are none of its own: it takes of the device what that one leaves when it
  // comes to its end. Then there are two, and no third. It is not ordered behind what was asked for while that one ran.
  virtual bool can_start_beside() const { return false; }
  virtual void start_beside(const Step&, int64_t, const Pool&, const Results&) { internal_error("this device has one step at a time"); }
  // The same, but behind the step that runs and what was cleared, merged and uploaded since: it begins when that is done, and nobody has to
  // start it then.
  virtual void start_behind(const Step&, int64_t, const Pool&, const Results&) { internal_error("this device has one step at a time"); }
  // Waits at most so long for the step that runs, of two the first; true when it has ended (also when there was none).
  virtual bool wait_for(double seconds) = 0;

  // These may still be under way on return: what is asked for later, downloads too, comes after them. No step runs, unless they wait by
  // themselves for those that do.
  virtual bool work_waits_for_step() const { return false; }
  // As upload(), from memory of allocate_host() that stays as it is until a step has run that start() started later.
  virtual void start_upload(const void* from, int64_t bytes, void* to) = 0;
  // As download(), to memory of allocate_host(): comes after what was asked for before, and nothing asked for later waits for it. What all
  // of them bring is there when is_downloaded() says so.
  virtual void start_download(const void* from, int64_t bytes, void* to) = 0;
  virtual bool is_downloaded() { return true; }
  virtual void clear_states(int64_t count, int head_dim, float* m, float* l, float* o) = 0;
  virtual void merge(const Merge& merge) = 0;
  // Lists of heads are in host memory, here and in finish(); what is packed in the device's. All of them at once: hundreds of small pieces
  // by themselves would take a GPU a millisecond.
  virtual void merge_blocks(std::span<const MergeBlocks> all) = 0;
  // Done on return: the I/O thread may take the results.
  virtual void finish(std::span<const Finish> all) = 0;
  void finish(const Finish& one) { finish(std::span(&one, 1)); }
};

}  // namespace longspan::kernels
