// Folders that vanish, and HDF5 files of any kind, good and bad, for the tests of src/io.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "io/corpus.hpp"
#include "io/hdf5_file.hpp"

namespace longspan::io::testing {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "longspan-io-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::string path_;
};

// How a dataset of the fixture is stored.
struct Storage {
  std::vector<hsize_t> chunk;  // empty: contiguous
  int gzip = -1;
  bool shuffle = false;
  bool big_endian = false;
};

inline TypeHandle stored_type(ElementType type, bool big_endian) {
  TypeHandle made = hdf5_type(type);
  if (big_endian) H5Tset_order(made.get(), H5T_ORDER_BE);
  return made;
}

inline FileHandle new_file(const std::string& file, hsize_t user_block = 0) {
  const PropertyHandle creation(H5Pcreate(H5P_FILE_CREATE));
  if (user_block > 0) H5Pset_userblock(creation.get(), user_block);
  return FileHandle(check(H5Fcreate(file.c_str(), H5F_ACC_TRUNC, creation.get(), H5P_DEFAULT), "H5Fcreate", file));
}

// Creates a dataset of `type` and writes `data`, which is in `memory_type`; no data: not written.
inline void put(hid_t file, const std::string& path, hid_t type, const std::vector<hsize_t>& dims, hid_t memory_type, const void* data,
                const Storage& storage = {}) {
  const PropertyHandle links(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(links.get(), 1);
  const PropertyHandle creation(H5Pcreate(H5P_DATASET_CREATE));
  if (!storage.chunk.empty()) H5Pset_chunk(creation.get(), static_cast<int>(storage.chunk.size()), storage.chunk.data());
  if (storage.shuffle) H5Pset_shuffle(creation.get());
  if (storage.gzip >= 0) H5Pset_deflate(creation.get(), static_cast<unsigned>(storage.gzip));
  const SpaceHandle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
  const DatasetHandle dataset(
      check(H5Dcreate2(file, path.c_str(), type, space.get(), links.get(), creation.get(), H5P_DEFAULT), "H5Dcreate", path));
  if (data) check(H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "H5Dwrite", path);
}

inline void put_integers(hid_t file, const std::string& path, const std::vector<int64_t>& values, std::vector<hsize_t> dims = {},
                         hid_t type = H5T_STD_I64LE) {
  if (dims.empty()) dims = {values.size()};
  put(file, path, type, dims, H5T_NATIVE_INT64, values.data());
}

// A good corpus of random bits (any bits: NaN, infinite, subnormal too), which a test then spoils.
struct Corpus {
  Shape shape{.tokens = 301, .heads = 6, .kv_heads = 2, .head_dim = 24, .type = ElementType::bfloat16};
  std::vector<std::byte> q, k, v;

  explicit Corpus(ElementType type = ElementType::bfloat16, int64_t tokens = 301) {
    shape.type = type, shape.tokens = tokens;
    std::mt19937_64 random(static_cast<uint64_t>(tokens) * 3 + static_cast<uint64_t>(type));
    for (auto* tensor : {&q, &k, &v}) {
      const int heads = tensor == &q ? shape.heads : shape.kv_heads;
      tensor->resize(static_cast<size_t>(tokens * heads * shape.head_dim) * size_of(type));
      for (std::byte& byte : *tensor) byte = static_cast<std::byte>(random());
    }
  }
  std::vector<hsize_t> q_dims() const {
    return {static_cast<hsize_t>(shape.tokens), static_cast<hsize_t>(shape.heads), static_cast<hsize_t>(shape.head_dim)};
  }
  std::vector<hsize_t> kv_dims() const {
    return {static_cast<hsize_t>(shape.tokens), static_cast<hsize_t>(shape.kv_heads), static_cast<hsize_t>(shape.head_dim)};
  }

  void put_tensors(hid_t file, const Storage& storage = {}) const {
    const TypeHandle memory = hdf5_type(shape.type), stored = stored_type(shape.type, storage.big_endian);
    put(file, "/q", stored.get(), q_dims(), memory.get(), q.data(), storage);
    put(file, "/k", stored.get(), kv_dims(), memory.get(), k.data(), storage);
    put(file, "/v", stored.get(), kv_dims(), memory.get(), v.data(), storage);
  }
  void write(const std::string& path, const Storage& storage = {}, hsize_t user_block = 0) const {
    const Section section;
    const FileHandle file = new_file(path, user_block);
    put_tensors(file.get(), storage);
  }
};

// What the call throws.
template <typename Call>
std::vector<Problem> problems_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.problems();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {Problem{}};
}

inline std::vector<Problem> inspection_problems(const std::string& file) {
  return problems_of([&] { inspect_corpus({.file = file}); });
}

// One problem with this code whose text has these words.
inline void expect_problem(const std::vector<Problem>& problems, ExitCode code, const std::vector<std::string>& words) {
  ASSERT_EQ(problems.size(), 1u) << Error(problems).what();
  EXPECT_EQ(problems[0].code, code);
  for (const std::string& word : words) EXPECT_THAT(problems[0].text(), ::testing::HasSubstr(word));
}

// Runs the body as the user `nobody` when the test runs as root, to whom every file is readable.
class AsNobody {
 public:
  AsNobody() : root_(::geteuid() == 0) {
    if (root_ && ::seteuid(65534) != 0) throw std::runtime_error("seteuid");
  }
  ~AsNobody() {
    if (root_ && ::seteuid(0) != 0) std::abort();
  }

 private:
  bool root_;
};

inline std::string read_text(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}
inline void write_text(const std::string& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

}  // namespace longspan::io::testing
