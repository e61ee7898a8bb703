#include <thread>

#include "fixture.hpp"
#include "io/corpus_writer.hpp"

namespace longspan::io::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// 4 + 0 + 1 + 2 row blocks of 10 tokens; rows 0…6.
const Documents& documents() {
  static const Documents made = Documents::from_lengths({35, 0, 10, 11});
  return made;
}
const Shape kShape{.tokens = 56, .heads = 6, .kv_heads = 2, .head_dim = 24, .type = ElementType::bfloat16};

class BlockMask : public ::testing::Test {
 protected:
  BlockMask() { Corpus(ElementType::bfloat16, 56).write(paths_.file); }
  std::shared_ptr<const pattern::BlockMaskSource> open(const std::string& name, int64_t block = 10) {
    return open_block_mask(paths_, name, block, kShape, documents());
  }
  std::vector<Problem> problems(const std::string& name, int64_t block = 10) {
    return problems_of([&] { open(name, block); });
  }
  TemporaryFolder folder_;
  CorpusPaths paths_{.file = folder_ / "c.h5"};
};

TEST_F(BlockMask, lists_of_all_heads) {
  add_block_mask(paths_, "mine", {.block = 10, .indptr = {0, 1, 3, 3, 7, 8, 8, 10}, .indices = {0, 0, 3, 0, 1, 2, 3, 0, 0, 1}});
  const auto mask = open("mine");
  EXPECT_EQ(mask->block(), 10);
  EXPECT_EQ(mask->list_heads(), 1);
  EXPECT_THAT(mask->row(0, 0), ElementsAre(0));
  EXPECT_THAT(mask->row(0, 1), ElementsAre(0, 3));
  EXPECT_THAT(mask->row(0, 2), IsEmpty());
  EXPECT_THAT(mask->row(0, 3), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(mask->row(0, 4), ElementsAre(0));
  EXPECT_THAT(mask->row(0, 6), ElementsAre(0, 1));
  EXPECT_THROW(mask->row(0, 7), Error);
  EXPECT_THROW(mask->row(1, 0), Error);
}

TEST_F(BlockMask, lists_per_head_with_absolute_indptr) {
  for (const int heads : {2, 6}) {
    BlockMaskLists lists{.block = 10, .list_heads = heads};
    for (int h = 0; h < heads; ++h) {
      for (int row = 0; row <= 7; ++row) {
        lists.indptr.push_back(static_cast<int64_t>(lists.indices.size()));
        if (row < 7 && row % heads == h % heads) lists.indices.push_back(0);
      }
    }
    const std::string name = "per" + std::to_string(heads);
    add_block_mask(paths_, name, lists);
    const auto mask = open(name);
    EXPECT_EQ(mask->list_heads(), heads);
    for (int h = 0; h < heads; ++h) {
      for (int row = 0; row < 7; ++row) EXPECT_EQ(mask->row(h, row).size(), row % heads == h ? 1u : 0u) << h << " " << row;
    }
  }
}

TEST_F(BlockMask, int32_compressed_and_attribute_on_a_dataset) {
  {
    const Section section;
    const FileHandle file = open_hdf5(paths_.file, "corpus", OpenMode::change);
    const std::vector<int64_t> indptr{0, 1, 1, 1, 1, 1, 1, 3}, indices{3, 0, 1};
    put(file.get(), "/block_masks/m/indptr", H5T_STD_I32LE, {8}, H5T_NATIVE_INT64, indptr.data(), {.chunk = {3}, .gzip = 2});
    put(file.get(), "/block_masks/m/indices", H5T_STD_I32BE, {3}, H5T_NATIVE_INT64, indices.data(), {.chunk = {2}, .gzip = 2});
    const DatasetHandle dataset(H5Dopen2(file.get(), "/block_masks/m/indices", H5P_DEFAULT));
    write_attribute(dataset.get(), "block", int64_t{10}, "");
  }
  EXPECT_THAT(open("m")->row(0, 0), ElementsAre(3));
  EXPECT_THAT(open("m")->row(0, 6), ElementsAre(0, 1));
}

TEST_F(BlockMask, missing_names_the_nearest) {
  expect_problem(problems("select"), ExitCode::input, {"block mask \"select\" is missing", "no block masks"});
  add_block_mask(paths_, "selected", {.block = 10, .indptr = std::vector<int64_t>(8), .indices = {}});
  expect_problem(problems("select"), ExitCode::input, {"is missing", "did you mean selected?"});
  EXPECT_THAT(open("selected")->row(0, 5), IsEmpty());  // no indices at all
}

TEST_F(BlockMask, misshapen) {
  add_block_mask(paths_, "m", {.block = 10, .indptr = std::vector<int64_t>(8), .indices = {0}});
  // Another block size means other rows, too.
  const std::string all = Error(problems("m", 5)).what();
  for (const char* words :
       {"another block size", "seen 10, expected 5", "block_mask(\"m\", 10)", "indptr has the wrong shape: seen [8], expected [13]"}) {
    EXPECT_THAT(all, HasSubstr(words));
  }
  EXPECT_EQ(problems("m", 5).front().code, ExitCode::input);
}

TEST_F(BlockMask, all_problems_at_once) {
  {
    const Section section;
    const FileHandle file = open_hdf5(paths_.file, "corpus", OpenMode::change);
    put_integers(file.get(), "/block_masks/m/indptr", std::vector<int64_t>(24), {3, 8});
    put(file.get(), "/block_masks/m/indices", H5T_IEEE_F32LE, {2, 2}, 0, nullptr);
    put_integers(file.get(), "/block_masks/short/indptr", std::vector<int64_t>(7));
  }
  const std::string all = Error(problems("m")).what();
  for (const char* words :
       {"no integer attribute `block`", "indices has the wrong type", "float32", "indices has the wrong number of dimensions",
        "indptr has the wrong shape: seen [3, 8]", "[8], [2, 8] or [6, 8]"}) {
    EXPECT_THAT(all, HasSubstr(words));
  }
  const std::string other = Error(problems("short")).what();
  EXPECT_THAT(other, HasSubstr("dataset /block_masks/short/indices is missing"));
  EXPECT_THAT(other, HasSubstr("indptr has the wrong shape: seen [7]"));
}

TEST_F(BlockMask, bad_rows_are_found_when_read) {
  const auto add = [&](const std::string& name, std::vector<int64_t> indptr, std::vector<int64_t> indices) {
    indptr.resize(8, indptr.back());
    add_block_mask(paths_, name, {.block = 10, .indptr = std::move(indptr), .indices = std::move(indices)});
    return problems_of([&] { open(name)->row(0, 0); });
  };
  expect_problem(add("twice", {0, 2}, {1, 1}), ExitCode::input, {"row block 0 of list head 0", "there twice", "c.h5:/block_masks/twice"});
  expect_problem(add("descend", {0, 3}, {0, 2, 1}), ExitCode::input, {"do not ascend", "1 after 2"});
  expect_problem(add("large", {0, 1}, {4}), ExitCode::input, {"out of range", "seen 4", "0 … 3"});
  expect_problem(add("negative", {0, 1}, {-1}), ExitCode::input, {"out of range", "seen -1"});
  expect_problem(add("past", {0, 9}, {0, 1}), ExitCode::input, {"indptr does not ascend within the indices", "0, 9"});
  expect_problem(add("back", {2, 1}, {0, 1}), ExitCode::input, {"indptr does not ascend", "2, 1"});
}

// More entries than a piece of the cache holds (131,072), rows across its borders, and more pieces than it keeps; four threads.
TEST(LargeBlockMask, pieces_and_threads) {
  const TemporaryFolder folder;
  const CorpusPaths paths{.file = folder / "c.h5"};
  Corpus(ElementType::bfloat16, 1).write(paths.file);
  const int64_t rows = 3000;
  const Documents one = Documents::single(rows);  // block 1: as many row blocks as tokens
  BlockMaskLists lists{.block = 1};
  for (int64_t r = 0; r <= rows; ++r) {
    lists.indptr.push_back(static_cast<int64_t>(lists.indices.size()));
    for (int64_t j = r % 2; r < rows && j <= r; j += 1 + r % 2) lists.indices.push_back(j);  // even rows: 0…r; odd ones: 1, 3, …, r
  }
  ASSERT_GT(lists.indices.size(), size_t{25} << 17);
  add_block_mask(paths, "large", lists);
  const auto mask = open_block_mask(paths, "large", 1, kShape, one);
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (int64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int64_t r = t * 7; r < rows; r += 11) {
          const std::vector<int64_t> row = mask->row(0, r);
          bool right = static_cast<int64_t>(row.size()) == (r % 2 ? (r + 1) / 2 : r + 1);
          for (size_t i = 0; right && i < row.size(); ++i)
            right = row[i] == (r % 2 ? 2 * static_cast<int64_t>(i) + 1 : static_cast<int64_t>(i));
          wrong += !right;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace longspan::io::testing
