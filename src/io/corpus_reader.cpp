#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>

#include "io/corpus.hpp"
#include "io/hdf5_file.hpp"

namespace longspan::io {

namespace {

constexpr int64_t kGatherBytes = int64_t{4} << 20;   // buffer of whole token rows from which some heads are picked
constexpr int64_t kWorthASeek = int64_t{256} << 10;  // bytes between the wanted parts of two rows above which each row is read by itself
constexpr int64_t kChunkCacheBytes = int64_t{64} << 20;

// Rows of [tokens][row_bytes] from byte `row_offset`, of each only the `bytes` bytes at `skip`.
void gather(int descriptor, const std::string& file, int64_t row_offset, int64_t row_bytes, int64_t skip, int64_t bytes, int64_t count,
            std::byte* out) {
  if (bytes == row_bytes) return read_at(descriptor, row_offset, out, count * bytes, file);
  if (row_bytes - bytes >= kWorthASeek) {
    for (int64_t i = 0; i < count; ++i) read_at(descriptor, row_offset + i * row_bytes + skip, out + i * bytes, bytes, file);
    return;
  }
  // From the first wanted byte to the last one of each piece; what lies between is cheaper to read than to skip.
  const int64_t rows = std::clamp<int64_t>(kGatherBytes / row_bytes, 1, count);
  std::vector<std::byte> buffer(static_cast<size_t>((rows - 1) * row_bytes + bytes));
  for (int64_t first = 0; first < count; first += rows) {
    const int64_t piece = std::min(rows, count - first);
    read_at(descriptor, row_offset + first * row_bytes + skip, buffer.data(), (piece - 1) * row_bytes + bytes, file);
    for (int64_t i = 0; i < piece; ++i) std::memcpy(out + (first + i) * bytes, buffer.data() + i * row_bytes, static_cast<size_t>(bytes));
  }
}

// A dataset that goes through HDF5. Its chunk cache holds one row of chunks (all heads of the same tokens), so that reads which walk
// along the tokens decompress each chunk once; HDF5's own default of 1 MiB is less than one chunk of most files.
DatasetHandle open_through_hdf5(hid_t file, const DatasetLayout& layout, const std::string& from) {
  DatasetHandle dataset(check(H5Dopen2(file, layout.path.c_str(), H5P_DEFAULT), "H5Dopen", from, ExitCode::input));
  const PropertyHandle creation(check(H5Dget_create_plist(dataset.get()), "H5Dget_create_plist", from));
  if (H5Pget_layout(creation.get()) != H5D_CHUNKED) return dataset;
  std::array<hsize_t, 3> chunk{};
  check(H5Pget_chunk(creation.get(), 3, chunk.data()), "H5Pget_chunk", from);
  auto bytes = static_cast<int64_t>(chunk[0] * size_of(layout.type));
  for (size_t d = 1; d < 3; ++d)
    bytes *= (layout.dims[d] + static_cast<int64_t>(chunk[d]) - 1) / static_cast<int64_t>(chunk[d]) * static_cast<int64_t>(chunk[d]);
  const PropertyHandle access(check(H5Pcreate(H5P_DATASET_ACCESS), "H5Pcreate", from));
  check(H5Pset_chunk_cache(access.get(), 12'421, static_cast<size_t>(std::clamp<int64_t>(bytes, 1 << 20, kChunkCacheBytes)), 1.0),
        "H5Pset_chunk_cache", from);
  dataset.reset();
  return DatasetHandle(check(H5Dopen2(file, layout.path.c_str(), access.get()), "H5Dopen", from, ExitCode::input));
}

}  // namespace

struct CorpusReader::State {
  Descriptor descriptor;
  FileHandle file;  // open only when some dataset goes through HDF5
  std::array<DatasetHandle, 3> datasets;
  std::array<TypeHandle, 3> types;

  ~State() {
    const Section section;
    for (DatasetHandle& dataset : datasets) dataset.reset();
    for (TypeHandle& type : types) type.reset();
    file.reset();
  }

  void read(const CorpusLayout& corpus, size_t which, int64_t begin, int64_t count, int64_t head, int64_t heads, std::byte* out) const {
    const DatasetLayout& layout = which == 0 ? corpus.q : which == 1 ? corpus.k : corpus.v;
    if (begin < 0 || count < 0 || begin > layout.dims[0] - count || head < 0 || heads < 0 || head > layout.dims[1] - heads) {
      internal_error(fmt::format("read of tokens [{}, {}+{}), heads [{}, {}+{}) outside {} {}", begin, begin, count, head, head, heads,
                                 layout.path, shape_text(layout.dims)));
    }
    if (count == 0 || heads == 0) return;
    const int64_t head_bytes = layout.dims[2] * static_cast<int64_t>(size_of(layout.type));
    if (layout.file_offset >= 0) {
      const int64_t row_bytes = layout.dims[1] * head_bytes;
      return gather(descriptor.get(), corpus.paths.file, layout.file_offset + begin * row_bytes, row_bytes, head * head_bytes,
                    heads * head_bytes, count, out);
    }
    const std::string from = corpus.paths.file + ":" + layout.path;
    const int64_t rows = std::max<int64_t>(1, kPieceBytes / (heads * head_bytes));
    for (int64_t first = 0; first < count; first += rows) {
      const auto piece = static_cast<hsize_t>(std::min(rows, count - first));
      const Section section;  // piece by piece: other threads get their turn
      const std::array<hsize_t, 3> start{static_cast<hsize_t>(begin + first), static_cast<hsize_t>(head), 0};
      const std::array<hsize_t, 3> extent{piece, static_cast<hsize_t>(heads), static_cast<hsize_t>(layout.dims[2])};
      const SpaceHandle stored(check(H5Dget_space(datasets[which].get()), "H5Dget_space", from));
      check(H5Sselect_hyperslab(stored.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr), "H5Sselect_hyperslab", from);
      const SpaceHandle memory(check(H5Screate_simple(3, extent.data(), nullptr), "H5Screate_simple", from));
      if (H5Dread(datasets[which].get(), types[which].get(), memory.get(), stored.get(), H5P_DEFAULT, out + first * heads * head_bytes) <
          0) {
        throw Error({.code = ExitCode::io,
                     .what = fmt::format("tokens [{}, {}) of {} cannot be read", begin + first, begin + first + static_cast<int64_t>(piece),
                                         layout.path),
                     .seen = "HDF5: " + last_failure().innermost,
                     .from = corpus.paths.file});
      }
    }
  }
};

CorpusReader::CorpusReader(CorpusLayout layout) : layout_(std::move(layout)), state_(std::make_unique<State>()) {
  const std::string& file = layout_.paths.file;
  state_->descriptor = open_existing(file, "input file");
  const FileStatus status = status_of(state_->descriptor.get(), file);
  if (status.bytes != layout_.file_bytes || status.modified_ns != layout_.modified_ns) {
    throw Error({.code = ExitCode::input,
                 .what = "input file is not the one that was inspected",
                 .seen = fmt::format("{} bytes, changed at {} ns", status.bytes, status.modified_ns),
                 .expected = fmt::format("{} bytes, changed at {} ns", layout_.file_bytes, layout_.modified_ns),
                 .from = file,
                 .mend = "leave it alone during the job; every host must see the same file under this path"});
  }
  const std::array<const DatasetLayout*, 3> datasets{&layout_.q, &layout_.k, &layout_.v};
  for (size_t i = 0; i < 3; ++i) {
    if (datasets[i]->file_offset >= 0) continue;
    const Section section;
    if (!state_->file) state_->file = open_hdf5(file, "input file");
    state_->datasets[i] = open_through_hdf5(state_->file.get(), *datasets[i], file + ":" + datasets[i]->path);
    state_->types[i] = hdf5_type(datasets[i]->type);
  }
}

CorpusReader::~CorpusReader() = default;

void CorpusReader::read_q(int64_t begin, int64_t count, std::byte* out) const {
  state_->read(layout_, 0, begin, count, 0, layout_.q.dims[1], out);
}
void CorpusReader::read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
  state_->read(layout_, 1, begin, count, head, heads, out);
}
void CorpusReader::read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
  state_->read(layout_, 2, begin, count, head, heads, out);
}

}  // namespace longspan::io
