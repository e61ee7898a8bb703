#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "fixture.hpp"

namespace longspan::io::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Inspect, sample) {
  const CorpusLayout corpus = inspect_corpus({.file = LONGSPAN_SAMPLE});
  EXPECT_EQ(corpus.shape, (Shape{.tokens = 4154, .heads = 9, .kv_heads = 3, .head_dim = 64, .type = ElementType::bfloat16}));
  ASSERT_EQ(corpus.document_offsets.size(), 5u);
  const Documents documents(corpus.document_offsets);
  EXPECT_EQ(documents.tokens(), 4154);
  int64_t empty = 0;
  for (int64_t d = 0; d < documents.count(); ++d) empty += documents.length(d) == 0;
  EXPECT_EQ(empty, 1);
  EXPECT_TRUE(corpus.q.native);
  EXPECT_EQ(corpus.q.file_offset, 2048);
  EXPECT_EQ(corpus.file_bytes, static_cast<int64_t>(std::filesystem::file_size(LONGSPAN_SAMPLE)));
  EXPECT_GT(corpus.modified_ns, 0);
}

TEST(Inspect, layout_travels_as_json) {
  const TemporaryFolder folder;
  const std::string name = folder / "a\xff b.h5";  // not UTF-8
  Corpus(ElementType::float16, 5).write(name);
  const CorpusLayout corpus = inspect_corpus({.file = name});
  const CorpusLayout copy = CorpusLayout::from_json(corpus.to_json());
  EXPECT_EQ(copy.to_json(), corpus.to_json());
  EXPECT_EQ(copy.paths.file, name);
  EXPECT_EQ(copy.shape, corpus.shape);
  EXPECT_EQ(copy.v.file_offset, corpus.v.file_offset);
  EXPECT_GT(copy.v.file_offset, 0);
  EXPECT_EQ(copy.document_offsets, (std::vector<int64_t>{0, 5}));
  EXPECT_EQ(copy.modified_ns, corpus.modified_ns);
}

TEST(Inspect, other_paths_and_absent_offsets) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 7);
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/layer3/q", H5T_IEEE_F32LE, corpus.q_dims(), H5T_NATIVE_FLOAT, corpus.q.data());
    put(file.get(), "/layer3/k", H5T_IEEE_F32LE, corpus.kv_dims(), H5T_NATIVE_FLOAT, corpus.k.data());
    put(file.get(), "/layer3/v", H5T_IEEE_F32LE, corpus.kv_dims(), H5T_NATIVE_FLOAT, corpus.v.data());
  }
  CorpusPaths paths{.file = folder / "c.h5", .q = "/layer3/q", .k = "layer3/k", .v = "/layer3/v"};
  EXPECT_EQ(inspect_corpus(paths).shape, corpus.shape);
  EXPECT_EQ(inspect_corpus(paths).document_offsets, (std::vector<int64_t>{0, 7}));
  paths.document_offsets = "/my_offsets";  // asked for by name: must be there
  expect_problem(problems_of([&] { inspect_corpus(paths); }), ExitCode::input, {"dataset /my_offsets is missing"});
}

TEST(Inspect, missing_file_names_a_near_one) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 3).write(folder / "corpus.h5");
  expect_problem(inspection_problems(folder / "corpsu.h5"), ExitCode::input, {"input file does not exist", "did you mean corpus.h5?"});
  expect_problem(inspection_problems(folder / "no/such/folder.h5"), ExitCode::input, {"input file does not exist", "no/such/folder.h5"});
  expect_problem(inspection_problems(folder / "corpus.h5/x"), ExitCode::input, {"input file does not exist"});
}

TEST(Inspect, folder_empty_and_foreign_files) {
  const TemporaryFolder folder;
  expect_problem(inspection_problems(folder.path()), ExitCode::input, {"not a regular file", "a folder"});
  write_text(folder / "empty.h5", "");
  expect_problem(inspection_problems(folder / "empty.h5"), ExitCode::input, {"not an HDF5 file", "an empty file"});
  write_text(folder / "text.h5", std::string(5000, 'x'));
  expect_problem(inspection_problems(folder / "text.h5"), ExitCode::input, {"not an HDF5 file", "5000 bytes"});
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_problem(inspection_problems(folder / "pipe"), ExitCode::input, {"not a regular file"});
}

TEST(Inspect, unreadable) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 3).write(folder / "c.h5");
  std::filesystem::permissions(folder.path(), std::filesystem::perms::all);
  ASSERT_EQ(::chmod((folder / "c.h5").c_str(), 0), 0);
  const AsNobody nobody;
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"may not be read", "Permission denied", "chmod"});
}

TEST(Inspect, truncated_at_any_length) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 40).write(folder / "whole.h5");
  const std::string bytes = read_text(folder / "whole.h5");
  for (const size_t length : {size_t{8}, size_t{9}, size_t{47}, size_t{95}, size_t{96}, size_t{200}, size_t{800}, size_t{2048},
                              bytes.size() / 2, bytes.size() - 1}) {
    write_text(folder / "cut.h5", bytes.substr(0, length));
    SCOPED_TRACE(length);
    expect_problem(inspection_problems(folder / "cut.h5"), ExitCode::input, {"truncated", std::to_string(length) + " bytes"});
  }
  write_text(folder / "cut.h5", bytes.substr(0, 7));
  expect_problem(inspection_problems(folder / "cut.h5"), ExitCode::input, {"not an HDF5 file"});
}

// The superblock says that the file ends where it was cut, so HDF5 itself is content.
TEST(Inspect, dataset_passes_the_end) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 40).write(folder / "c.h5");
  const CorpusLayout whole = inspect_corpus({.file = folder / "c.h5"});
  std::string bytes = read_text(folder / "c.h5");
  const int64_t end = std::max({whole.q.file_offset, whole.k.file_offset, whole.v.file_offset}) + 100;
  bytes.resize(static_cast<size_t>(end));
  ASSERT_EQ(bytes[8], 0);  // superblock version 0: end of file address at byte 40
  std::memcpy(bytes.data() + 40, &end, 8);
  write_text(folder / "c.h5", bytes);
  const auto problems = inspection_problems(folder / "c.h5");
  EXPECT_THAT(problems.front().text(), AllOf(HasSubstr("truncated"), HasSubstr("passes its end"), HasSubstr(std::to_string(end))));
  EXPECT_EQ(problems.front().code, ExitCode::input);
}

TEST(Inspect, damaged_metadata) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 40).write(folder / "c.h5");
  std::string bytes = read_text(folder / "c.h5");
  for (size_t i = 96; i < 800; ++i) bytes[i] = static_cast<char>(0x5a);  // root object header and its heap
  write_text(folder / "c.h5", bytes);
  const auto problems = inspection_problems(folder / "c.h5");
  for (const Problem& problem : problems) EXPECT_EQ(problem.code, ExitCode::input) << problem.text();
}

TEST(Inspect, missing_datasets_name_the_nearest) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 7);
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/layer3/Q", H5T_IEEE_F32LE, corpus.q_dims(), H5T_NATIVE_FLOAT, corpus.q.data());
    put(file.get(), "/k", H5T_IEEE_F32LE, corpus.kv_dims(), H5T_NATIVE_FLOAT, corpus.k.data());
    H5Lcreate_soft("/nowhere", file.get(), "/v", H5P_DEFAULT, H5P_DEFAULT);
  }
  const auto problems = inspection_problems(folder / "c.h5");
  ASSERT_EQ(problems.size(), 2u) << Error(problems).what();
  EXPECT_THAT(problems[0].text(),
              AllOf(HasSubstr("dataset /q is missing"), HasSubstr("/k, /layer3/Q"), HasSubstr("did you mean /layer3/Q?")));
  EXPECT_THAT(problems[1].text(), AllOf(HasSubstr("dataset /v is missing"), ::testing::Not(HasSubstr("did you mean"))));
}

TEST(Inspect, group_in_place_of_a_dataset) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 7);
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q/data", H5T_IEEE_F32LE, corpus.q_dims(), H5T_NATIVE_FLOAT, corpus.q.data());
    put(file.get(), "/k", H5T_IEEE_F32LE, corpus.kv_dims(), H5T_NATIVE_FLOAT, corpus.k.data());
    put(file.get(), "/v", H5T_IEEE_F32LE, corpus.kv_dims(), H5T_NATIVE_FLOAT, corpus.v.data());
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"/q is not a dataset"});
}

struct BadTensors {
  const char* name;
  std::vector<hsize_t> q, k, v;
  std::vector<std::string> words;
};

class BadShapes : public ::testing::TestWithParam<BadTensors> {};

TEST_P(BadShapes, is_one_problem) {
  const TemporaryFolder folder;
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q", H5T_IEEE_F32LE, GetParam().q, 0, nullptr);
    put(file.get(), "/k", H5T_IEEE_F32LE, GetParam().k, 0, nullptr);
    put(file.get(), "/v", H5T_IEEE_F32LE, GetParam().v, 0, nullptr);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, GetParam().words);
}

INSTANTIATE_TEST_SUITE_P(
    Inspect, BadShapes,
    ::testing::Values(
        BadTensors{"rank_of_q",
                   {10, 64},
                   {10, 2, 32},
                   {10, 2, 32},
                   {"dataset /q has the wrong number of dimensions", "2 dimensions, [10, 64]", "3: [tokens"}},
        BadTensors{"scalar", {10, 2, 32}, {}, {10, 2, 32}, {"/k has the wrong number of dimensions", "0 dimensions, a scalar"}},
        BadTensors{"tokens",
                   {10, 4, 32},
                   {11, 2, 32},
                   {10, 2, 32},
                   {"dataset /k has the wrong shape", "[11, 2, 32]", "[10, kv_heads, 32] as /q has [10, 4, 32]"}},
        BadTensors{"dims", {10, 4, 32}, {10, 2, 32}, {10, 2, 16}, {"dataset /v has the wrong shape", "[10, 2, 16]"}},
        BadTensors{"k_and_v", {10, 4, 32}, {10, 2, 32}, {10, 4, 32}, {"/k and /v differ in shape", "[10, 4, 32]", "[10, 2, 32]"}},
        BadTensors{"heads", {10, 9, 32}, {10, 2, 32}, {10, 2, 32}, {"no multiple of KV heads", "9 and 2"}},
        BadTensors{"more_kv_heads", {10, 2, 32}, {10, 4, 32}, {10, 4, 32}, {"no multiple of KV heads", "2 and 4"}},
        BadTensors{"head_dim_12", {10, 2, 12}, {10, 2, 12}, {10, 2, 12}, {"head_dim", "12", "8, 16, 24"}},
        BadTensors{"head_dim_264", {10, 2, 264}, {10, 2, 264}, {10, 2, 264}, {"head_dim", "264"}},
        BadTensors{"no_tokens", {0, 2, 32}, {0, 2, 32}, {0, 2, 32}, {"holds no tokens"}},
        BadTensors{"no_kv_heads", {10, 2, 32}, {10, 0, 32}, {10, 0, 32}, {"/k has a wrong number of heads", "0"}}),
    [](const auto& info) { return info.param.name; });

TEST(Inspect, wrong_types_name_what_was_seen) {
  const TemporaryFolder folder;
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q", H5T_STD_I64LE, {3, 2, 8}, 0, nullptr);
    put(file.get(), "/k", H5T_IEEE_F64BE, {3, 2, 8}, 0, nullptr);
    put(file.get(), "/v", H5T_STD_U16LE, {3, 2, 8}, 0, nullptr);
  }
  const auto problems = inspection_problems(folder / "c.h5");
  ASSERT_EQ(problems.size(), 3u) << Error(problems).what();
  EXPECT_THAT(problems[0].text(), AllOf(HasSubstr("dataset /q has the wrong type"), HasSubstr("64-bit integer"), HasSubstr("bfloat16")));
  EXPECT_THAT(problems[1].text(), AllOf(HasSubstr("dataset /k has the wrong type"), HasSubstr("big-endian float64")));
  EXPECT_THAT(problems[2].text(), AllOf(HasSubstr("dataset /v has the wrong type"), HasSubstr("unsigned 16-bit integer")));
  for (const Problem& problem : problems) EXPECT_EQ(problem.code, ExitCode::input);
}

TEST(Inspect, types_that_disagree) {
  const TemporaryFolder folder;
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q", H5T_IEEE_F32LE, {3, 2, 8}, 0, nullptr);
    put(file.get(), "/k", hdf5_type(ElementType::bfloat16).get(), {3, 2, 8}, 0, nullptr);
    put(file.get(), "/v", H5T_IEEE_F32LE, {3, 2, 8}, 0, nullptr);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"/q and /k differ in type", "bfloat16", "float32"});
}

TEST(Inspect, several_problems_at_once) {
  const TemporaryFolder folder;
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    put(file.get(), "/q", H5T_STD_I32LE, {10, 9, 12}, 0, nullptr);
    put(file.get(), "/k", H5T_IEEE_F32LE, {11, 2, 12}, 0, nullptr);
    put_integers(file.get(), "/document_offsets", {0, 6, 4, 10});
  }
  std::string all = Error(inspection_problems(folder / "c.h5")).what();
  for (const char* words : {"/q has the wrong type", "/v is missing", "/k has the wrong shape", "head_dim", "no multiple", "do not ascend"})
    EXPECT_THAT(all, HasSubstr(words));
}

struct OffsetsCase {
  const char* name;
  std::vector<int64_t> values;
  std::vector<std::string> words;
};

class BadOffsets : public ::testing::TestWithParam<OffsetsCase> {};

TEST_P(BadOffsets, is_one_problem) {
  const TemporaryFolder folder;
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    Corpus(ElementType::bfloat16, 10).put_tensors(file.get());
    put_integers(file.get(), "/document_offsets", GetParam().values);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, GetParam().words);
}

INSTANTIATE_TEST_SUITE_P(Inspect, BadOffsets,
                         ::testing::Values(OffsetsCase{"descend", {0, 7, 5, 10}, {"do not ascend", "7 before 5", "c.h5:/document_offsets"}},
                                           OffsetsCase{"short_end", {0, 7}, {"do not end at the number of tokens", "7", "10"}},
                                           OffsetsCase{"long_end", {0, 11}, {"do not end at the number of tokens", "11", "10"}},
                                           OffsetsCase{"start", {1, 10}, {"do not start at 0"}},
                                           OffsetsCase{"single", {0}, {"do not start at 0", "1 entries"}},
                                           OffsetsCase{"none", {}, {"do not start at 0", "no entry"}}),
                         [](const auto& info) { return info.param.name; });

TEST(Inspect, offsets_of_other_integer_types_and_wrong_ones) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::bfloat16, 10);
  for (const hid_t type : {H5T_STD_I32BE, H5T_STD_U8LE, H5T_STD_U64LE}) {
    {
      const Section section;
      const FileHandle file = new_file(folder / "c.h5");
      corpus.put_tensors(file.get());
      put_integers(file.get(), "/document_offsets", {0, 3, 3, 10}, {}, type);
    }
    EXPECT_THAT(inspect_corpus({.file = folder / "c.h5"}).document_offsets, ElementsAre(0, 3, 3, 10));
  }
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    corpus.put_tensors(file.get());
    put_integers(file.get(), "/document_offsets", {0, 10}, {}, H5T_IEEE_F64LE);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"/document_offsets has the wrong type", "float64", "int64"});
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    corpus.put_tensors(file.get());
    put_integers(file.get(), "/document_offsets", {0, 10}, {1, 2});
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"/document_offsets has the wrong number of dimensions", "[1, 2]"});
}

// Reading beside another reader works; a writer's lock is named.
TEST(Inspect, locks) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 3).write(folder / "c.h5");
  const int descriptor = ::open((folder / "c.h5").c_str(), O_RDONLY);
  ASSERT_EQ(::flock(descriptor, LOCK_SH | LOCK_NB), 0);
  EXPECT_EQ(inspect_corpus({.file = folder / "c.h5"}).shape.tokens, 3);
  ASSERT_EQ(::flock(descriptor, LOCK_EX | LOCK_NB), 0);
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input,
                 {"open for writing in another program", "HDF5_USE_FILE_LOCKING=FALSE"});
  ::close(descriptor);
}

TEST(Inspect, filter_that_is_not_there) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 10);
  const H5Z_class2_t filter{
      H5Z_CLASS_T_VERS, 311,     1,       1,
      "test filter",    nullptr, nullptr, [](unsigned, size_t, const unsigned*, size_t bytes, size_t*, void**) -> size_t { return bytes; }};
  {
    const Section section;
    H5Zregister(&filter);
    const FileHandle file = new_file(folder / "c.h5");
    corpus.put_tensors(file.get());
    H5Ldelete(file.get(), "/k", H5P_DEFAULT);
    const PropertyHandle creation(H5Pcreate(H5P_DATASET_CREATE));
    const hsize_t chunk[] = {4, 2, 24};
    H5Pset_chunk(creation.get(), 3, chunk);
    H5Pset_filter(creation.get(), 311, H5Z_FLAG_MANDATORY, 0, nullptr);
    const std::vector<hsize_t> dims = corpus.kv_dims();
    const SpaceHandle space(H5Screate_simple(3, dims.data(), nullptr));
    const DatasetHandle dataset(H5Dcreate2(file.get(), "/k", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT));
    ASSERT_GE(H5Dwrite(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, corpus.k.data()), 0);
  }
  EXPECT_EQ(inspect_corpus({.file = folder / "c.h5"}).k.file_offset, -1);
  {
    const Section section;
    H5Zunregister(311);
  }
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"/k is compressed by a filter", "311", "HDF5_PLUGIN_PATH"});
}

TEST(Inspect, virtual_dataset_without_its_source) {
  const TemporaryFolder folder;
  const Corpus corpus(ElementType::float32, 10);
  corpus.write(folder / "part.h5");
  {
    const Section section;
    const FileHandle file = new_file(folder / "c.h5");
    corpus.put_tensors(file.get());
    H5Ldelete(file.get(), "/k", H5P_DEFAULT);
    const std::vector<hsize_t> dims = corpus.kv_dims();
    const SpaceHandle space(H5Screate_simple(3, dims.data(), nullptr));
    const PropertyHandle creation(H5Pcreate(H5P_DATASET_CREATE));
    ASSERT_GE(H5Pset_virtual(creation.get(), space.get(), "part.h5", "/k", space.get()), 0);
    const DatasetHandle dataset(
        check(H5Dcreate2(file.get(), "/k", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), "H5Dcreate", ""));
  }
  const CorpusReader reader(inspect_corpus({.file = folder / "c.h5"}));
  std::vector<std::byte> k(corpus.k.size());
  reader.read_k(0, 10, 0, 2, k.data());
  EXPECT_EQ(k, corpus.k);
  std::filesystem::remove(folder / "part.h5");
  expect_problem(inspection_problems(folder / "c.h5"), ExitCode::input, {"virtual dataset /k lacks a source file", "part.h5"});
}

// HDF5's messages reach ours, not standard error; the host program's handler is its own again afterwards.
TEST(Inspect, hdf5_is_silent) {
  const TemporaryFolder folder;
  Corpus(ElementType::bfloat16, 40).write(folder / "c.h5");
  std::filesystem::resize_file(folder / "c.h5", 1000);
  H5E_auto2_t before = nullptr, after = nullptr;
  void* data = nullptr;
  H5Eget_auto2(H5E_DEFAULT, &before, &data);
  ::testing::internal::CaptureStderr();
  const auto problems = inspection_problems(folder / "c.h5");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_THAT(problems.front().text(), HasSubstr("HDF5: truncated file"));
  H5Eget_auto2(H5E_DEFAULT, &after, &data);
  EXPECT_EQ(before, after);
  EXPECT_NE(before, nullptr);
}

}  // namespace
}  // namespace longspan::io::testing
