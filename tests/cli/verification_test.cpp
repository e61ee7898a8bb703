// verify: samples, bounds, and that wrong results are found wherever they are.
#include "cli/verification.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>

#include "cli/synthetic.hpp"
#include "io/corpus_writer.hpp"
#include "kernels/reference/reference.hpp"

namespace longspan::cli {
namespace {

TEST(SampleRows, BordersFirstRestRandomAllDistinct) {
  const Documents documents = Documents::from_lengths({300, 0, 1, 5000});
  const std::vector<int64_t> rows = sample_rows(documents, 40, 3);
  ASSERT_EQ(rows.size(), 40u);
  EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end()));
  EXPECT_EQ(std::adjacent_find(rows.begin(), rows.end()), rows.end());
  for (const int64_t border : {0, 299, 300, 301, 5300}) EXPECT_TRUE(std::binary_search(rows.begin(), rows.end(), border)) << border;
  EXPECT_EQ(rows, sample_rows(documents, 40, 3));
  EXPECT_NE(rows, sample_rows(documents, 40, 4));
  EXPECT_EQ(sample_rows(Documents::single(3), 256, 0), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(sample_rows(Documents::single(1000), 1, 0), (std::vector<int64_t>{0}));
  EXPECT_TRUE(sample_rows(Documents::single(0), 5, 0).empty());
}

TEST(UnitInLastPlace, IsTheSpacingOfNumbers) {
  EXPECT_EQ(unit_in_last_place(1, ElementType::float32), 0x1p-23);
  EXPECT_EQ(unit_in_last_place(-1.9, ElementType::float16), 0x1p-10);
  EXPECT_EQ(unit_in_last_place(4, ElementType::bfloat16), 0x1p-5);
  EXPECT_EQ(unit_in_last_place(0, ElementType::float16), 0x1p-24);
}

TEST(RoundsWeights, OfSixteenBitTypesWhereTheDeviceDoes) {
  for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    const bool half = type != ElementType::float32;
    EXPECT_EQ(rounds_weights("cuda 9.0", type), half);
    EXPECT_EQ(rounds_weights("cpu AVX512_BF16", type), type == ElementType::bfloat16);
    for (const char* device : {"cpu", "cpu AVX2", "cpu AVX3", ""}) EXPECT_FALSE(rounds_weights(device, type)) << device;
  }
}

TEST(Synthetic, ElementsDependOnTheSeedOnly) {
  kernels::cpu::ThreadPool pool(2);
  const auto make = [&](uint64_t seed, int64_t begin, int64_t count, int heads, int head_dim) {
    std::vector<std::byte> bytes(static_cast<size_t>(count * heads * head_dim) * 4);
    fill_synthetic(seed, SyntheticDataset::k, begin, count, heads, head_dim, ElementType::float32, bytes.data(), pool);
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  const std::vector<float> all = make(5, 0, 1000, 3, 16), part = make(5, 700, 10, 2, 8);
  for (size_t token = 0; token < 10; ++token)
    for (size_t head = 0; head < 2; ++head)
      for (size_t d = 0; d < 8; ++d) EXPECT_EQ(part[(token * 2 + head) * 8 + d], all[((700 + token) * 3 + head) * 16 + d]);
  EXPECT_NE(all, make(6, 0, 1000, 3, 16));
  double sum = 0, squares = 0;
  for (const float x : all) sum += x, squares += double{x} * x;
  const auto n = static_cast<double>(all.size());
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 0.05);
}

class Verify : public testing::Test {
 protected:
  // A corpus of 700 tokens in three documents, and its exact result under `text`.
  void make(const std::string& text, ElementType type, ElementType output_type,
            const std::function<void(std::vector<float>& k, std::vector<float>& v)>& spoil = {}) {
    type_ = type, output_type_ = output_type;
    const Documents documents(offsets_);
    pattern_ = std::make_unique<pattern::BoundPattern>(pattern::Pattern::parse(text), kHeads, kKvHeads, documents);
    io::CorpusPaths paths;
    paths.file = file("c.h5");
    kernels::cpu::ThreadPool pool(1);
    const io::CorpusLayout layout = io::create_corpus(paths, {offsets_.back(), kHeads, kKvHeads, kDim, type}, offsets_, "test");
    std::vector<std::vector<float>> tensors;
    {
      io::CorpusWriter writer(layout);
      std::vector<std::vector<std::byte>> raws;
      for (int tensor = 0; tensor < 3; ++tensor) {
        const int heads = tensor == 0 ? kHeads : kKvHeads;
        const auto elements = static_cast<size_t>(offsets_.back() * heads * kDim);
        raws.emplace_back(elements * size_of(type));
        fill_synthetic(1, static_cast<SyntheticDataset>(tensor), 0, offsets_.back(), heads, kDim, type, raws.back().data(), pool);
        tensors.emplace_back(elements);
        for (size_t i = 0; i < elements; ++i) tensors.back()[i] = load_element(raws.back().data(), type, i);
      }
      if (spoil) spoil(tensors[1], tensors[2]);
      for (int tensor = 0; tensor < 3; ++tensor) {
        for (size_t i = 0; i < tensors[static_cast<size_t>(tensor)].size(); ++i)
          store_element(raws[static_cast<size_t>(tensor)].data(), type, i, tensors[static_cast<size_t>(tensor)][i]);
        writer.write(static_cast<io::CorpusWriter::Tensor>(tensor), 0, offsets_.back(), raws[static_cast<size_t>(tensor)].data());
      }
      writer.sync();
    }
    io::finish_corpus(paths);
    // The result, row by row.
    o_.assign(static_cast<size_t>(offsets_.back() * kHeads * kDim), 0);
    lse_.assign(static_cast<size_t>(offsets_.back() * kHeads), 0);
    for (int64_t token = 0; token < offsets_.back(); ++token) {
      const int64_t document = documents.holding(token), begin = documents.begin(document);
      for (int head = 0; head < kHeads; ++head) {
        std::vector<float> keys, values;
        for (int64_t j = 0; j < documents.length(document); ++j) {
          if (!pattern_->allowed(pattern_->group_of(head), document, token - begin, j)) continue;
          const auto at = static_cast<size_t>(((begin + j) * kKvHeads + head / (kHeads / kKvHeads)) * kDim);
          keys.insert(keys.end(), tensors[1].begin() + static_cast<std::ptrdiff_t>(at),
                      tensors[1].begin() + static_cast<std::ptrdiff_t>(at + kDim));
          values.insert(values.end(), tensors[2].begin() + static_cast<std::ptrdiff_t>(at),
                        tensors[2].begin() + static_cast<std::ptrdiff_t>(at + kDim));
        }
        const auto state = static_cast<size_t>(token * kHeads + head);
        std::vector<float> o(kDim);
        lse_[state] = kernels::reference::attend_row<float>(std::span(tensors[0]).subspan(state * kDim, kDim), keys, values, 0.25f, o);
        std::copy(o.begin(), o.end(), o_.begin() + static_cast<std::ptrdiff_t>(state * kDim));
      }
    }
    corpus_ = std::make_unique<io::CorpusReader>(io::inspect_corpus(paths));
  }

  Verdict verify(int64_t rows = 700, int64_t piece_bytes = 4096) {
    io::ResultAttributes attributes{.longspan_version = "test", .pattern = "causal", .scale = 0.25, .input_name = "c.h5"};
    const io::ResultLayout layout = io::create_result(file("o.h5"), offsets_.back(), kHeads, kDim, output_type_, attributes);
    {
      io::ResultFile result(layout, io::ResultFile::Access::write);
      std::vector<std::byte> raw(o_.size() * size_of(output_type_));
      for (size_t i = 0; i < o_.size(); ++i) store_element(raw.data(), output_type_, i, o_[i]);
      result.write(0, offsets_.back(), raw.data(), lse_.data());
    }
    const io::ResultFile result(layout, io::ResultFile::Access::read);
    return verify_rows(*corpus_, result, output_type_, *pattern_, sample_rows(pattern_->documents(), rows, 0),
                       {.scale = 0.25, .threads = 2, .piece_bytes = piece_bytes});
  }

  void TearDown() override {
    corpus_.reset();
    std::filesystem::remove(file("c.h5"));
    std::filesystem::remove(file("o.h5"));
  }
  static std::string file(const std::string& name) {
    return testing::TempDir() + "longspan_verify_" + std::to_string(getpid()) + "_" + name;
  }

  static constexpr int kHeads = 4, kKvHeads = 2, kDim = 16;
  const std::vector<int64_t> offsets_{0, 400, 400, 431, 700};
  ElementType type_ = ElementType::float32, output_type_ = ElementType::float32;
  std::unique_ptr<pattern::BoundPattern> pattern_;
  std::unique_ptr<io::CorpusReader> corpus_;
  std::vector<float> o_, lse_;
};

TEST_F(Verify, PassesAGoodResultOfEveryType) {
  for (const ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    make("0-1: causal & window(200); *: causal & (strided(7) | sink(2))", type, type);
    const Verdict verdict = verify();
    EXPECT_TRUE(verdict.passed()) << name_of(type) << " O " << verdict.o.worst_share << " LSE " << verdict.lse.worst_share;
    EXPECT_EQ(verdict.rows, 700);
    EXPECT_GT(verdict.o.largest, 0);
    EXPECT_LT(verdict.o.mean, verdict.o.largest);
    // One piece or many: the same sums but for rounding.
    EXPECT_NEAR(verify(700, int64_t{1} << 20).o.largest, verdict.o.largest, 1e-6);
  }
}

TEST_F(Verify, FindsOneWrongElementAndNamesItsRow) {
  make("causal", ElementType::bfloat16, ElementType::bfloat16);
  o_[static_cast<size_t>((431 * kHeads + 2) * kDim + 5)] += 0.5f;  // first token of the last document
  const Verdict verdict = verify(64);
  EXPECT_FALSE(verdict.passed());
  EXPECT_EQ(verdict.o.failures, 1);
  EXPECT_EQ(verdict.o.worst_token, 431);
  EXPECT_EQ(verdict.o.worst_head, 2);
  EXPECT_EQ(verdict.lse.failures, 0);
}

TEST_F(Verify, FindsAWrongLse) {
  make("causal", ElementType::float32, ElementType::float32);
  lse_[0] += 1e-3f;
  const Verdict verdict = verify(16);
  EXPECT_EQ(verdict.lse.failures, 1);
  EXPECT_EQ(verdict.o.failures, 0);
}

TEST_F(Verify, RowsThatLookAtNothingMustBeZero) {
  make("causal & !window(500)", ElementType::float32, ElementType::float32);  // nobody has a key so far back
  EXPECT_TRUE(verify().passed());
  o_[7] = 1e-30f;
  EXPECT_EQ(verify().o.failures, 1);
  o_[7] = 0, lse_[3] = -1e30f;
  EXPECT_EQ(verify().lse.failures, 1);
}

TEST_F(Verify, NotANumberMustMeetNotANumber) {
  const auto spoil = [](std::vector<float>&, std::vector<float>& v) {
    v[static_cast<size_t>(10 * kKvHeads * kDim + 3)] = std::numeric_limits<float>::quiet_NaN();
  };
  make("causal & window(3)", ElementType::float32, ElementType::float32, spoil);
  EXPECT_TRUE(verify().passed());
  o_[static_cast<size_t>(11 * kHeads * kDim + 3)] = 1;
  EXPECT_EQ(verify().o.failures, 1);
}

TEST_F(Verify, ReadsOnlyTheKeysItNeeds) {
  make("causal & window(3)", ElementType::float32, ElementType::float32);
  const Verdict verdict = verify(4, int64_t{1} << 20);  // tokens 0, 699 and borders between
  EXPECT_EQ(verdict.rows, 4);
  EXPECT_LE(verdict.pairs, 4 * 4 * kHeads);
  make("window(0)", ElementType::float32, ElementType::float32);
  EXPECT_EQ(verify(4).pairs, 4 * kHeads);
}

}  // namespace
}  // namespace longspan::cli
