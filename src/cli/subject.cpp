#include "cli/subject.hpp"

#include <fmt/format.h>

#include "cli/document_lengths.hpp"

namespace longspan::cli {

namespace {

bool knows(const Settings& settings, const std::string& name) { return settings.command().find(name) != nullptr; }
int64_t integer_or(const Settings& settings, const std::string& name, int64_t fallback) {
  return knows(settings, name) ? settings.maybe_integer(name).value_or(fallback) : fallback;
}

}  // namespace

io::CorpusPaths corpus_paths(const Settings& settings) {
  io::CorpusPaths paths;
  paths.file = settings.maybe_text("input").value_or("");
  paths.q = settings.text("q-path");
  paths.k = settings.text("k-path");
  paths.v = settings.text("v-path");
  paths.document_offsets = settings.text("offsets-path");
  if (knows(settings, "masks-path")) paths.block_masks = settings.text("masks-path");
  return paths;
}

pattern::Pattern pattern_from(const Settings& settings) {
  try {
    return pattern::Pattern::parse(settings.text("pattern"));
  } catch (const Error& error) {
    std::vector<Problem> problems = error.problems();
    const std::string origin = "option --pattern, " + settings.setting("pattern").origin;
    for (Problem& problem : problems)
      problem.from = problem.from.empty() || problem.from == "option --pattern" ? origin : problem.from + ", " + origin;
    throw Error(problems);
  }
}

std::vector<std::shared_ptr<const pattern::BlockMaskSource>> block_mask_sources(const pattern::Pattern& pattern,
                                                                                const io::CorpusPaths& paths, const Shape& shape,
                                                                                const Documents& documents) {
  std::vector<std::shared_ptr<const pattern::BlockMaskSource>> sources;
  for (const auto& use : pattern.block_masks()) {
    if (paths.file.empty()) {
      throw Error({.code = ExitCode::usage,
                   .what = fmt::format("the lists of block_mask(\"{}\", {}) are in a file", use.name, use.block),
                   .expected = "--input FILE.h5",
                   .from = "option --pattern"});
    }
    sources.push_back(io::open_block_mask(paths, use.name, use.block, shape, documents));
  }
  return sources;
}

Shape shape_from(const Settings& settings, int64_t tokens) {
  Shape shape;
  shape.tokens = tokens;
  shape.heads = static_cast<int>(integer_or(settings, "heads", 1));
  shape.kv_heads = static_cast<int>(integer_or(settings, "kv-heads", shape.heads));
  shape.head_dim = static_cast<int>(integer_or(settings, "head-dim", 128));
  if (knows(settings, "type"))
    shape.type = element_type_named(settings.maybe_text("type").value_or("bfloat16")).value_or(ElementType::bfloat16);
  std::vector<Problem> problems;
  if (shape.heads % shape.kv_heads != 0)
    problems.push_back(
        settings.problem("kv-heads", "key/value heads do not divide the query heads", fmt::format("a divisor of {}", shape.heads)));
  if (shape.head_dim % 8 != 0) problems.push_back(settings.problem("head-dim", "head_dim is no multiple of 8", "8, 16, ... 256"));
  if (!problems.empty()) throw Error(problems);
  return shape;
}

Subject subject_from(const Settings& settings, const pattern::Pattern& pattern) {
  Subject subject;
  const io::CorpusPaths paths = corpus_paths(settings);
  if (paths.file.empty()) {
    subject.documents = documents_from(settings, 0);
    subject.shape = shape_from(settings, subject.documents.tokens());
  } else {
    const io::CorpusLayout layout = io::inspect_corpus(paths);
    subject.documents = Documents(layout.document_offsets, paths.file + ":" + paths.document_offsets);
    subject.shape = layout.shape;
    std::vector<Problem> problems;
    const auto repeats = [&](const std::string& name, const std::string& seen, const std::string& in_file) {
      if (seen != in_file)
        problems.push_back(
            settings.problem(name, "option --" + name + " differs from " + paths.file, in_file, "leave it out beside --input"));
    };
    for (const auto& [name, value] : {std::pair<std::string, int64_t>{"tokens", subject.shape.tokens},
                                      {"heads", subject.shape.heads},
                                      {"kv-heads", subject.shape.kv_heads},
                                      {"head-dim", subject.shape.head_dim}})
      if (knows(settings, name) && settings.given(name)) repeats(name, std::to_string(settings.integer(name)), std::to_string(value));
    if (knows(settings, "type") && settings.given("type")) repeats("type", settings.text("type"), std::string(name_of(subject.shape.type)));
    if (settings.given("documents"))
      problems.push_back(
          settings.problem("documents", "documents are given twice", "those of " + paths.file, "leave out --documents or --input"));
    if (!problems.empty()) throw Error(problems);
  }
  subject.sources = block_mask_sources(pattern, paths, subject.shape, subject.documents);
  return subject;
}

}  // namespace longspan::cli
