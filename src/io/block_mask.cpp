// open_block_mask: rows of /block_masks/NAME on demand. indptr and indices are read in pieces of fixed length, and the latest pieces
// stay in memory: plans ask for neighbouring rows one after another, and a mask of a long sequence is larger than a rank's memory.
#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>

#include "io/corpus.hpp"
#include "io/hdf5_file.hpp"

namespace longspan::io {

namespace {

// An integer dataset [rows][length] (or [length], rows = 1), read through a cache of pieces of one row each.
class CachedIntegers {
 public:
  CachedIntegers(DatasetHandle dataset, int64_t length, std::string from)
      : dataset_(std::move(dataset)), length_(length), from_(std::move(from)) {}
  ~CachedIntegers() {
    const Section section;
    dataset_.reset();
  }
  CachedIntegers(const CachedIntegers&) = delete;
  CachedIntegers& operator=(const CachedIntegers&) = delete;

  int64_t length() const { return length_; }

  std::vector<int64_t> read(int64_t row, int64_t begin, int64_t end) const {
    std::vector<int64_t> values;
    values.reserve(static_cast<size_t>(end - begin));
    while (begin < end) {
      const int64_t number = begin / kPiece, base = number * kPiece;
      const Values piece = find(row, number);
      const int64_t stop = std::min(end, base + static_cast<int64_t>(piece->size()));
      values.insert(values.end(), piece->begin() + (begin - base), piece->begin() + (stop - base));
      begin = stop;
    }
    return values;
  }

 private:
  static constexpr int64_t kPiece = int64_t{1} << 17;  // 1 MiB
  static constexpr size_t kPieces = 32;

  using Values = std::shared_ptr<const std::vector<int64_t>>;
  using Key = std::pair<int64_t, int64_t>;  // row, number of the piece

  Values find(int64_t row, int64_t number) const {
    const Key key{row, number};
    {
      const std::lock_guard lock(mutex_);
      if (const auto known = pieces_.find(key); known != pieces_.end()) {
        latest_.splice(latest_.begin(), latest_, known->second.second);
        return known->second.first;
      }
    }
    // Not under the cache's lock: other threads go on with the pieces that are there. Two may read the same piece; both are right.
    Values values;
    {
      const Section section;
      const int64_t base = number * kPiece;
      values =
          std::make_shared<const std::vector<int64_t>>(read_integers(dataset_.get(), row, base, std::min(kPiece, length_ - base), from_));
    }
    const std::lock_guard lock(mutex_);
    if (pieces_.contains(key)) return values;
    latest_.push_front(key);
    pieces_.emplace(key, std::pair{values, latest_.begin()});
    if (pieces_.size() > kPieces) {
      pieces_.erase(latest_.back());
      latest_.pop_back();
    }
    return values;
  }

  DatasetHandle dataset_;
  int64_t length_;
  std::string from_;
  mutable std::mutex mutex_;
  mutable std::list<Key> latest_;  // most recently used first
  mutable std::map<Key, std::pair<Values, std::list<Key>::iterator>> pieces_;
};

class StoredBlockMask : public pattern::BlockMaskSource {
 public:
  StoredBlockMask(FileHandle file, std::string from, int64_t block, int list_heads, std::vector<int64_t> first_rows,
                  std::unique_ptr<CachedIntegers> indptr, std::unique_ptr<CachedIntegers> indices)
      : file_(std::move(file)),
        from_(std::move(from)),
        block_(block),
        list_heads_(list_heads),
        first_rows_(std::move(first_rows)),
        indptr_(std::move(indptr)),
        indices_(std::move(indices)) {}

  ~StoredBlockMask() override {
    const Section section;
    indptr_.reset();
    indices_.reset();
    file_.reset();
  }

  int64_t block() const override { return block_; }
  int list_heads() const override { return list_heads_; }

  std::vector<int64_t> row(int list_head, int64_t row_block) const override {
    if (list_head < 0 || list_head >= list_heads_ || row_block < 0 || row_block >= first_rows_.back()) {
      internal_error(fmt::format("row block {} of list head {} asked of {} with {} and {}", row_block, list_head, from_, first_rows_.back(),
                                 list_heads_));
    }
    const std::vector<int64_t> ends = indptr_->read(list_head, row_block, row_block + 2);
    if (ends[0] < 0 || ends[0] > ends[1] || ends[1] > indices_->length()) {
      fail(list_head, row_block, "indptr does not ascend within the indices", fmt::format("{}, {}", ends[0], ends[1]),
           fmt::format("0 … {}", indices_->length()));
    }
    std::vector<int64_t> keys = indices_->read(0, ends[0], ends[1]);
    // first_rows_ has one entry more than documents; empty documents repeat their entry, the last of equal ones holds the row.
    const auto next = std::upper_bound(first_rows_.begin(), first_rows_.end(), row_block);
    const int64_t blocks = next[0] - next[-1];
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i] < 0 || keys[i] >= blocks)
        fail(list_head, row_block, "index out of range", std::to_string(keys[i]),
             fmt::format("0 … {}, the document's key blocks", blocks - 1));
      if (i > 0 && keys[i] <= keys[i - 1]) {
        fail(list_head, row_block, keys[i] == keys[i - 1] ? "an index is there twice" : "indices do not ascend",
             fmt::format("{} after {}", keys[i], keys[i - 1]), "ascending, each once");
      }
    }
    return keys;
  }

 private:
  [[noreturn]] void fail(int list_head, int64_t row_block, const std::string& what, const std::string& seen,
                         const std::string& expected) const {
    throw Error({.code = ExitCode::input,
                 .what = fmt::format("block mask, row block {} of list head {}: {}", row_block, list_head, what),
                 .seen = seen,
                 .expected = expected,
                 .from = from_});
  }

  FileHandle file_;
  std::string from_;
  int64_t block_;
  int list_heads_;
  std::vector<int64_t> first_rows_;  // [documents + 1]: the first row block of each document
  std::unique_ptr<CachedIntegers> indptr_, indices_;
};

}  // namespace

std::shared_ptr<const pattern::BlockMaskSource> open_block_mask(const CorpusPaths& paths, const std::string& name, int64_t block,
                                                                const Shape& shape, const Documents& documents) {
  if (block < 1) internal_error("block mask of blocks of " + std::to_string(block) + " tokens");
  const Section section;
  FileHandle file = open_hdf5(paths.file, "input file");
  const Descriptor descriptor = open_existing(paths.file, "input file");
  const int64_t file_bytes = status_of(descriptor.get(), paths.file).bytes;
  const std::string group = paths.block_masks + "/" + name, from = paths.file + ":" + group;
  if (!exists(file.get(), group)) {
    const std::vector<std::string> names = group_members(file.get(), paths.block_masks);
    const std::string near = nearest_name(name, names);
    throw Error({.code = ExitCode::input,
                 .what = "block mask \"" + name + "\" is missing",
                 .seen = names.empty() ? "no block masks" : fmt::format("{}", fmt::join(names, ", ")),
                 .expected = group + "/indptr and /indices",
                 .from = paths.file,
                 .mend = near.empty() ? "" : "did you mean " + near + "?"});
  }

  std::vector<Problem> problems;
  auto indptr = open_dataset(file.get(), paths.file, group + "/indptr", {}, problems);
  auto indices = open_dataset(file.get(), paths.file, group + "/indices", {}, problems);

  // The attribute belongs to the group; a copy on a dataset will do, but all that are there must agree with the term.
  bool has_block = false;
  const ObjectHandle opened_group(check(H5Oopen(file.get(), group.c_str(), H5P_DEFAULT), "H5Oopen", from, ExitCode::input));
  for (const hid_t object :
       {opened_group.get(), indptr ? indptr->handle.get() : H5I_INVALID_HID, indices ? indices->handle.get() : H5I_INVALID_HID}) {
    if (object < 0) continue;
    const auto stored = read_integer_attribute(object, "block");
    if (!stored) continue;
    has_block = true;
    if (*stored == block) continue;
    problems.push_back({.code = ExitCode::input,
                        .what = "block mask \"" + name + "\" has another block size than the pattern's term",
                        .seen = std::to_string(*stored),
                        .expected = std::to_string(block),
                        .from = from,
                        .mend = fmt::format("write block_mask(\"{}\", {})", name, *stored)});
    break;
  }
  if (!has_block) {
    problems.push_back({.code = ExitCode::input,
                        .what = "block mask \"" + name + "\" has no integer attribute `block`",
                        .expected = std::to_string(block),
                        .from = from});
  }

  std::vector<int64_t> first_rows{0};
  for (int64_t d = 0; d < documents.count(); ++d) first_rows.push_back(first_rows.back() + (documents.length(d) + block - 1) / block);
  const int64_t rows = first_rows.back();
  for (const auto* dataset : {&indptr, &indices}) {
    if (!*dataset) continue;
    const std::string path = group + (dataset == &indptr ? "/indptr" : "/indices");
    if (!is_integer((*dataset)->handle.get())) {
      const TypeHandle type(H5Dget_type((*dataset)->handle.get()));
      problems.push_back({.code = ExitCode::input,
                          .what = "dataset " + path + " has the wrong type",
                          .seen = type_text(type.get()),
                          .expected = "int64 or int32",
                          .from = paths.file});
    }
    if (!(*dataset)->dims.empty() && (*dataset)->dims[0] > 0) check_storage(**dataset, paths.file, path, file_bytes, problems);
  }
  if (indices && indices->dims.size() != 1) {
    problems.push_back({.code = ExitCode::input,
                        .what = "dataset " + group + "/indices has the wrong number of dimensions",
                        .seen = shape_text(indices->dims),
                        .expected = "[entries]",
                        .from = paths.file});
  }
  int list_heads = 1;
  if (indptr) {
    const std::vector<int64_t>& dims = indptr->dims;
    const bool heads_fit = dims.size() == 1 || (dims.size() == 2 && (dims[0] == 1 || dims[0] == shape.kv_heads || dims[0] == shape.heads));
    if (!heads_fit || dims.back() != rows + 1) {
      problems.push_back({.code = ExitCode::input,
                          .what = "dataset " + group + "/indptr has the wrong shape",
                          .seen = shape_text(dims),
                          .expected = fmt::format("[{0}], [{1}, {0}] or [{2}, {0}]: row blocks + 1, for all heads, per KV head or per head",
                                                  rows + 1, shape.kv_heads, shape.heads),
                          .from = paths.file});
    } else if (dims.size() == 2) {
      list_heads = static_cast<int>(dims[0]);
    }
  }
  if (!problems.empty()) throw Error(problems);
  auto cached_indptr = std::make_unique<CachedIntegers>(std::move(indptr->handle), rows + 1, from + "/indptr");
  auto cached_indices = std::make_unique<CachedIntegers>(std::move(indices->handle), indices->dims[0], from + "/indices");
  return std::make_shared<StoredBlockMask>(std::move(file), from, block, list_heads, std::move(first_rows), std::move(cached_indptr),
                                           std::move(cached_indices));
}

}  // namespace longspan::io
