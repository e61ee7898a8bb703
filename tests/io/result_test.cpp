#include "io/result.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <numeric>

#include "fixture.hpp"
#include "io/corpus_writer.hpp"
#include "io/description.hpp"

namespace longspan::io::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const ResultAttributes kAttributes{.longspan_version = "0.1.0",
                                   .pattern = "causal & window(4096, 0)",
                                   .scale = 0.1 + 0.2,  // a number whose last bit matters
                                   .input_name = "corpus.h5",
                                   .input_bytes = 7983912,
                                   .input_modified_ns = 1'700'000'000'123'456'789};

void expect_equal(const ResultLayout& a, const ResultLayout& b) { EXPECT_EQ(a.to_json(), b.to_json()); }

TEST(Result, create_write_inspect_read) {
  for (const ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    const TemporaryFolder folder;
    const std::string file = folder / "o.h5";
    const ResultLayout made = create_result(file, 301, 6, 24, type, kAttributes);
    EXPECT_THAT(folder.names(), ElementsAre("o.h5"));
    expect_equal(inspect_result(file), made);
    expect_equal(ResultLayout::from_json(made.to_json()), made);
    EXPECT_EQ(made.attributes.scale, 0.1 + 0.2);
    EXPECT_EQ(inspect_result(file).attributes.pattern, kAttributes.pattern);
    EXPECT_EQ(made.o_offset % 4096, 0);

    const Corpus bits(type);  // q has the shape of o
    std::vector<float> lse(301 * 6);
    std::iota(lse.begin(), lse.end(), 0.5f);
    {
      const size_t row = 6 * 24 * size_of(type);
      ResultFile first(made, ResultFile::Access::write), second(made, ResultFile::Access::write);
      second.write(200, 101, bits.q.data() + 200 * row, lse.data() + 200 * 6);
      first.write(0, 200, bits.q.data(), lse.data());
      first.write(301, 0, nullptr, nullptr);
      first.sync();
      second.sync();
    }
    EXPECT_EQ(inspect_result(file).attributes.complete, 0);
    mark_complete(file);
    EXPECT_EQ(inspect_result(file).attributes.complete, 1);

    std::vector<std::byte> o(bits.q.size());
    std::vector<float> read_lse(lse.size());
    ResultFile(made, ResultFile::Access::read).read(0, 301, o.data(), read_lse.data());
    EXPECT_EQ(o, bits.q);
    EXPECT_EQ(read_lse, lse);

    // Another reader, HDF5 itself, sees the same.
    const Section section;
    const FileHandle opened = open_hdf5(file, "output file");
    const DatasetHandle dataset(H5Dopen2(opened.get(), "/o", H5P_DEFAULT));
    o.assign(o.size(), std::byte{0});
    ASSERT_GE(H5Dread(dataset.get(), hdf5_type(type).get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, o.data()), 0);
    EXPECT_EQ(o, bits.q);
    const DatasetHandle lse_dataset(H5Dopen2(opened.get(), "/lse", H5P_DEFAULT));
    ASSERT_GE(H5Dread(lse_dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, read_lse.data()), 0);
    EXPECT_EQ(read_lse, lse);
  }
}

TEST(Result, one_value) {
  const TemporaryFolder folder;
  const ResultLayout made = create_result(folder / "o.h5", 1, 1, 8, ElementType::bfloat16, kAttributes);
  expect_equal(inspect_result(folder / "o.h5"), made);
  const float lse = 3;
  std::byte o[16];
  std::memset(o, 0x41, sizeof o);
  ResultFile(made, ResultFile::Access::write).write(0, 1, o, &lse);
  std::byte read[16];
  float read_lse = 0;
  ResultFile(made, ResultFile::Access::read).read(0, 1, read, &read_lse);
  EXPECT_EQ(std::memcmp(o, read, sizeof o), 0);
  EXPECT_EQ(read_lse, lse);
}

TEST(Result, space_is_reserved) {
  const TemporaryFolder folder;
  const ResultLayout made = create_result(folder / "o.h5", 5000, 8, 64, ElementType::bfloat16, kAttributes);
  struct stat status {};
  ASSERT_EQ(::stat(made.file.c_str(), &status), 0);
  EXPECT_GE(status.st_size, 5000 * 8 * (64 * 2 + 4));
  EXPECT_GE(int64_t{status.st_blocks} * 512, int64_t{5000} * 8 * (64 * 2 + 4));
}

TEST(Result, replaces_an_older_file) {
  const TemporaryFolder folder;
  write_text(folder / "o.h5", "old");
  const ResultLayout made = create_result(folder / "o.h5", 10, 2, 8, ElementType::float32, kAttributes);
  EXPECT_EQ(inspect_result(folder / "o.h5").tokens, 10);
  // A long pattern goes beyond the 64 KiB that an attribute of this file version can hold in place.
  ResultAttributes attributes = kAttributes;
  attributes.pattern = std::string(200'000, 'p');
  create_result(folder / "o.h5", 10, 2, 8, ElementType::float32, attributes);
  EXPECT_EQ(inspect_result(folder / "o.h5").attributes.pattern, attributes.pattern);
  // A writer that still has the layout of the file before is told.
  expect_problem(problems_of([&] { ResultFile file(made, ResultFile::Access::write); }), ExitCode::io,
                 {"another one than rank 0 has", "inode"});
}

TEST(Result, missing_and_unwritable_folders) {
  const TemporaryFolder folder;
  const auto create = [&](const std::string& file) {
    return problems_of([&] { create_result(file, 10, 2, 8, ElementType::float32, kAttributes); });
  };
  expect_problem(create(folder / "no/o.h5"), ExitCode::io, {"output folder does not exist", "/no", "mkdir -p"});
  expect_problem(create(folder.path()), ExitCode::io, {"output file is a folder"});
  write_text(folder / "file", "x");
  expect_problem(create(folder / "file/o.h5"), ExitCode::io, {"output folder is not a folder"});
  std::filesystem::create_directory(folder / "closed");
  ASSERT_EQ(::chmod((folder / "closed").c_str(), 0555), 0);
  std::filesystem::permissions(folder.path(), std::filesystem::perms::all);
  {
    const AsNobody nobody;
    expect_problem(create(folder / "closed/o.h5"), ExitCode::io, {"output folder is not writable", "Permission denied"});
  }
  EXPECT_THAT(folder.names(), ElementsAre("closed", "file"));
  expect_problem(problems_of([&] { inspect_result(folder / "none.h5"); }), ExitCode::input, {"output file does not exist"});
  expect_problem(problems_of([&] { mark_complete(folder / "none.h5"); }), ExitCode::input, {"output file does not exist"});
}

class SmallDisk {
 public:
  explicit SmallDisk(const std::string& folder) : folder_(folder) {
    std::filesystem::create_directory(folder_);
    mounted_ = ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=4m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::string folder_;
  bool mounted_ = false;
};

TEST(Result, disk_full) {
  const TemporaryFolder folder;
  const SmallDisk disk(folder / "small");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const auto create = [&](int64_t tokens) {
    return create_result(folder / "small/o.h5", tokens, 8, 64, ElementType::float32, kAttributes);
  };
  expect_problem(problems_of([&] { create(20'000); }), ExitCode::io, {"disk full: needs 39.9 MiB, free 4.0 MiB", "small/o.h5"});
  EXPECT_TRUE(std::filesystem::is_empty(folder / "small"));
  expect_problem(problems_of([&] {
                   create_corpus({.file = folder / "small/c.h5"}, {.tokens = 10'000, .heads = 8, .kv_heads = 8, .head_dim = 64}, {},
                                 "0.1.0");
                 }),
                 ExitCode::io, {"disk full: needs 2"});
  EXPECT_TRUE(std::filesystem::is_empty(folder / "small"));
  // What fits is reserved for good: nothing that fills the disk later can take it away.
  const ResultLayout made = create(1000);
  std::ofstream(folder / "small/filler") << std::string(5 << 20, 'x');
  ResultFile file(made, ResultFile::Access::write);
  const std::vector<std::byte> o(1000 * 8 * 64 * 4);
  const std::vector<float> lse(1000 * 8);
  EXPECT_NO_THROW(file.write(0, 1000, o.data(), lse.data()));
  EXPECT_NO_THROW(file.sync());
  EXPECT_NO_THROW(mark_complete(made.file));
  // And with not one page left not even the temporary file.
  std::filesystem::remove(made.file);
  std::ofstream(folder / "small/filler2") << std::string(5 << 20, 'x');
  expect_problem(problems_of([&] { create(1); }), ExitCode::io, {"disk full"});
}

TEST(Result, failing_write_names_file_offset_and_reason) {
  const TemporaryFolder folder;
  const ResultLayout made = create_result(folder / "o.h5", 1000, 8, 64, ElementType::float32, kAttributes);
  ResultFile file(made, ResultFile::Access::write);
  const std::vector<std::byte> o(1000 * 8 * 64 * 4);
  const std::vector<float> lse(1000 * 8);
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 1'000'000, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto problems = problems_of([&] { file.write(0, 1000, o.data(), lse.data()); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  expect_problem(problems, ExitCode::io,
                 {"writing failed", "File too large (errno 27)", "o.h5, byte 1000000"});  // after a short write up to there
}

TEST(Result, is_no_result) {
  const TemporaryFolder folder;
  const auto inspect = [&] { return Error(problems_of([&] { inspect_result(folder / "x.h5"); })); };
  Corpus(ElementType::bfloat16, 10).write(folder / "x.h5");
  EXPECT_EQ(inspect().code(), ExitCode::input);
  EXPECT_THAT(inspect().what(), HasSubstr("not a result of longspan: attribute pattern is missing"));
  EXPECT_THAT(inspect().what(), HasSubstr("dataset /o is missing"));
  create_result(folder / "x.h5", 10, 2, 8, ElementType::float32, kAttributes);
  {
    const Section section;
    const FileHandle file = open_hdf5(folder / "x.h5", "file", OpenMode::change);
    H5Ldelete(file.get(), "/lse", H5P_DEFAULT);
    put(file.get(), "/lse", H5T_IEEE_F32LE, {10, 2}, 0, nullptr, {.chunk = {5, 2}, .gzip = 1});
  }
  EXPECT_THAT(inspect().what(), HasSubstr("dataset /lse is chunked"));
  const std::string bytes = read_text(folder / "x.h5");
  write_text(folder / "x.h5", bytes.substr(0, bytes.size() - 100));
  EXPECT_THAT(inspect().what(), HasSubstr("output file is truncated"));
}

// Somebody looks at the output while the job ends.
TEST(Result, completes_beside_a_reader) {
  const TemporaryFolder folder;
  create_result(folder / "o.h5", 10, 2, 8, ElementType::float32, kAttributes);
  const int descriptor = ::open((folder / "o.h5").c_str(), O_RDONLY);
  ASSERT_EQ(::flock(descriptor, LOCK_SH | LOCK_NB), 0);
  EXPECT_NO_THROW(mark_complete(folder / "o.h5"));
  ::close(descriptor);
  EXPECT_EQ(inspect_result(folder / "o.h5").attributes.complete, 1);
}

TEST(CorpusWriter, whole_round) {
  const TemporaryFolder folder;
  for (const ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    const Corpus bits(type);
    const CorpusPaths paths{.file = folder / "c.h5", .q = "/layer0/q", .k = "/layer0/k", .v = "/layer0/v"};
    const CorpusLayout made = create_corpus(paths, bits.shape, {0, 100, 100, 301}, "0.1.0", {{"seed", "7"}});
    expect_problem(problems_of([&] { inspect_corpus(paths); }), ExitCode::input, {"unfinished"});
    {
      CorpusWriter writer(CorpusLayout::from_json(made.to_json()));
      using Tensor = CorpusWriter::Tensor;
      const size_t q_row = 6 * 24 * size_of(type);
      writer.write(Tensor::q, 150, 151, bits.q.data() + 150 * q_row);
      writer.write(Tensor::q, 0, 150, bits.q.data());
      writer.write(Tensor::k, 0, 301, bits.k.data());
      writer.write(Tensor::v, 0, 301, bits.v.data());
      writer.sync();
    }
    finish_corpus(paths);
    const CorpusLayout layout = inspect_corpus(paths);
    EXPECT_EQ(layout.shape, bits.shape);
    EXPECT_EQ(layout.q.file_offset, made.q.file_offset);
    EXPECT_THAT(layout.document_offsets, ElementsAre(0, 100, 100, 301));
    const CorpusReader reader(layout);
    std::vector<std::byte> q(bits.q.size()), k(bits.k.size()), v(bits.v.size());
    reader.read_q(0, 301, q.data());
    reader.read_k(0, 301, 0, 2, k.data());
    reader.read_v(0, 301, 0, 2, v.data());
    EXPECT_EQ(q, bits.q);
    EXPECT_EQ(k, bits.k);
    EXPECT_EQ(v, bits.v);
  }
  const FileDescription description = describe_file(folder / "c.h5");
  ASSERT_EQ(description.datasets.size(), 4u);
  EXPECT_EQ(description.datasets[0].path, "/document_offsets");
  EXPECT_EQ(description.datasets[0].type, "64-bit integer");
  EXPECT_EQ(description.datasets[2].path, "/layer0/q");
  EXPECT_EQ(description.datasets[2].type, "bfloat16");
  EXPECT_EQ(description.datasets[2].storage, "contiguous");
  EXPECT_THAT(description.datasets[2].dims, ElementsAre(301, 6, 24));
  EXPECT_THAT(description.attributes, ::testing::Contains(std::pair<std::string, std::string>("seed", "7")));
  EXPECT_THAT(description.attributes, ::testing::Contains(std::pair<std::string, std::string>("complete", "1")));
}

TEST(CorpusWriter, refuses_what_inspection_would) {
  const TemporaryFolder folder;
  const CorpusPaths paths{.file = folder / "c.h5"};
  expect_problem(problems_of([&] { create_corpus(paths, {.tokens = 10, .heads = 3, .kv_heads = 2, .head_dim = 8}, {}, "0"); }),
                 ExitCode::input, {"no corpus can have this shape"});
  expect_problem(problems_of([&] {
                   create_corpus(paths, {.tokens = 10, .heads = 2, .kv_heads = 2, .head_dim = 8}, {0, 9}, "0");
                 }),
                 ExitCode::input, {"do not end"});
  EXPECT_TRUE(folder.names().empty());
}

TEST(Description, sample_and_chunks) {
  const FileDescription sample = describe_file(LONGSPAN_SAMPLE);
  EXPECT_THAT(sample.attributes, ::testing::Contains(std::pair<std::string, std::string>("layer", "12")));
  EXPECT_THAT(sample.attributes, ::testing::Contains(std::pair<std::string, std::string>("texts", "(4 × string)")));
  const TemporaryFolder folder;
  Corpus(ElementType::float16, 50).write(folder / "c.h5", {.chunk = {16, 2, 24}, .gzip = 1, .shuffle = true, .big_endian = true});
  const FileDescription chunked = describe_file(folder / "c.h5");
  ASSERT_EQ(chunked.datasets.size(), 3u);
  EXPECT_EQ(chunked.datasets[0].storage, "chunks of [16, 2, 24], shuffle, deflate");
  EXPECT_EQ(chunked.datasets[0].type, "big-endian float16");
  EXPECT_THAT(hdf5_built_with(), HasSubstr(hdf5_running_with()));
}

// h5py, the way most users' files come and go: reads our bfloat16, labels and attributes, and writes a corpus we read.
TEST(H5py, both_ways) {
  const std::string python = std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") == 0 ? "/usr/bin/python3" : "python3";
  if (std::system((python + " -c 'import h5py' 2>/dev/null").c_str()) != 0) GTEST_SKIP() << "python3 has no h5py";
  const TemporaryFolder folder;
  const ResultLayout made = create_result(folder / "o.h5", 3, 2, 8, ElementType::bfloat16, kAttributes);
  std::vector<std::byte> o(3 * 2 * 8 * 2);
  for (size_t i = 0; i < 48; ++i) store_element(o.data(), ElementType::bfloat16, i, static_cast<float>(i) - 20.5f);
  const std::vector<float> lse(6, 1.25f);
  ResultFile(made, ResultFile::Access::write).write(0, 3, o.data(), lse.data());
  write_text(folder / "check.py", R"(
import h5py, numpy as np, sys
f = h5py.File(sys.argv[1], 'r')
assert f['o'].dtype == np.float32 and f['o'].shape == (3, 2, 8), (f['o'].dtype, f['o'].shape)
assert np.array_equal(f['o'][:].ravel(), np.arange(48, dtype=np.float32) - 20.5)
assert np.all(f['lse'][:] == 1.25)
assert [d.label for d in f['o'].dims] == ['token', 'head', 'dim'], [d.label for d in f['o'].dims]
assert [d.label for d in f['lse'].dims] == ['token', 'head']
a = f.attrs
assert a['pattern'] == 'causal & window(4096, 0)' and a['scale'] == 0.1 + 0.2 and a['input'] == 'corpus.h5' and a['complete'] == 0
t = h5py.h5t.IEEE_F32LE.copy(); t.set_fields(15, 7, 8, 0, 7); t.set_size(2); t.set_ebias(127)
with h5py.File(sys.argv[2], 'w') as g:
    for name, heads in (('q', 4), ('k', 2), ('v', 2)):
        x = (np.arange(5 * heads * 8, dtype=np.float32) - 3).reshape(5, heads, 8)
        d = h5py.h5d.create(g.id, name.encode(), t, h5py.h5s.create_simple(x.shape))
        d.write(h5py.h5s.ALL, h5py.h5s.ALL, x)
    g['document_offsets'] = np.array([0, 2, 5])
    m = g.create_group('block_masks/m')
    m.attrs['block'] = 2
    m['indptr'] = np.array([0, 1, 2, 3]); m['indices'] = np.array([0, 0, 1], dtype=np.int32)
)");
  ASSERT_EQ(std::system((python + " " + (folder / "check.py") + " " + made.file + " " + (folder / "c.h5")).c_str()), 0);
  const CorpusPaths paths{.file = folder / "c.h5"};
  const CorpusReader reader(inspect_corpus(paths));
  EXPECT_EQ(reader.layout().shape, (Shape{.tokens = 5, .heads = 4, .kv_heads = 2, .head_dim = 8, .type = ElementType::bfloat16}));
  EXPECT_TRUE(reader.layout().q.native);
  std::vector<std::byte> q(5 * 4 * 8 * 2);
  reader.read_q(0, 5, q.data());
  for (size_t i = 0; i < 160; ++i) EXPECT_EQ(load_element(q.data(), ElementType::bfloat16, i), static_cast<float>(i) - 3);
  const Documents documents(reader.layout().document_offsets);
  EXPECT_THAT(open_block_mask(paths, "m", 2, reader.layout().shape, documents)->row(0, 2), ElementsAre(1));
}

}  // namespace
}  // namespace longspan::io::testing
