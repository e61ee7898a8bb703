// longspan generate: a synthetic input file of any size, written by all ranks.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "cli/commands.hpp"
#include "cli/document_lengths.hpp"
#include "cli/subject.hpp"
#include "cli/synthetic.hpp"
#include "io/corpus_writer.hpp"
#include "report/build_info.hpp"
#include "report/format.hpp"
#include "report/log.hpp"

namespace longspan::cli {

namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;

struct Plan {
  io::CorpusPaths paths;
  Shape shape;
  std::vector<int64_t> offsets;  // empty: one document
};

Plan plan_from(const Settings& settings) {
  std::vector<Problem> problems;
  Plan plan;
  plan.paths.file = settings.text("output");
  const auto seed = static_cast<uint64_t>(settings.integer("seed"));
  try {
    const Documents documents = documents_from(settings, seed);
    plan.shape.tokens = documents.tokens();
    if (settings.has("documents")) plan.offsets = documents.offsets();
  } catch (const Error& error) {
    problems = error.problems();
  }
  try {
    plan.shape = shape_from(settings, plan.shape.tokens);
  } catch (const Error& error) {
    problems.insert(problems.end(), error.problems().begin(), error.problems().end());
  }
  if (!problems.empty()) throw Error(problems);
  return plan;
}

void check_output(const Settings& settings) {
  const std::string& file = settings.text("output");
  struct stat status {};
  if (settings.flag("overwrite") || stat(file.c_str(), &status) != 0) return;
  throw Error({.code = ExitCode::usage,
               .what = "output exists already",
               .seen = file,
               .from = "option --output, " + settings.setting("output").origin,
               .mend = "choose another name, or give --overwrite"});
}

}  // namespace

int run_generate(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  const auto start = std::chrono::steady_clock::now();
  Plan plan;
  std::string layout_text;
  ranks.agreed([&] { plan = plan_from(settings); });
  // One rank looks at the folder and makes the file; the others hear of it.
  ranks.on_root([&] {
    check_output(settings);
    layout_text = io::create_corpus(plan.paths, plan.shape, plan.offsets, report::version(),
                                    {{"generator", "longspan generate"}, {"seed", settings.setting("seed").text}})
                      .to_json();
  });
  const io::CorpusLayout layout = io::CorpusLayout::from_json(ranks.broadcast(layout_text));
  const Shape& shape = layout.shape;
  const auto seed = static_cast<uint64_t>(settings.integer("seed"));
  const int threads =
      static_cast<int>(settings.maybe_integer("threads").value_or(std::max(1, kernels::cpu::available_cpus() / ranks.local_size())));
  report::Log log(report::Level::info, ranks.rank() == 0);
  try {
    kernels::cpu::ThreadPool pool(threads);
    io::CorpusWriter writer(layout);
    // 7 tokens on 3 ranks: 0…1, 2…3, 4…6
    const auto first_of = [&](int64_t rank) { return static_cast<int64_t>(static_cast<__int128>(shape.tokens) * rank / ranks.size()); };
    const int64_t begin = first_of(ranks.rank()), end = first_of(ranks.rank() + 1);
    const int64_t token_bytes = int64_t{shape.heads} * shape.head_dim * static_cast<int64_t>(size_of(shape.type));
    const int64_t piece = std::clamp<int64_t>(kPieceBytes / token_bytes, 1, std::max<int64_t>(1, end - begin));
    std::vector<std::byte> bytes(static_cast<size_t>(piece * token_bytes));
    report::Progress progress(log, "generate", end - begin, "tokens");
    using Tensor = io::CorpusWriter::Tensor;
    for (int64_t at = begin; at < end; at += piece) {
      const int64_t count = std::min(piece, end - at);
      for (const auto& [tensor, dataset, heads] :
           {std::tuple{Tensor::q, SyntheticDataset::q, shape.heads}, std::tuple{Tensor::k, SyntheticDataset::k, shape.kv_heads},
            std::tuple{Tensor::v, SyntheticDataset::v, shape.kv_heads}}) {
        fill_synthetic(seed, dataset, at, count, heads, shape.head_dim, shape.type, bytes.data(), pool);
        writer.write(tensor, at, count, bytes.data());
      }
      progress.update(at + count - begin);
    }
    writer.sync();
  } catch (const Error& error) {
    ranks.abort(error.problems().front());  // the others go on: nobody can wait for this rank
  }
  ranks.barrier();
  ranks.on_root([&] { io::finish_corpus(layout.paths); });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const int64_t bytes =
      shape.tokens * (int64_t{shape.heads} + 2 * int64_t{shape.kv_heads}) * shape.head_dim * static_cast<int64_t>(size_of(shape.type));
  const auto documents = static_cast<int64_t>(layout.document_offsets.size()) - 1;
  log.info(fmt::format("{}: {} tokens in {} document{}, {} query heads on {} key/value heads, head_dim {}, {}, seed {}: {} in {}",
                       layout.paths.file, report::count_text(shape.tokens), report::count_text(std::max<int64_t>(1, documents)),
                       documents > 1 ? "s" : "", shape.heads, shape.kv_heads, shape.head_dim, name_of(shape.type),
                       settings.setting("seed").text, report::bytes_text(bytes), report::duration_text(seconds)));
  return 0;
}

}  // namespace longspan::cli
