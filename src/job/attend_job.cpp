#include "job/attend_job.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <mutex>

#include "job/ledger.hpp"
#include "kernels/cpu/attention.hpp"
#include "longspan/error.hpp"

namespace longspan::job {

namespace {

using nlohmann::ordered_json;

class FileInput : public engine::Input {
 public:
  explicit FileInput(const io::CorpusReader& reader) : reader_(reader) {}
  void read_q(int64_t begin, int64_t count, std::byte* out) override { reader_.read_q(begin, count, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    reader_.read_k(begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    reader_.read_v(begin, count, head, heads, out);
  }

 private:
  const io::CorpusReader& reader_;
};

// Of a stripe's O and LSE, fed row after row in pieces of any size.
class RowsChecksum {
 public:
  void add(const std::byte* o, size_t o_bytes, const float* lse, size_t lse_count) {
    o_.add(o, o_bytes);
    lse_.add(lse, lse_count * sizeof(float));
  }
  // Of all rows so far; then as if new.
  uint64_t take() {
    const uint64_t lse = lse_.value();
    o_.add(&lse, sizeof lse);
    const uint64_t both = o_.value();
    o_.reset();
    lse_.reset();
    return both;
  }

 private:
  Checksum o_, lse_;
};

// Writes rows, and makes a stripe safe at its end: data on disk first, then its record.
class FileOutput : public engine::Output {
 public:
  FileOutput(io::ResultFile& file, Ledger& ledger, int64_t row_o_bytes, int heads)
      : file_(file), ledger_(ledger), row_o_bytes_(row_o_bytes), heads_(heads) {}
  void write(int64_t begin, int64_t count, const std::byte* o, const float* lse) override {
    noting_failure([&] { file_.write(begin, count, o, lse); });
    checksum_.add(o, static_cast<size_t>(count * row_o_bytes_), lse, static_cast<size_t>(count * heads_));
  }
  void stripe_written(int64_t stripe) override {
    noting_failure([&] {
      file_.sync();
      ledger_.record(stripe, checksum_.take());
    });
    const std::lock_guard lock(mutex_);
    ++safe_stripes_;
    changed_.notify_all();
  }
  // From another thread: until `stripes` of them are safe, or a write has failed.
  std::optional<Problem> wait_for_stripes(int64_t stripes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return safe_stripes_ >= stripes || failure_; });
    return failure_;
  }

 private:
  template <typename F>
  void noting_failure(F action) {
    try {
      action();
    } catch (const Error& error) {
      const std::lock_guard lock(mutex_);
      failure_ = error.problems().front();
      changed_.notify_all();
      throw;
    }
  }

  io::ResultFile& file_;
  Ledger& ledger_;
  int64_t row_o_bytes_;
  int heads_;
  RowsChecksum checksum_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t safe_stripes_ = 0;
  std::optional<Problem> failure_;
};

}  // namespace

struct AttendJob::State {
  State(const comm::Communicator& ranks_, AttendRequest request_) : ranks(ranks_), request(std::move(request_)) {
    open_input();
    if (request.go_on) look_for_ledger();
    plan_all();
    if (complete) return;
    if (request.dry_run) {
      ranks.on_root([&] {
        check_output();
        check_room();
      });
      return;
    }
    open_output();
  }

  void open_input() {
    std::string layout;
    ranks.on_root([&] { layout = io::inspect_corpus(request.input).to_json(); });
    corpus = io::CorpusLayout::from_json(ranks.broadcast(layout));
    ranks.agreed([&] {
      reader.emplace(corpus);
      const Documents documents(corpus.document_offsets, request.input.file + ":" + request.input.document_offsets);
      std::vector<std::shared_ptr<const pattern::BlockMaskSource>> sources;
      for (const auto& use : request.pattern.block_masks())
        sources.push_back(io::open_block_mask(request.input, use.name, use.block, corpus.shape, documents));
      pattern.emplace(request.pattern, corpus.shape.heads, corpus.shape.kv_heads, documents, std::move(sources));
      blocks.emplace(documents);
    });
    scale = request.scale.value_or(1 / std::sqrt(static_cast<double>(corpus.shape.head_dim)));
    output_type = request.output_type.value_or(corpus.shape.type);
  }

  // --continue: partition and memory are the ledger's unless the user says otherwise (and then the difference is named).
  void look_for_ledger() {
    std::string head;
    int64_t finished = 0;
    ranks.on_root([&] {
      if (!std::filesystem::exists(request.output)) return;
      const std::string ledger_path = Ledger::path_of(request.output);
      const io::ResultLayout result = io::inspect_result(request.output);
      if (result.attributes.complete != 0) {
        check_complete_is_ours(result);
        finished = 1;
        if (!request.dry_run) Ledger::remove(ledger_path);  // of a job that was killed between its last two acts
      } else if (Ledger::exists(ledger_path)) {             // else killed before there was one: nothing to go on from
        head = Ledger(ledger_path, 0).head().dump();
      }
    });
    complete = ranks.max(finished) != 0;
    head = ranks.broadcast(head);
    if (head.empty()) return;
    resumed_head = ordered_json::parse(head);
    if (!request.memory && resumed_head.contains("memory")) request.memory = resumed_head["memory"].get<int64_t>();
    if (!request.partition && resumed_head.contains("partition"))
      request.partition = plan::partition_kind_named(resumed_head["partition"].get<std::string>());
  }

  void check_complete_is_ours(const io::ResultLayout& result) const {
    const auto refuse = [&](const std::string& what, const std::string& seen, const std::string& expected) {
      throw Error({.code = ExitCode::usage,
                   .what = "the complete output is of another job: " + what,
                   .seen = seen,
                   .expected = expected,
                   .from = request.output,
                   .mend = "give another --output, or --overwrite instead of --continue"});
    };
    const io::ResultAttributes& attributes = result.attributes;
    if (attributes.pattern != request.pattern.canonical()) refuse("its pattern differs", attributes.pattern, request.pattern.canonical());
    if (attributes.scale != scale) refuse("its scale differs", fmt::format("{}", attributes.scale), fmt::format("{}", scale));
    if (attributes.input_bytes != corpus.file_bytes || attributes.input_modified_ns != corpus.modified_ns)
      refuse("its input has changed since", attributes.input_name, request.input.file);
    if (result.output_type != output_type)
      refuse("its type differs", std::string(name_of(result.output_type)), std::string(name_of(output_type)));
  }

  void plan_all() {
    plan::Options options;
    options.partition = request.partition.value_or(plan::PartitionKind::automatic);
    options.memory = ranks.min(request.memory.value_or(request.default_memory));
    options.output_type = output_type;
    options.reproducible = request.reproducible;
    options.exchange = request.exchange;
    options.step_bytes = request.step_bytes;
    options.on_gpu = request.device != "cpu";
    options.exact_tiles = std::numeric_limits<int64_t>::max();
    ranks.agreed([&] {
      shared.emplace(plan::make_shared(*pattern, *blocks, corpus.shape, ranks.size(), options));
      plan.emplace(plan::make_rank_plan(*shared, *pattern, *blocks, ranks.rank()));
    });
    const auto own = static_cast<int64_t>(plan->stripes.size() - shared->batches.size());
    stripes = static_cast<int>(ranks.max(own));
    std::vector<int64_t> steps(static_cast<size_t>(stripes) + shared->batches.size());
    for (size_t s = 0; s < plan->stripes.size(); ++s) steps[s] = plan->stripes[s].steps();
    ranks.max(steps);
    total_steps = 0;
    for (int64_t count : steps) total_steps += std::max<int64_t>(1, count);
  }

  // What the job is: two jobs with equal heads write the same bits.
  ordered_json make_head() const {
    const Shape& shape = corpus.shape;
    return {{"input", std::filesystem::absolute(request.input.file).lexically_normal().string()},
            {"input_bytes", corpus.file_bytes},
            {"input_modified_ns", corpus.modified_ns},
            {"datasets", request.input.q + " " + request.input.k + " " + request.input.v},
            {"tokens", shape.tokens},
            {"heads", shape.heads},
            {"kv_heads", shape.kv_heads},
            {"head_dim", shape.head_dim},
            {"type", name_of(shape.type)},
            {"output_type", name_of(output_type)},
            {"pattern", request.pattern.canonical()},
            {"scale", scale},
            {"ranks", ranks.size()},
            {"partition", plan::name_of(shared->partition.kind())},
            {"memory", shared->options.memory},
            {"reproducible", request.reproducible},
            {"stripes", stripes},
            {"steps", total_steps},
            {"device", request.device},
            {"build", request.build}};
  }

  // CPUs by the instruction set of their kernel: one of them rounds weights, which `verify` must know.
  std::string computed_by() const {
    return request.device == "cpu" ? fmt::format("cpu {}", kernels::cpu::target_name(corpus.shape.type)) : request.device;
  }

  void open_output() {
    const std::string ledger_path = Ledger::path_of(request.output);
    std::string layout;
    ranks.on_root([&] {
      check_output();
      if (resume()) {
        layout = io::inspect_result(request.output).to_json();
        return;
      }
      Ledger::remove(ledger_path);
      io::ResultAttributes attributes{.longspan_version = request.version,
                                      .pattern = request.pattern.canonical(),
                                      .scale = scale,
                                      .input_name = request.input.file,
                                      .input_bytes = corpus.file_bytes,
                                      .input_modified_ns = corpus.modified_ns,
                                      .device = computed_by()};
      const Shape& shape = corpus.shape;
      layout = io::create_result(request.output, shape.tokens, shape.heads, shape.head_dim, output_type, attributes).to_json();
      Ledger::create(ledger_path, make_head(), ranks.size(), stripes);
    });
    result = io::ResultLayout::from_json(ranks.broadcast(layout));
    ranks.agreed([&] {
      file.emplace(result, io::ResultFile::Access::write);
      ledger.emplace(ledger_path, ranks.rank());
      done.assign(static_cast<size_t>(stripes), false);
      if (resume()) check_finished_stripes();
    });
    finished = ranks.sum(static_cast<int64_t>(std::count(done.begin(), done.end(), true)));
    const int64_t damaged = ranks.sum(mismatched);
    if (damaged > 0)
      remarks.push_back(damaged == 1 ? "1 finished stripe does not match its checksum and is computed again"
                                     : fmt::format("{} finished stripes do not match their checksums and are computed again", damaged));
  }

  bool resume() const { return !resumed_head.is_null(); }

  // On rank 0, before anything is touched: may the job write where it shall, or go on with what is there?
  void check_output() const {
    if (resume()) {
      check_same_job();
    } else {
      refuse_to_overwrite();
    }
  }

  // A dry run asks folder and disk the same questions as a real one, with a file that vanishes.
  void check_room() const {
    if (resume()) return;
    const Shape& shape = corpus.shape;
    const io::TemporaryFile probe(request.output);
    io::reserve(probe.descriptor(), shape.tokens * shape.heads * (shape.head_dim * static_cast<int64_t>(size_of(output_type)) + 4),
                request.output);
  }

  void check_same_job() const {
    const ordered_json head = make_head();
    std::vector<Problem> problems = differences(resumed_head, head, Ledger::path_of(request.output));
    if (problems.empty()) return;
    // Stripes and steps follow from the rest: they are told only when nothing else differs (another plan of another program).
    ordered_json then = resumed_head, now = head;
    for (const char* derived : {"stripes", "steps"}) then.erase(derived), now.erase(derived);
    const std::vector<Problem> causes = differences(then, now, Ledger::path_of(request.output));
    throw Error(causes.empty() ? problems : causes);
  }

  void refuse_to_overwrite() const {
    if (request.overwrite || !std::filesystem::exists(request.output)) return;
    int complete_flag = -1;
    try {
      complete_flag = io::inspect_result(request.output).attributes.complete;
    } catch (const Error&) {  // no result of ours: all the more reason
    }
    if (request.go_on && complete_flag == 0) return;  // left before its first stripe was recorded
    throw Error({.code = ExitCode::usage,
                 .what = complete_flag == 0 ? "the output exists and is not complete" : "the output exists",
                 .from = request.output,
                 .mend = complete_flag == 0 ? "--continue goes on with it, --overwrite starts anew" : "--overwrite replaces it"});
  }

  // Stripes that the ledger names count only if what lies in the file is what was written.
  void check_finished_stripes() {
    const std::vector<std::optional<uint64_t>> recorded = ledger->finished();
    const Shape& shape = corpus.shape;
    const int64_t o_bytes = int64_t{shape.heads} * shape.head_dim * static_cast<int64_t>(size_of(output_type));
    RowsChecksum checksum;
    std::vector<std::byte> o;
    std::vector<float> lse;
    for (size_t s = 0; s < recorded.size() && s + shared->batches.size() < plan->stripes.size(); ++s) {
      if (!recorded[s]) continue;
      for (const Interval& run : plan->stripes[s + shared->batches.size()].query_blocks) {
        const Interval tokens{blocks->tokens(run.begin).begin, blocks->tokens(run.end - 1).end};
        o.resize(static_cast<size_t>(tokens.length() * o_bytes));
        lse.resize(static_cast<size_t>(tokens.length() * shape.heads));
        file->read(tokens.begin, tokens.length(), o.data(), lse.data());
        checksum.add(o.data(), o.size(), lse.data(), lse.size());
      }
      done[s] = checksum.take() == *recorded[s];
      if (!done[s]) ++mismatched;
    }
  }

  // Ends the job after the first `stripes` ones (long ones counted too), when they are on disk. Never returns: messages of later steps
  // are under way, which only an abort ends on all ranks at once.
  [[noreturn]] void stop_after(int64_t stripes_so_far, FileOutput& output) {
    int64_t own = 0;
    for (size_t s = shared->batches.size(); s < std::min(static_cast<size_t>(stripes_so_far), plan->stripes.size()); ++s)
      if (!plan->stripes[s].query_blocks.empty() && !done[s - shared->batches.size()]) ++own;
    if (const std::optional<Problem> failure = output.wait_for_stripes(own)) ranks.abort(*failure);
    const int64_t safe = ranks.sum(own) + finished;
    if (ranks.rank() == 0)
      ranks.abort({.code = ExitCode::stopped,
                   .what = "stopped at a safe point, as a signal asked",
                   .seen = fmt::format("{} finished stripes of all ranks", safe),
                   .from = request.output,
                   .mend = "go on with --continue"});
    std::signal(SIGTERM, SIG_DFL);  // by which rank 0's abort ends the others: remembered only, it would cost Slurm's KillWait (30 s)
    ranks.barrier();
    ranks.abort({.code = ExitCode::stopped, .what = "stopped at a safe point"});
  }

  const comm::Communicator& ranks;
  AttendRequest request;
  io::CorpusLayout corpus;
  std::optional<io::CorpusReader> reader;
  std::optional<pattern::BoundPattern> pattern;
  std::optional<plan::Blocks> blocks;
  std::optional<plan::Shared> shared;
  std::optional<plan::RankPlan> plan;
  io::ResultLayout result;
  std::optional<io::ResultFile> file;
  std::optional<Ledger> ledger;
  ordered_json resumed_head;
  double scale = 0;
  ElementType output_type = ElementType::float32;
  int stripes = 0;
  int64_t total_steps = 0, finished = 0, mismatched = 0;
  bool complete = false;
  std::vector<bool> done;
  std::vector<std::string> remarks;
};

AttendJob::AttendJob(const comm::Communicator& ranks, AttendRequest request) : state_(std::make_unique<State>(ranks, std::move(request))) {}
AttendJob::~AttendJob() = default;

const io::CorpusLayout& AttendJob::corpus() const { return state_->corpus; }
const pattern::BoundPattern& AttendJob::pattern() const { return *state_->pattern; }
const plan::Shared& AttendJob::shared() const { return *state_->shared; }
const plan::RankPlan& AttendJob::plan() const { return *state_->plan; }
int AttendJob::stripes() const { return state_->stripes; }
int64_t AttendJob::total_steps() const { return state_->total_steps; }
double AttendJob::scale() const { return state_->scale; }
ElementType AttendJob::output_type() const { return state_->output_type; }
bool AttendJob::already_complete() const { return state_->complete; }
int64_t AttendJob::finished_stripes() const { return state_->finished; }
const std::vector<std::string>& AttendJob::remarks() const { return state_->remarks; }

engine::Record AttendJob::run(kernels::Device& device, comm::Transport& transport,
                              const std::function<void(int64_t stripe, int64_t stripes)>& progress, const std::function<bool()>& stop) {
  State& state = *state_;
  const comm::Communicator& ranks = state.ranks;
  const Shape& shape = state.corpus.shape;
  engine::Record record;
  try {
    engine::Engine engine(ranks, *state.pattern, *state.blocks, *state.shared, *state.plan, state.done);
    FileInput input(*state.reader);
    FileOutput output(*state.file, *state.ledger, int64_t{shape.heads} * shape.head_dim * static_cast<int64_t>(size_of(state.output_type)),
                      shape.heads);
    engine::RunOptions options;
    options.scale = static_cast<float>(state.scale);
    options.timeout = state.request.timeout;
    // Ranks are not equally far: what they ask for after one stripe is decided after the next one, without anybody waiting.
    std::optional<comm::PendingMax> vote;
    options.progress = [&](int64_t stripe, int64_t count) {
      if (progress) progress(stripe, count);
      if (!stop) return;
      const bool agreed = vote && vote->wait() != 0;
      if (agreed && stripe < count) state.stop_after(stripe, output);
      vote.reset();
      if (stripe < count) vote.emplace(ranks, stop() ? 1 : 0);
    };
    record = engine.forward(input, output, device, transport, options);
  } catch (const Error& error) {
    ranks.abort(error.problems().front());
  } catch (const std::bad_alloc&) {
    ranks.abort({.code = ExitCode::environment, .what = "out of memory while computing", .mend = "use more ranks or a smaller --memory"});
  }
  std::vector<Problem> problems;
  const bool whole = state.finished == 0;  // a job that goes on moves less than a whole one
  if (record.bytes_received != record.planned_bytes_received || record.bytes_sent != record.planned_bytes_sent ||
      (whole && record.row_bytes_received != record.planned_row_bytes_received)) {
    problems.push_back(
        {.code = ExitCode::internal,
         .what = "the exchange moved other bytes than planned",
         .seen = fmt::format("{} received, {} sent, {} of long rows", record.bytes_received, record.bytes_sent, record.row_bytes_received),
         .expected = fmt::format("{}, {}, {}", record.planned_bytes_received, record.planned_bytes_sent, record.planned_row_bytes_received),
         .mend = "please report this with the run record"});
  }
  ranks.agree(problems);
  state.file.reset();
  state.ledger.reset();
  ranks.barrier();
  ranks.on_root([&] {
    io::mark_complete(state.request.output);
    Ledger::remove(Ledger::path_of(state.request.output));
  });
  return record;
}

}  // namespace longspan::job
