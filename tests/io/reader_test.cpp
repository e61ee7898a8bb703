#include <thread>

#include "fixture.hpp"

namespace longspan::io::testing {
namespace {

// Heads [head, head + heads) of tokens [begin, begin + count) of [tokens][all][row]: what a read should bring.
std::vector<std::byte> part(const std::vector<std::byte>& all, const Shape& shape, int of, int64_t begin, int64_t count, int head,
                            int heads) {
  const size_t row = static_cast<size_t>(shape.head_dim) * size_of(shape.type);
  std::vector<std::byte> bytes;
  for (int64_t t = begin; t < begin + count; ++t) {
    const auto from = all.begin() + static_cast<int64_t>((static_cast<size_t>(t * of + head)) * row);
    bytes.insert(bytes.end(), from, from + static_cast<int64_t>(row) * heads);
  }
  return bytes;
}

void expect_reads(const CorpusReader& reader, const Corpus& corpus) {
  const Shape& shape = corpus.shape;
  EXPECT_EQ(reader.layout().shape, shape);
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, shape.tokens}, {shape.tokens - 1, 1}, {0, 0}, {shape.tokens, 0}, {shape.tokens / 3, shape.tokens / 2}}) {
    std::vector<std::byte> bytes = part(corpus.q, shape, shape.heads, begin, count, 0, shape.heads);
    std::vector<std::byte> seen(bytes.size());
    reader.read_q(begin, count, seen.data());
    EXPECT_EQ(seen, bytes) << "q " << begin << " " << count;
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (int heads = 1; head + heads <= shape.kv_heads; ++heads) {
        bytes = part(corpus.k, shape, shape.kv_heads, begin, count, head, heads);
        seen.assign(bytes.size(), std::byte{0});
        reader.read_k(begin, count, head, heads, seen.data());
        EXPECT_EQ(seen, bytes) << "k " << begin << " " << count << " " << head;
        bytes = part(corpus.v, shape, shape.kv_heads, begin, count, head, heads);
        reader.read_v(begin, count, head, heads, seen.data());
        EXPECT_EQ(seen, bytes) << "v " << begin << " " << count << " " << head;
      }
    }
  }
}

struct StoredAs {
  const char* name;
  Storage storage;
  bool direct;  // read without HDF5
  hsize_t user_block = 0;
};

class Stored : public ::testing::TestWithParam<std::tuple<StoredAs, ElementType>> {};

TEST_P(Stored, reads_bit_by_bit) {
  const auto& [as, type] = GetParam();
  const TemporaryFolder folder;
  const Corpus corpus(type);
  corpus.write(folder / "c.h5", as.storage, as.user_block);
  const CorpusLayout layout = inspect_corpus({.file = folder / "c.h5"});
  EXPECT_EQ(layout.q.file_offset >= 0, as.direct);
  EXPECT_EQ(layout.k.native, !as.storage.big_endian);
  expect_reads(CorpusReader(CorpusLayout::from_json(layout.to_json())), corpus);
}

INSTANTIATE_TEST_SUITE_P(
    Reader, Stored,
    ::testing::Combine(
        ::testing::Values(
            StoredAs{"contiguous", {}, true}, StoredAs{"user_block", {}, true, 1024}, StoredAs{"big_endian", {.big_endian = true}, false},
            StoredAs{"chunked", {.chunk = {32, 1, 24}}, false}, StoredAs{"gzip", {.chunk = {17, 2, 8}, .gzip = 4}, false},
            StoredAs{"gzip_shuffle_big_endian", {.chunk = {301, 2, 24}, .gzip = 1, .shuffle = true, .big_endian = true}, false}),
        ::testing::Values(ElementType::float32, ElementType::float16, ElementType::bfloat16)),
    [](const auto& info) { return std::string(std::get<0>(info.param).name) + "_" + std::string(name_of(std::get<1>(info.param))); });

TEST(Reader, one_token) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 1);
  corpus.write(folder / "c.h5");
  expect_reads(CorpusReader(inspect_corpus({.file = folder / "c.h5"})), corpus);
}

// 16-bit values in elements of four bytes: odd, but HDF5 can convert it.
TEST(Reader, padded_elements) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 33);
  {
    const Section section;
    const TypeHandle padded = hdf5_type(ElementType::bfloat16), memory = hdf5_type(ElementType::bfloat16);
    H5Tset_size(padded.get(), 4);
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q", padded.get(), corpus.q_dims(), memory.get(), corpus.q.data());
    put(file.get(), "/k", padded.get(), corpus.kv_dims(), memory.get(), corpus.k.data());
    put(file.get(), "/v", padded.get(), corpus.kv_dims(), memory.get(), corpus.v.data());
  }
  const CorpusLayout layout = inspect_corpus({.file = folder / "c.h5"});
  EXPECT_EQ(layout.shape.type, ElementType::bfloat16);
  EXPECT_FALSE(layout.q.native);
  const CorpusReader reader(layout);
  std::vector<std::byte> seen(corpus.q.size());
  reader.read_q(0, 33, seen.data());
  for (size_t i = 0; i < seen.size() / 2; ++i) {
    const float is = load_element(seen.data(), ElementType::bfloat16, i), was = load_element(corpus.q.data(), ElementType::bfloat16, i);
    if (was == was) {
      ASSERT_EQ(is, was) << i;
    } else {
      ASSERT_NE(is, is) << i;  // NaN may change its bits, not its kind
    }
  }
  {
    const Section section;
    const TypeHandle shifted = hdf5_type(ElementType::bfloat16);
    H5Tset_size(shifted.get(), 4);
    H5Tset_offset(shifted.get(), 8);  // these HDF5 converts wrongly
    const FileHandle file = new_file(folder / "d.h5");
    corpus.put_tensors(file.get());
    H5Ldelete(file.get(), "/k", H5P_DEFAULT);
    put(file.get(), "/k", shifted.get(), corpus.kv_dims(), 0, nullptr);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input,
                 {"/k has the wrong type", "32-bit float with 8 exponent and 7 mantissa bits"});
}

// A link into another file: its offsets are not this file's.
TEST(Reader, external_link_and_late_allocation) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 20);
  corpus.write(folder / "there.h5");
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    for (const char* name : {"/q", "/k"}) H5Lcreate_external("there.h5", name, file.get(), name, H5P_DEFAULT, H5P_DEFAULT);
    put(file.get(), "/v", H5T_IEEE_F32LE, corpus.kv_dims(), 0, nullptr);  // never written: no place in the file
  }
  const CorpusLayout layout = inspect_corpus({.file = folder / "c.h5"});
  EXPECT_EQ(layout.q.file_offset, -1);
  EXPECT_EQ(layout.v.file_offset, -1);
  const CorpusReader reader(layout);
  std::vector<std::byte> seen(corpus.q.size());
  reader.read_q(0, 20, seen.data());
  EXPECT_EQ(seen, corpus.q);
  seen.assign(corpus.v.size(), std::byte{1});
  reader.read_v(0, 20, 0, 2, seen.data());
  EXPECT_EQ(seen, std::vector<std::byte>(corpus.v.size()));
}

TEST(Reader, four_threads_read_gzip) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 1999);
  corpus.write(folder / "c.h5", {.chunk = {64, 2, 24}, .gzip = 1, .shuffle = true});
  const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(static_cast<uint64_t>(t));
        for (int i = 0; i < 40; ++i) {
          const auto begin = static_cast<int64_t>(random() % 1999),
                     count = static_cast<int64_t>(random() % static_cast<uint64_t>(1999 - begin)) + 1;
          std::vector<std::byte> bytes = part(corpus.k, corpus.shape, 2, begin, count, t % 2, 1), seen(bytes.size());
          reader.read_k(begin, count, t % 2, 1, seen.data());
          wrong += seen != bytes;
          if (i % 8 == 0) wrong += inspect_corpus({.file = folder / "c.h5"}).shape != corpus.shape;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

// Heads of a wide row: those far apart are read one by one, those near together through a buffer (4 MiB: several pieces here).
TEST(Reader, few_heads_of_many) {
  const TemporaryFolder folder;
  for (const auto& [tokens, kv_heads] : {std::pair<hsize_t, hsize_t>{5, 1024}, {700, 32}}) {
    const hsize_t dim = 128;
    std::vector<float> k(tokens * kv_heads * dim);
    for (size_t i = 0; i < k.size(); ++i) k[i] = static_cast<float>(i);
    {
      const Section section;
      const FileHandle file = new_file(folder / "c.h5");
      for (const char* path : {"/q", "/k", "/v"})
        put(file.get(), path, H5T_IEEE_F32LE, {tokens, kv_heads, dim}, H5T_NATIVE_FLOAT, k.data());
    }
    const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
    for (const int head : {0, 7, static_cast<int>(kv_heads) - 2}) {
      std::vector<float> seen((tokens - 1) * 2 * dim);
      reader.read_k(1, static_cast<int64_t>(tokens) - 1, head, 2, reinterpret_cast<std::byte*>(seen.data()));
      for (size_t i = 0; i < seen.size(); ++i) {
        const size_t token = 1 + i / (2 * dim);
        ASSERT_EQ(seen[i], static_cast<float>((token * kv_heads + static_cast<size_t>(head)) * dim + i % (2 * dim))) << i;
      }
    }
  }
}

TEST(Reader, refuses_another_file) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 30).write(folder / "c.h5");
  CorpusLayout layout = inspect_corpus({.file = folder / "c.h5"});
  layout.modified_ns -= 1;
  expect_problem(problems_of([&] { CorpusReader reader(layout); }), ExitCode::input,
                 {"not the one that was inspected", std::to_string(layout.modified_ns)});
  std::filesystem::remove(folder / "c.h5");
  expect_problem(problems_of([&] { CorpusReader reader(layout); }), ExitCode::input, {"does not exist"});
}

TEST(Reader, file_cut_while_in_use) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 300);
  corpus.write(folder / "c.h5");
  const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
  std::filesystem::resize_file(folder / "c.h5", static_cast<uintmax_t>(reader.layout().v.file_offset + 10));
  std::vector<std::byte> seen(corpus.v.size());
  expect_problem(problems_of([&] { reader.read_v(0, 300, 0, 2, seen.data()); }), ExitCode::io,
                 {"ends too early", "c.h5", std::to_string(reader.layout().v.file_offset + 10)});
}

TEST(Reader, damaged_chunk) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 300);
  corpus.write(folder / "c.h5", {.chunk = {300, 2, 24}, .gzip = 9});
  const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
  std::string bytes = read_text(folder / "c.h5");
  for (size_t i = bytes.size() - 3000; i < bytes.size() - 200; ++i)
    bytes[i] = static_cast<char>(bytes[i] ^ 0x5a);  // inside v's compressed bytes
  {
    std::fstream stream(folder / "c.h5", std::ios::in | std::ios::out | std::ios::binary);
    stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::vector<std::byte> seen(corpus.v.size());
  expect_problem(problems_of([&] { reader.read_v(0, 300, 0, 2, seen.data()); }), ExitCode::io,
                 {"tokens [0, 300) of /v cannot be read", "HDF5: "});
}

TEST(Reader, outside_is_an_internal_error) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 30).write(folder / "c.h5");
  const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
  std::byte byte;
  for (const auto& [begin, count, head] : {std::tuple<int64_t, int64_t, int>{-1, 1, 0}, {30, 1, 0}, {0, 31, 0}, {0, 1, 2}}) {
    expect_problem(problems_of([&, b = begin, c = count, h = head] { reader.read_k(b, c, h, 1, &byte); }), ExitCode::internal,
                   {"outside /k [30, 2, 24]"});
  }
}

}  // namespace
}  // namespace longspan::io::testing
