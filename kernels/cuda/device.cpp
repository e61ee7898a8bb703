#include "kernels/cuda/device.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cpu/thread_pool.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/queue.hpp"
#include "kernels/cuda/small_copies.hpp"
#include "kernels/cuda/units.hpp"

namespace longspan::kernels::cuda {

namespace {

constexpr int64_t kAlignment = 256;  // of arrays that lie in one piece of device memory
// A step's end is looked for without rest while a nap, which takes twice as long as it says, would be a good part of the step.
constexpr auto kBusyTime = std::chrono::milliseconds(5);
constexpr auto kNap = std::chrono::microseconds(50);

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, const Stream& stream) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream.get()), "cudaMemcpyAsync");
}

// Arrays of the host side by side in one piece of device memory: add() all, then send() once, then ask where each lies. They go through
// pinned memory in one copy: one from other memory, and each of several, would make the caller wait for what else is on the link.
class Parcel {
 public:
  template <typename T>
  size_t add(std::span<const T> array) {
    parts_.push_back({array.data(), static_cast<int64_t>(array.size_bytes()), bytes_});
    bytes_ += aligned(parts_.back().bytes);
    return parts_.size() - 1;
  }
  // `pinned` stays until the stream has been here. `beside_a_step`: not by a kernel, which would wait for it.
  void send(GrowingPinnedMemory& pinned, DeviceMemory& memory, const Stream& stream, bool beside_a_step) {
    std::byte* host = pinned.reserve(bytes_);
    base_ = memory.reserve(bytes_, stream);
    for (const Part& part : parts_)
      if (part.bytes > 0) std::memcpy(host + part.at, part.from, static_cast<size_t>(part.bytes));
    if (beside_a_step)
      copy(base_, host, bytes_, cudaMemcpyHostToDevice, stream);
    else
      copy_small(base_, host, bytes_, stream.get());
  }
  template <typename T>
  const T* at(size_t part) const {
    return reinterpret_cast<const T*>(base_ + parts_[part].at);
  }
  template <typename T>
  std::span<const T> span(size_t part) const {
    return {at<T>(part), static_cast<size_t>(parts_[part].bytes) / sizeof(T)};
  }

 private:
  struct Part {
    const void* from;
    int64_t bytes, at;
  };
  std::vector<Part> parts_;
  int64_t bytes_ = 0;
  std::byte* base_ = nullptr;
};

bool has_lists_of(const Step& prepared, const Step& step) {
  const auto same = [](const auto& a, const auto& b) { return a.data() == b.data() && a.size() == b.size(); };
  return !prepared.work.empty() && same(prepared.work, step.work) && same(prepared.tiles, step.tiles) &&
         same(prepared.head_lists, step.head_lists) && same(prepared.masks, step.masks) && prepared.type == step.type &&
         prepared.heads == step.heads && prepared.kv_heads == step.kv_heads && prepared.head_dim == step.head_dim &&
         prepared.scale == step.scale && prepared.resident == step.resident;
}

}  // namespace

GpuDevice::GpuDevice(Gpu gpu, const GpuOptions& options)
    : gpu_(std::move(gpu)),
      staging_bytes_(std::max<int64_t>(1 << 16, options.host_bytes / 4)),
      kept_(gpu_.ordinal),
      current_(gpu_.ordinal) {}

int GpuDevice::spare_threads() const {
  constexpr int kMost = 16;  // more were not measured
  return std::clamp(cpu::available_cpus() - 1, 1, kMost);
}

Buffer GpuDevice::allocate(int64_t bytes) {
  return Buffer(kept_.take(bytes), {[](void* memory, void* kept) { static_cast<KeptMemory*>(kept)->give_back(memory); }, &kept_});
}

Buffer GpuDevice::allocate_host(int64_t bytes) {
  const CurrentDevice current(gpu_.ordinal);
  return Buffer(allocate_pinned(bytes), {[](void* memory, void*) { cudaFreeHost(memory); }});
}

Reach GpuDevice::reach(const void* memory) const {
  const CurrentDevice current(gpu_.ordinal);
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
    cudaGetLastError();  // memory that CUDA does not know at all
    return {};
  }
  const bool of_gpu = attributes.type == cudaMemoryTypeDevice;  // of any
  return {.by_host = !of_gpu,
          .straight = of_gpu || attributes.type == cudaMemoryTypeHost,
          .in_kernels = of_gpu && attributes.device == gpu_.ordinal};
}

void GpuDevice::clear(void* memory, int64_t bytes) {
  if (bytes == 0) return;
  const CurrentDevice current(gpu_.ordinal);
  check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), after_steps().get()), "cudaMemsetAsync");
  compute_.synchronize();
}
void GpuDevice::upload(const void* from, int64_t bytes, void* to) {
  const CurrentDevice current(gpu_.ordinal);
  start_copy(to, from, bytes, from, after_steps());
  compute_.synchronize();
}
void GpuDevice::download(const void* from, int64_t bytes, void* to) {
  const CurrentDevice current(gpu_.ordinal);
  start_copy(to, from, bytes, to, after_steps());
  compute_.synchronize();
}
void GpuDevice::start_upload(const void* from, int64_t bytes, void* to) {
  const CurrentDevice current(gpu_.ordinal);
  start_copy(to, from, bytes, from, after_steps());
}
void GpuDevice::start_download(const void* from, int64_t bytes, void* to) {
  const CurrentDevice current(gpu_.ordinal);
  to_download_.record(after_steps().get());
  down_.wait_for(to_download_);
  start_copy(to, from, bytes, to, down_);
  downloaded_.record(down_.get());
}
bool GpuDevice::is_downloaded() {
  const CurrentDevice current(gpu_.ordinal);
  return downloaded_.done();
}

// `host`: that of the two which is the host's. The other one may be another GPU's, which kernels of this one do not reach.
void GpuDevice::start_copy(void* to, const void* from, int64_t bytes, const void* host, const Stream& stream) {
  const CurrentDevice current(gpu_.ordinal);
  const bool in_words = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(bytes)) % 4 == 0;
  const auto is_pinned = [&](const void* memory) { return reach(memory).straight && reach(memory).by_host; };
  if (bytes > 0 && bytes <= kMostSmallBytes && in_words && is_pinned(host) && is_pinned(static_cast<const std::byte*>(host) + bytes - 1) &&
      reach(host == to ? from : to).in_kernels)
    copy_small(to, from, bytes, stream.get());
  else
    copy(to, from, bytes, cudaMemcpyDefault, stream);
}

void GpuDevice::load_rows(int64_t rows, int64_t row_bytes, const ReadRows& read, std::byte* to) {
  const CurrentDevice current(gpu_.ordinal);
  const int64_t at_once = std::max<int64_t>(1, staging_bytes_ / row_bytes);
  size_t turn = 0;
  for (int64_t first = 0; first < rows; first += at_once) {
    Staging& staging = loads_[turn++ % 2];
    const int64_t count = std::min(at_once, rows - first);
    staging.free.wait();
    std::byte* host = staging.host.reserve(std::max(staging_bytes_, row_bytes));
    const std::byte* from = read(first, count, host);
    copy(to + first * row_bytes, from, count * row_bytes, cudaMemcpyDefault, in_);
    staging.free.record(in_.get());
  }
  in_.synchronize();
}

// A pinned buffer holds k, v, then each block's place among the rows, then the slots.
void GpuDevice::load_units(const KeyBlocks& blocks, const ReadKeys& read, const Pool& pool) {
  const CurrentDevice current(gpu_.ordinal);
  const int64_t row_bytes = static_cast<int64_t>(size_of(blocks.type)) * blocks.head_dim * blocks.kv_heads;
  const bool in_place = !blocks.in_place.empty();
  const int64_t read_bytes = in_place ? 0 : 2 * kTile * row_bytes;  // of a block
  const int64_t block_bytes = read_bytes + static_cast<int64_t>(sizeof(UnitRows)) + 4 * blocks.kv_heads;
  const auto at_once = static_cast<size_t>(std::max<int64_t>(1, (staging_bytes_ - 4 * kAlignment) / block_bytes));
  const int64_t most = std::max(staging_bytes_, block_bytes + 4 * kAlignment);
  int64_t first_row = 0;
  size_t turn = 0;
  for (size_t first = 0; first < blocks.rows.size(); first += at_once) {
    Staging& staging = loads_[turn++ % 2];
    staging.free.wait();
    std::byte* host = staging.host.reserve(most);
    std::byte* twin = staging.twin.reserve(most);
    const auto part = blocks.rows.subspan(first, std::min(at_once, blocks.rows.size() - first));
    int64_t rows = 0;
    for (int32_t count : part) rows += in_place ? 0 : count;
    const int64_t v = aligned(rows * row_bytes), places = 2 * v;
    const int64_t slots = aligned(places + static_cast<int64_t>(part.size() * sizeof(UnitRows)));
    const auto slot_bytes = static_cast<int64_t>(part.size() * sizeof(int32_t)) * blocks.kv_heads;
    const KeyRows from = in_place ? KeyRows{host, host + v} : read(first_row, rows, host, host + v);
    std::byte* at = twin;
    for (size_t b = 0; b < part.size(); at += part[b++] * row_bytes) {
      const KeyRows of_block = in_place ? blocks.in_place[first + b] : KeyRows{at, at + v};
      reinterpret_cast<UnitRows*>(host + places)[b] = {of_block.k, of_block.v, part[b]};
    }
    std::memcpy(host + slots, blocks.slots.data() + first * static_cast<size_t>(blocks.kv_heads), static_cast<size_t>(slot_bytes));
    const bool in_buffer = from.k == host && from.v == host + v;
    if (!in_buffer) {
      copy(twin, from.k, rows * row_bytes, cudaMemcpyDefault, in_);
      copy(twin + v, from.v, rows * row_bytes, cudaMemcpyDefault, in_);
    } else {
      copy(twin, host, places, cudaMemcpyHostToDevice, in_);
    }
    staging.copied.record(in_.get());
    pack_.wait_for(staging.copied);
    copy_small(twin + places, host + places, slots + slot_bytes - places, pack_.get());
    pack_units({.type = blocks.type,
                .head_dim = blocks.head_dim,
                .kv_heads = blocks.kv_heads,
                .blocks = static_cast<int64_t>(part.size()),
                .rows = reinterpret_cast<const UnitRows*>(twin + places),
                .slots = reinterpret_cast<const int32_t*>(twin + slots),
                .pool = pool.units,
                .nonfinite = pool.nonfinite},
               pack_.get());
    staging.free.record(pack_.get());
    first_row += rows;
  }
  pack_.synchronize();
}

GpuDevice::Load& GpuDevice::idle_load() {
  if (idle_loads_.empty()) idle_loads_.emplace_back();
  return idle_loads_.front();
}

int64_t GpuDevice::load_started(Load& load) {
  load.done.record(pack_.get());
  loading_.splice(loading_.end(), idle_loads_, idle_loads_.begin());
  return ++loads_started_;
}

int64_t GpuDevice::start_loading(const KeyBlocks& blocks, const Pool& pool) {
  const CurrentDevice current(gpu_.ordinal);
  Load& load = idle_load();
  std::vector<UnitRows> rows;
  rows.reserve(blocks.rows.size());
  for (size_t b = 0; b < blocks.rows.size(); ++b) rows.push_back({blocks.in_place[b].k, blocks.in_place[b].v, blocks.rows[b]});
  Parcel parcel;
  const size_t of_rows = parcel.add(std::span<const UnitRows>(rows)), of_slots = parcel.add(blocks.slots);
  if (!rows.empty()) parcel.send(load.host, load.twin, pack_, false);
  pack_units({.type = blocks.type,
              .head_dim = blocks.head_dim,
              .kv_heads = blocks.kv_heads,
              .blocks = static_cast<int64_t>(rows.size()),
              .rows = parcel.at<UnitRows>(of_rows),
              .slots = parcel.at<int32_t>(of_slots),
              .pool = pool.units,
              .nonfinite = pool.nonfinite},
             pack_.get());
  return load_started(load);
}

bool GpuDevice::attends_rows(ElementType type, int head_dim, float scale) const {
  const CurrentDevice current(gpu_.ordinal);
  Step like;
  like.type = type, like.head_dim = head_dim, like.scale = scale;
  return takes_hopper(like);
}

int64_t GpuDevice::start_checking(const KeysInRows& keys, ElementType type, int kv_heads, int head_dim, std::span<const int32_t> parts) {
  const CurrentDevice current(gpu_.ordinal);
  Load& check = idle_load();
  Parcel parcel;
  const size_t of_parts = parcel.add(parts);
  if (!parts.empty()) parcel.send(check.host, check.twin, pack_, false);
  flag_nonfinite(keys, type, kv_heads, head_dim, parcel.span<int32_t>(of_parts), pack_.get());
  return load_started(check);
}

bool GpuDevice::is_loaded(int64_t load) {
  const CurrentDevice current(gpu_.ordinal);
  while (!loading_.empty() && loading_.front().done.done()) idle_loads_.splice(idle_loads_.end(), loading_, loading_.begin());
  return load <= loads_started_ - static_cast<int64_t>(loading_.size());
}

void GpuDevice::store_rows(const Results& results, int64_t rows, int heads, int head_dim, const PlaceRows& place, const WriteRows& write) {
  const CurrentDevice current(gpu_.ordinal);
  const int64_t o_bytes = int64_t{heads} * head_dim * static_cast<int64_t>(size_of(results.type)), lse_bytes = int64_t{heads} * 4;
  const int64_t at_once = std::max<int64_t>(1, (staging_bytes_ - kAlignment) / (o_bytes + lse_bytes));
  const int64_t pieces = (rows + at_once - 1) / at_once, lse_at = aligned(at_once * o_bytes);
  const auto count_of = [&](int64_t piece) { return std::min(at_once, rows - piece * at_once); };
  std::array<bool, 2> goes_straight{};
  const auto fetch = [&](int64_t piece) {
    Staging& staging = stores_[static_cast<size_t>(piece % 2)];
    ResultRows to = place ? place(piece * at_once, count_of(piece)) : ResultRows{};
    goes_straight[static_cast<size_t>(piece % 2)] = to.o != nullptr;
    if (to.o == nullptr) {
      to.o = staging.host.reserve(std::max(staging_bytes_, lse_at + at_once * lse_bytes));
      to.lse = reinterpret_cast<float*>(to.o + lse_at);
    }
    copy(to.o, results.o + piece * at_once * o_bytes, count_of(piece) * o_bytes, cudaMemcpyDefault, out_);
    if (to.lse != nullptr) copy(to.lse, results.lse + piece * at_once * heads, count_of(piece) * lse_bytes, cudaMemcpyDefault, out_);
    staging.free.record(out_.get());
  };
  if (pieces > 0) fetch(0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    if (piece + 1 < pieces) fetch(piece + 1);
    Staging& staging = stores_[static_cast<size_t>(piece % 2)];
    staging.free.wait();
    if (goes_straight[static_cast<size_t>(piece % 2)]) continue;
    const std::byte* host = staging.host.get();
    write(piece * at_once, count_of(piece), host, reinterpret_cast<const float*>(host + lse_at));
  }
}

void GpuDevice::units_arrived(const Pool& pool, std::span<const int32_t> slots, ElementType type, int head_dim) {
  if (slots.empty()) return;
  const CurrentDevice current(gpu_.ordinal);
  const auto bytes = static_cast<int64_t>(slots.size_bytes());
  arrived_sent_.wait();  // those of the call before
  std::byte* host = arrived_host_.reserve(bytes);
  std::memcpy(host, slots.data(), slots.size_bytes());
  std::byte* list = arrived_list_.reserve(bytes, arrive_);
  copy_small(list, host, bytes, arrive_.get());
  arrived_sent_.record(arrive_.get());
  flag_nonfinite(pool.units, reinterpret_cast<const int32_t*>(list), static_cast<int64_t>(slots.size()), type, head_dim, pool.nonfinite,
                 arrive_.get());
  arrived_.record(arrive_.get());
}

void GpuDevice::prepare(const Step& next) {
  const CurrentDevice current(gpu_.ordinal);
  Lists& lists = lists_of(next);
  if (next.lists_stay && has_lists_of(lists.of, next)) return;
  lists.of = {};
  auto& [host, sent] = parcels_[next_parcel_++ % 2];
  sent.wait();
  DeviceStep& step = lists.step;
  step.halves_at_a_time = takes_hopper(next) ? halves_at_a_time(next) : 2;
  const std::vector<Item> items = queue(next, step.halves_at_a_time);
  const uint32_t zero = 0;
  Parcel parcel;
  const size_t work = parcel.add(next.work), tiles = parcel.add(next.tiles), head_lists = parcel.add(next.head_lists),
               masks = parcel.add(next.masks), pairs = parcel.add(std::span<const Item>(items)), counter = parcel.add(std::span(&zero, 1));
  parcel.send(host, lists.memory, lists_in_, true);
  sent.record(lists_in_.get());
  lists.sent.record(lists_in_.get());
  step.step.work = parcel.span<Work>(work);
  step.step.tiles = parcel.span<Tile>(tiles);
  step.step.head_lists = parcel.span<int32_t>(head_lists);
  step.step.masks = parcel.span<MaskBits>(masks);
  step.items = parcel.at<Item>(pairs);
  step.item_count = static_cast<int64_t>(items.size());
  step.state_rows = 0;
  for (const Work& one : next.work)
    if (!one.begins) step.state_rows = std::max(step.state_rows, one.state_row + one.rows);
  step.counter = const_cast<uint32_t*>(parcel.at<uint32_t>(counter));
  lists.of = next;
}

void GpuDevice::start(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) {
  for (; ended_ != started_; ++ended_) steps_[ended_ % 2].done.wait();  // what a run that has failed left behind
  launch(step, q_rows, pool, results, compute_);
}

// In another stream than the step that runs, so that its blocks of threads begin as those of that one end.
void GpuDevice::start_beside(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) {
  if (started_ != ended_ + 1) internal_error("a step is started beside none or two");
  launch(step, q_rows, pool, results, steps_[ended_ % 2].stream == &compute_ ? beside_ : compute_);
}

void GpuDevice::start_behind(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) {
  if (started_ != ended_ + 1) internal_error("a step is started behind none or two");
  const CurrentDevice current(gpu_.ordinal);
  launch(step, q_rows, pool, results, after_steps());
}

// For work that comes after all steps that run.
const Stream& GpuDevice::after_steps() {
  for (size_t step = ended_; step != started_; ++step)
    if (steps_[step % 2].stream != &compute_) compute_.wait_for(steps_[step % 2].done);
  return compute_;
}

void GpuDevice::launch(const Step& step, int64_t q_rows, const Pool& pool, const Results& results, const Stream& stream) {
  const CurrentDevice current(gpu_.ordinal);
  Started& now = steps_[started_++ % 2];
  now.stream = &stream;
  Lists& lists = lists_of(step);
  if (!has_lists_of(lists.of, step)) prepare(step);
  if (!step.lists_stay) lists.of = {}, next_lists_ = 1 - next_lists_;
  Parcel places;
  const size_t slots = places.add(std::span(step.slots, static_cast<size_t>(step.resident * step.kv_heads))),
               key_rows = places.add(std::span(step.key_rows, static_cast<size_t>(step.resident)));
  places.send(now.places_host, now.places, stream, false);

  DeviceStep device = lists.step;
  device.step = step;
  device.step.work = lists.step.step.work;
  device.step.tiles = lists.step.step.tiles;
  device.step.head_lists = lists.step.step.head_lists;
  device.step.masks = lists.step.step.masks;
  device.step.slots = places.at<int32_t>(slots);
  device.step.key_rows = places.at<int32_t>(key_rows);
  device.output_type = results.type;
  device.out = results.o;
  device.lse = results.lse;
  device.q_rows = q_rows;
  device.pool_slots = pool.slots;
  device.nonfinite_v = pool.nonfinite;
  stream.wait_for(lists.sent);
  stream.wait_for(arrived_);
  forward(device, stream.get());
  now.done.record(stream.get());
  now.began = Clock::now();
}

bool GpuDevice::wait_for(double seconds) {
  const CurrentDevice current(gpu_.ordinal);
  if (started_ == ended_) return true;
  const Started& step = steps_[ended_ % 2];
  const auto start = Clock::now();
  while (!step.done.done()) {
    const auto now = Clock::now();
    if (std::chrono::duration<double>(now - start).count() >= seconds) return false;
    if (now - step.began < kBusyTime)
      sched_yield();
    else
      std::this_thread::sleep_for(kNap);
  }
  if (++ended_ != started_) steps_[ended_ % 2].began = Clock::now();
  return true;
}

void GpuDevice::clear_states(int64_t count, int head_dim, float* m, float* l, float* o) {
  const CurrentDevice current(gpu_.ordinal);
  cuda::clear_states(count, head_dim, m, l, o, after_steps().get());
}

void GpuDevice::finish(std::span<const Finish> all) {
  const CurrentDevice current(gpu_.ordinal);
  after_steps();
  for (Finish one : all) {
    one.head_list = on_device(one.head_list);
    cuda::finish(one, compute_.get());
  }
  compute_.synchronize();
}

void GpuDevice::merge(const Merge& merge) {
  const CurrentDevice current(gpu_.ordinal);
  cuda::merge(merge, after_steps().get());
}

std::span<const int32_t> GpuDevice::on_device(std::span<const int32_t> heads) {
  if (heads.empty()) return {};
  const auto [list, is_new] = head_lists_.try_emplace(std::vector<int32_t>(heads.begin(), heads.end()));
  const auto bytes = static_cast<int64_t>(heads.size_bytes());
  if (is_new) copy(list->second.reserve(bytes), heads.data(), bytes, cudaMemcpyHostToDevice, compute_);
  return {list->second.as<int32_t>(), heads.size()};
}

void GpuDevice::merge_blocks(std::span<const MergeBlocks> all) {
  const CurrentDevice current(gpu_.ordinal);
  std::vector<StateBlock> blocks;
  std::vector<BlocksToMerge> merges;
  int64_t most = 0;
  for (const MergeBlocks& one : all) {
    if (one.blocks.empty()) continue;
    merges.push_back(
        {.first = static_cast<int64_t>(blocks.size()), .count = static_cast<int64_t>(one.blocks.size()), .packed = one.packed});
    most = std::max(most, one.blocks.front().states());
    for (const StateBlock& block : one.blocks) blocks.emplace_back(block).head_list = on_device(block.head_list);
  }
  if (most == 0) return;
  merges_sent_.wait();  // those of the call before
  after_steps();
  Parcel parcel;
  const size_t of_blocks = parcel.add(std::span<const StateBlock>(blocks)), of_merges = parcel.add(std::span<const BlocksToMerge>(merges));
  parcel.send(merges_host_, merges_, compute_, false);
  merges_sent_.record(compute_.get());
  cuda::merge_blocks(parcel.at<StateBlock>(of_blocks), parcel.span<BlocksToMerge>(of_merges), most, compute_.get());
}

}  // namespace longspan::kernels::cuda
