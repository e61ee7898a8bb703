#include "cli/verification.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/cpu/thread_pool.hpp"
#include "kernels/reference/reference.hpp"
#include "pattern/philox.hpp"

namespace longspan::cli {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A row's attention so far, over the pieces of its keys: normalised O and LSE of what has been seen.
template <typename Real>
struct Partial {
  Real lse = -std::numeric_limits<Real>::infinity();
  // Two sets of keys: O = e^(a−LSE)·O_a + e^(b−LSE)·O_b with LSE = log(e^a + e^b).
  void merge(std::span<Real> o, Real other_lse, std::span<const Real> other_o) {
    if (other_lse == -std::numeric_limits<Real>::infinity()) return;
    if (lse == -std::numeric_limits<Real>::infinity()) {
      lse = other_lse;
      std::copy(other_o.begin(), other_o.end(), o.begin());
      return;
    }
    const Real top = std::max(lse, other_lse);
    const Real mine = std::exp(lse - top), others = std::exp(other_lse - top), sum = mine + others;
    for (size_t d = 0; d < o.size(); ++d) o[d] = (mine * o[d] + others * other_o[d]) / sum;
    lse = std::isnan(lse) || std::isnan(other_lse) ? std::numeric_limits<Real>::quiet_NaN() : top + std::log(sum);
  }
};

// One sampled row.
struct Row {
  int64_t token = 0, document = 0, begin = 0, length = 0;  // its document's first token and length
};

void to_float(const std::vector<std::byte>& raw, ElementType type, size_t first, size_t count, size_t stride, size_t width, float* out) {
  for (size_t i = 0; i < count; ++i)
    for (size_t d = 0; d < width; ++d) out[i * width + d] = load_element(raw.data(), type, first + i * stride + d);
}

class Batch {
 public:
  Batch(const io::CorpusReader& input, const pattern::BoundPattern& pattern, const VerifyOptions& options, std::vector<Row> rows,
        kernels::cpu::ThreadPool& pool)
      : input_(input),
        pattern_(pattern),
        shape_(input.layout().shape),
        options_(options),
        pool_(pool),
        rows_(std::move(rows)),
        dim_(static_cast<size_t>(shape_.head_dim)) {
    const size_t states = rows_.size() * static_cast<size_t>(shape_.heads);
    exact_.resize(states), plain_.resize(states);
    exact_o_.resize(states * dim_), plain_o_.resize(states * dim_), q_.resize(states * dim_);
    scratch_.resize(static_cast<size_t>(pool.threads()));
    const size_t row_elements = static_cast<size_t>(shape_.heads) * dim_;
    std::vector<std::byte> raw(row_elements * size_of(shape_.type));
    for (size_t row = 0; row < rows_.size(); ++row) {
      input_.read_q(rows_[row].token, 1, raw.data());
      to_float(raw, shape_.type, 0, 1, 0, row_elements, q_.data() + row * row_elements);
    }
  }

  // Goes once over the keys, piece by piece.
  void compute(Verdict& verdict) {
    const int64_t token_bytes = 2 * int64_t{shape_.kv_heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
    const int64_t piece = std::max<int64_t>(1, options_.piece_bytes / token_bytes);
    for (int64_t begin = 0; begin < shape_.tokens; begin += piece) take({begin, std::min(begin + piece, shape_.tokens)}, verdict);
  }

  const Row& row(size_t index) const { return rows_[index]; }
  size_t rows() const { return rows_.size(); }
  double lse(size_t state) const { return exact_[state].lse; }
  float plain_lse(size_t state) const { return plain_[state].lse; }
  std::span<const double> o(size_t state) const { return {exact_o_.data() + state * dim_, dim_}; }
  std::span<const float> plain_o(size_t state) const { return {plain_o_.data() + state * dim_, dim_}; }

 private:
  struct Scratch {
    std::vector<float> keys, values, plain_o;
    std::vector<double> exact_o;
  };

  void take(Interval piece, Verdict& verdict) {
    // Which keys of the piece does each row look at, per head group, in tokens of the file?
    const size_t groups = pattern_.groups().size();
    std::vector<size_t> active;
    std::vector<Intervals> looks;  // [active row][group]
    Intervals needed;
    for (size_t row = 0; row < rows_.size(); ++row) {
      const Row& r = rows_[row];
      const Interval clip = overlap({piece.begin - r.begin, piece.end - r.begin}, {0, r.length});
      if (clip.empty()) continue;
      active.push_back(row);
      const int64_t i = r.token - r.begin;
      for (size_t group = 0; group < groups; ++group) {
        Intervals keys = pattern_.keys(static_cast<int>(group), r.document, {i, i + 1}, clip).may;
        for (Interval& interval : keys) interval = {interval.begin + r.begin, interval.end + r.begin};
        needed = unite(needed, keys);
        looks.push_back(std::move(keys));
      }
    }
    if (needed.empty()) return;
    read(piece, needed, verdict);

    const int group_heads = shape_.heads / shape_.kv_heads;
    for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
      convert(piece, needed, kv_head);
      pool_.for_each(static_cast<int64_t>(active.size()) * group_heads, [&](int64_t item, int worker) {
        const size_t index = static_cast<size_t>(item / group_heads);
        const int head = kv_head * group_heads + static_cast<int>(item % group_heads);
        const Intervals& keys = looks[index * groups + static_cast<size_t>(pattern_.group_of(head))];
        if (!keys.empty()) attend(active[index], head, keys, piece.begin, scratch_[static_cast<size_t>(worker)]);
      });
    }
    for (size_t index = 0; index < active.size(); ++index)
      for (size_t group = 0; group < groups; ++group)
        verdict.pairs += size_of(looks[index * groups + group]) * static_cast<int64_t>(pattern_.groups()[group].heads.size());
  }

  // Reads the needed tokens of the piece; near runs together (a gap of 32 KiB costs less than another read).
  void read(Interval piece, const Intervals& needed, Verdict& verdict) {
    const size_t token = static_cast<size_t>(shape_.kv_heads) * dim_ * size_of(shape_.type);
    raw_k_.resize(static_cast<size_t>(piece.length()) * token), raw_v_.resize(raw_k_.size());
    const auto gap = static_cast<int64_t>((size_t{32} << 10) / token);
    for (size_t i = 0; i < needed.size();) {
      Interval run = needed[i++];
      while (i < needed.size() && needed[i].begin - run.end <= gap) run.end = needed[i++].end;
      const size_t at = static_cast<size_t>(run.begin - piece.begin) * token;
      input_.read_k(run.begin, run.length(), 0, shape_.kv_heads, raw_k_.data() + at);
      input_.read_v(run.begin, run.length(), 0, shape_.kv_heads, raw_v_.data() + at);
      verdict.bytes_read += 2 * run.length() * static_cast<int64_t>(token);
    }
  }

  void convert(Interval piece, const Intervals& needed, int kv_head) {
    k_.resize(static_cast<size_t>(piece.length()) * dim_), v_.resize(k_.size());
    const size_t stride = static_cast<size_t>(shape_.kv_heads) * dim_;
    constexpr int64_t kRun = 256;
    std::vector<Interval> runs;
    for (Interval run : needed)
      for (; !run.empty(); run.begin += kRun) runs.push_back({run.begin - piece.begin, std::min(run.begin + kRun, run.end) - piece.begin});
    pool_.for_each(static_cast<int64_t>(runs.size()), [&](int64_t item, int) {
      const Interval run = runs[static_cast<size_t>(item)];
      const size_t first = static_cast<size_t>(run.begin), count = static_cast<size_t>(run.length());
      const size_t element = first * stride + static_cast<size_t>(kv_head) * dim_;
      to_float(raw_k_, shape_.type, element, count, stride, dim_, k_.data() + first * dim_);
      to_float(raw_v_, shape_.type, element, count, stride, dim_, v_.data() + first * dim_);
    });
  }

  void attend(size_t row, int head, const Intervals& keys, int64_t piece_begin, Scratch& scratch) {
    const auto span_of = [&](const std::vector<float>& all, Interval tokens) {
      return std::span<const float>(all).subspan(static_cast<size_t>(tokens.begin - piece_begin) * dim_,
                                                 static_cast<size_t>(tokens.length()) * dim_);
    };
    std::span<const float> k, v;
    if (keys.size() == 1) {
      k = span_of(k_, keys.front()), v = span_of(v_, keys.front());
    } else {
      scratch.keys.clear(), scratch.values.clear();
      for (const Interval& run : keys) {
        const auto run_k = span_of(k_, run), run_v = span_of(v_, run);
        scratch.keys.insert(scratch.keys.end(), run_k.begin(), run_k.end());
        scratch.values.insert(scratch.values.end(), run_v.begin(), run_v.end());
      }
      k = scratch.keys, v = scratch.values;
    }
    const size_t state = row * static_cast<size_t>(shape_.heads) + static_cast<size_t>(head);
    const std::span<const float> q(q_.data() + state * dim_, dim_);
    scratch.exact_o.resize(dim_), scratch.plain_o.resize(dim_);
    const double exact = kernels::reference::attend_row<double>(q, k, v, options_.scale, scratch.exact_o);
    exact_[state].merge({exact_o_.data() + state * dim_, dim_}, exact, scratch.exact_o);
    const auto scale = static_cast<float>(options_.scale);
    const float plain = options_.rounded_weights ? kernels::reference::attend_row_rounded(q, k, v, scale, shape_.type, scratch.plain_o)
                                                 : kernels::reference::attend_row<float>(q, k, v, scale, scratch.plain_o);
    plain_[state].merge({plain_o_.data() + state * dim_, dim_}, plain, scratch.plain_o);
  }

  const io::CorpusReader& input_;
  const pattern::BoundPattern& pattern_;
  const Shape shape_;
  const VerifyOptions& options_;
  kernels::cpu::ThreadPool& pool_;
  std::vector<Row> rows_;
  size_t dim_;
  std::vector<float> q_, plain_o_, k_, v_;
  std::vector<double> exact_o_;
  std::vector<Partial<double>> exact_;  // [row][head]
  std::vector<Partial<float>> plain_;
  std::vector<std::byte> raw_k_, raw_v_;
  std::vector<Scratch> scratch_;
};

// |result − reference|, where both or neither may be NaN or the same infinity.
double difference(double result, double reference) {
  if (std::isnan(result) && std::isnan(reference)) return 0;
  if (result == reference) return 0;  // infinities too
  const double error = std::abs(result - reference);
  return std::isfinite(error) ? error : kInfinity;
}

float rounded(float value, ElementType type) {
  if (type == ElementType::float16) return float_from_float16(float16_from_float(value));
  if (type == ElementType::bfloat16) return float_from_bfloat16(bfloat16_from_float(value));
  return value;
}

// Errors of one row and head, kept until the bound of all rows is known.
struct Sample {
  int64_t token = 0;
  int head = 0;
  double error = 0, plain = 0, largest = 0, lse_error = 0, lse = 0;
  bool looks = true;  // at one key at least
};

}  // namespace

bool rounds_weights(std::string_view device, ElementType type) {
  if (device.starts_with("cuda")) return type != ElementType::float32;
  return device == "cpu AVX512_BF16" && type == ElementType::bfloat16;
}

double unit_in_last_place(double value, ElementType type) {
  const int digits = type == ElementType::float32 ? 23 : type == ElementType::float16 ? 10 : 7;  // stored bits of the significand
  const int least = type == ElementType::float16 ? -14 : -126;                                   // exponent of the smallest normal number
  const double magnitude = std::abs(value);
  const int exponent = magnitude > 0 && std::isfinite(magnitude) ? std::ilogb(magnitude) : least;
  return std::ldexp(1.0, std::max(exponent, least) - digits);
}

std::vector<int64_t> sample_rows(const Documents& documents, int64_t rows, uint64_t seed) {
  const int64_t tokens = documents.tokens();
  rows = std::min(rows, tokens);
  std::vector<int64_t> sample;
  if (rows == tokens) {
    for (int64_t token = 0; token < tokens; ++token) sample.push_back(token);
    return sample;
  }
  const auto add = [&](int64_t token) {
    const auto place = std::lower_bound(sample.begin(), sample.end(), token);
    if (static_cast<int64_t>(sample.size()) < rows && (place == sample.end() || *place != token)) sample.insert(place, token);
  };
  add(0), add(tokens - 1);
  const int64_t chosen = std::min(documents.count(), std::max<int64_t>(1, rows / 4));  // two rows each
  for (int64_t i = 0; i < chosen; ++i) {
    const int64_t document = i * documents.count() / chosen;
    if (documents.length(document) == 0) continue;
    add(documents.begin(document)), add(documents.begin(document) + documents.length(document) - 1);
  }
  constexpr uint32_t kStream = 0x5a3f1e;  // apart from the words of elements and documents
  for (uint32_t draw = 0; static_cast<int64_t>(sample.size()) < rows; ++draw) {
    const auto words = philox4x32({draw, 0, 0, kStream}, philox_key(seed));
    const auto wide = static_cast<unsigned __int128>(uint64_t{words[0]} << 32 | words[1]) * static_cast<uint64_t>(tokens);
    add(static_cast<int64_t>(wide >> 64));
  }
  return sample;
}

Verdict verify_rows(const io::CorpusReader& input, const io::ResultFile& output, ElementType output_type,
                    const pattern::BoundPattern& pattern, const std::vector<int64_t>& tokens, const VerifyOptions& options) {
  const Shape& shape = input.layout().shape;
  const Documents& documents = pattern.documents();
  const auto heads = static_cast<size_t>(shape.heads), dim = static_cast<size_t>(shape.head_dim);
  Verdict verdict;
  verdict.rows = static_cast<int64_t>(tokens.size());
  verdict.heads = shape.heads;
  kernels::cpu::ThreadPool pool(options.threads);
  // Rows in batches, so that their states (20 bytes an element) stay within a piece's memory too.
  const size_t batch_rows = std::max<size_t>(1, static_cast<size_t>(options.piece_bytes) / (heads * dim * 20));
  std::vector<Sample> samples;
  double sum_o = 0, sum_lse = 0, plain_of_all = 0;
  int64_t finite_o = 0, finite_lse = 0;
  std::vector<std::byte> o(heads * dim * size_of(output_type));
  std::vector<float> lse(heads);
  for (size_t first = 0; first < tokens.size(); first += batch_rows) {
    std::vector<Row> rows;
    for (size_t i = first; i < std::min(first + batch_rows, tokens.size()); ++i) {
      const int64_t document = documents.holding(tokens[i]);
      rows.push_back({tokens[i], document, documents.begin(document), documents.length(document)});
    }
    Batch batch(input, pattern, options, std::move(rows), pool);
    batch.compute(verdict);
    for (size_t row = 0; row < batch.rows(); ++row) {
      output.read(batch.row(row).token, 1, o.data(), lse.data());
      for (size_t head = 0; head < heads; ++head) {
        const size_t state = row * heads + head;
        Sample sample{.token = batch.row(row).token, .head = static_cast<int>(head), .lse = batch.lse(state)};
        sample.looks = batch.lse(state) != -kInfinity;
        for (size_t d = 0; d < dim; ++d) {
          const double reference = batch.o(state)[d];
          const float result = load_element(o.data(), output_type, head * dim + d);
          // Beyond the range of the output's type the rounded reference is infinite, and so must the result be.
          const bool overflow = std::isinf(result) && rounded(static_cast<float>(reference), output_type) == result;
          const double error = overflow ? 0 : difference(result, reference);
          sample.error = std::max(sample.error, error);
          if (std::isfinite(error)) sum_o += error, ++finite_o;
          const float plain = batch.plain_o(state)[d];
          const double plain_error = std::abs(static_cast<double>(rounded(plain, output_type)) - reference);
          if (std::isfinite(plain_error)) sample.plain = std::max(sample.plain, plain_error);
          const double unrounded = std::abs(static_cast<double>(plain) - reference);
          if (std::isfinite(unrounded)) plain_of_all = std::max(plain_of_all, unrounded);
          if (std::isfinite(reference)) sample.largest = std::max(sample.largest, std::abs(reference));
        }
        sample.lse_error = difference(lse[head], batch.lse(state));
        if (std::isfinite(sample.lse_error)) sum_lse += sample.lse_error, ++finite_lse;
        verdict.lse.plain_largest = std::max(verdict.lse.plain_largest, [&] {
          const double error = difference(batch.plain_lse(state), batch.lse(state));
          return std::isfinite(error) ? error : 0;
        }());
        samples.push_back(sample);
      }
    }
  }
  verdict.elements = static_cast<int64_t>(samples.size() * dim);
  verdict.o.mean = finite_o ? sum_o / static_cast<double>(finite_o) : 0;
  verdict.lse.mean = finite_lse ? sum_lse / static_cast<double>(finite_lse) : 0;
  verdict.o.plain_largest = plain_of_all;
  const auto judge = [](ErrorSummary& summary, const Sample& sample, double error, double bound) {
    summary.largest = std::max(summary.largest, error);
    const double share = error == 0 ? 0 : bound > 0 ? error / bound : kInfinity;
    summary.failures += share > 1;
    if (summary.worst_token >= 0 && share <= summary.worst_share) return;
    summary.worst_share = share, summary.bound = bound, summary.worst_token = sample.token, summary.worst_head = sample.head;
  };
  for (const Sample& sample : samples) {
    const double o_bound = sample.looks ? 2 * std::max(sample.plain, plain_of_all) + unit_in_last_place(sample.largest, output_type) : 0;
    judge(verdict.o, sample, sample.error, o_bound);
    judge(verdict.lse, sample, sample.lse_error, std::isfinite(sample.lse) ? 1e-5 * (1 + std::abs(sample.lse)) : 0);
  }
  return verdict;
}

}  // namespace longspan::cli
