// longspan inspect file: what an input or output file holds.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "cli/commands.hpp"
#include "cli/subject.hpp"
#include "io/corpus.hpp"
#include "io/description.hpp"
#include "io/result.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t dim : dims) text += (text.empty() ? "[" : ", ") + std::to_string(dim);
  return text + "]";
}

std::string time_text(int64_t nanoseconds) {
  const std::time_t seconds = nanoseconds / 1'000'000'000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

// Documents by length: 0, 1, 2-3, 4-7, …
struct Bin {
  int64_t least, most, documents = 0, tokens = 0;
};
std::vector<Bin> histogram(const Documents& documents) {
  std::vector<Bin> bins{{0, 0}};
  for (int64_t document = 0; document < documents.count(); ++document) {
    const int64_t length = documents.length(document);
    const size_t bin = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(length)));
    while (bins.size() <= bin) bins.push_back({int64_t{1} << (bins.size() - 1), (int64_t{1} << bins.size()) - 1});
    ++bins[bin].documents;
    bins[bin].tokens += length;
  }
  const auto first = std::find_if(bins.begin(), bins.end(), [](const Bin& b) { return b.documents > 0; });
  bins.erase(bins.begin(), first);
  return bins;
}

std::string histogram_text(const std::vector<Bin>& bins) {
  int64_t highest = 1;
  for (const Bin& bin : bins) highest = std::max(highest, bin.documents);
  report::Table table({"tokens", "documents", "tokens in them", "<"});
  for (const Bin& bin : bins) {
    const int64_t bar = (bin.documents * 40 + highest - 1) / highest;  // anything above zero shows
    table.add({bin.least == bin.most ? report::count_text(bin.least) : report::count_text(bin.least) + "-" + report::count_text(bin.most),
               report::count_text(bin.documents), report::count_text(bin.tokens), std::string(static_cast<size_t>(bar), '#')});
  }
  return table.text(2);
}

int64_t bytes_of(const std::vector<int64_t>& dims, ElementType type) {
  int64_t bytes = static_cast<int64_t>(size_of(type));
  for (const int64_t dim : dims) bytes *= dim;
  return bytes;
}

void show_corpus(const io::CorpusLayout& layout, const std::optional<std::string>& json_file) {
  const Documents documents(layout.document_offsets, layout.paths.file + ":" + layout.paths.document_offsets);
  std::vector<int64_t> lengths;
  for (int64_t document = 0; document < documents.count(); ++document) lengths.push_back(documents.length(document));
  std::sort(lengths.begin(), lengths.end());
  const int64_t median = lengths.empty() ? 0 : lengths[lengths.size() / 2];
  const io::FileDescription description = io::describe_file(layout.paths.file);
  if (json_file) {
    nlohmann::ordered_json json = report::new_record("inspect file");
    json["kind"] = "input";
    json["file"] = layout.paths.file;
    json["bytes"] = layout.file_bytes;
    json["modified"] = time_text(layout.modified_ns);
    json["shape"] = {{"tokens", layout.shape.tokens},
                     {"heads", layout.shape.heads},
                     {"kv_heads", layout.shape.kv_heads},
                     {"head_dim", layout.shape.head_dim},
                     {"type", name_of(layout.shape.type)}};
    for (const io::DatasetLayout* dataset : {&layout.q, &layout.k, &layout.v})
      json["datasets"].push_back(
          {{"path", dataset->path}, {"dims", dataset->dims}, {"type", name_of(dataset->type)}, {"contiguous", dataset->file_offset >= 0}});
    for (const auto& [name, value] : description.attributes) json["attributes"][name] = value;
    json["documents"] = {{"count", documents.count()},
                         {"shortest", lengths.empty() ? 0 : lengths.front()},
                         {"median", median},
                         {"longest", lengths.empty() ? 0 : lengths.back()}};
    for (const Bin& bin : histogram(documents))
      json["documents"]["histogram"].push_back(
          {{"least", bin.least}, {"most", bin.most}, {"documents", bin.documents}, {"tokens", bin.tokens}});
    report::write_record(json, *json_file);
    if (*json_file == "-") return;
  }
  std::string text = report::pairs_text(
      {{"file", layout.paths.file},
       {"holds", "input: queries, keys, values"},
       {"size", report::bytes_text(layout.file_bytes)},
       {"changed", time_text(layout.modified_ns)},
       {"shape", fmt::format("{} tokens, {} query heads on {} key/value heads, head_dim {}, {}", report::count_text(layout.shape.tokens),
                             layout.shape.heads, layout.shape.kv_heads, layout.shape.head_dim, name_of(layout.shape.type))},
       {"documents", fmt::format("{}: shortest {}, median {}, longest {} tokens", report::count_text(documents.count()),
                                 report::count_text(lengths.empty() ? 0 : lengths.front()), report::count_text(median),
                                 report::count_text(lengths.empty() ? 0 : lengths.back()))}});
  report::Table datasets({"<dataset", "<shape", "<type", "<storage"});
  for (const io::DatasetDescription& dataset : description.datasets)
    datasets.add({dataset.path, dims_text(dataset.dims), dataset.type, dataset.storage});
  if (!description.attributes.empty()) text += "\nAttributes\n" + report::pairs_text(description.attributes, 2);
  text += "\n" + datasets.text(2) + "\nDocument lengths:\n" + histogram_text(histogram(documents));
  std::fputs(text.c_str(), stdout);
}

void show_result(const io::ResultLayout& layout, const std::optional<std::string>& json_file) {
  const io::ResultAttributes& attributes = layout.attributes;
  const std::vector<int64_t> o{layout.tokens, layout.heads, layout.head_dim}, lse{layout.tokens, layout.heads};
  if (json_file) {
    nlohmann::ordered_json json = report::new_record("inspect file");
    json["kind"] = "output";
    json["file"] = layout.file;
    json["datasets"] = {{{"path", "/o"}, {"dims", o}, {"type", name_of(layout.output_type)}, {"contiguous", true}},
                        {{"path", "/lse"}, {"dims", lse}, {"type", "float32"}, {"contiguous", true}}};
    json["attributes"] = {{"longspan_version", attributes.longspan_version},
                          {"pattern", attributes.pattern},
                          {"scale", attributes.scale},
                          {"input", attributes.input_name},
                          {"input_bytes", attributes.input_bytes},
                          {"input_modified", time_text(attributes.input_modified_ns)},
                          {"complete", attributes.complete}};
    report::write_record(json, *json_file);
    if (*json_file == "-") return;
  }
  std::string text = report::pairs_text(
      {{"file", layout.file},
       {"holds", "output: O and LSE"},
       {"complete", attributes.complete ? "yes" : "no: the job is running or was stopped; longspan attend --continue goes on with it"},
       {"pattern", attributes.pattern},
       {"scale", report::exact_text(attributes.scale)},
       {"input", fmt::format("{}, {}, changed {}", attributes.input_name, report::bytes_text(attributes.input_bytes),
                             time_text(attributes.input_modified_ns))},
       {"written by", "longspan " + attributes.longspan_version}});
  report::Table datasets({"<dataset", "<shape", "<type", "size", "<storage"});
  datasets.add(
      {"/o", dims_text(o), std::string(name_of(layout.output_type)), report::bytes_text(bytes_of(o, layout.output_type)), "contiguous"});
  datasets.add({"/lse", dims_text(lse), "float32", report::bytes_text(bytes_of(lse, ElementType::float32)), "contiguous"});
  std::fputs((text + "\n" + datasets.text(2)).c_str(), stdout);
}

}  // namespace

int run_inspect_file(const Settings& settings, const Context&) {
  const std::optional<std::string> json = settings.maybe_text("json");
  const io::CorpusPaths paths = corpus_paths(settings);
  // An output file is no input: first as one, then as the other. When neither fits, the input's problems say more, unless the file has /o.
  try {
    show_result(io::inspect_result(paths.file), json);
    return 0;
  } catch (const Error& as_result) {
    try {
      show_corpus(io::inspect_corpus(paths), json);
      return 0;
    } catch (const Error& as_corpus) {
      std::vector<Problem> problems = as_corpus.problems();
      if (std::any_of(problems.begin(), problems.end(), [](const Problem& p) { return p.code != ExitCode::input; })) throw;
      if (problems.size() > 1) problems.insert(problems.end(), as_result.problems().begin(), as_result.problems().end());
      throw Error(problems);
    }
  }
}

}  // namespace longspan::cli
