#include "io/corpus.hpp"

#include <fmt/format.h>

#include <climits>
#include <nlohmann/json.hpp>

#include "io/hdf5_file.hpp"
#include "io/plain_json.hpp"

namespace longspan::io {

namespace {

using nlohmann::ordered_json;

// What inspection found out about /q, /k or /v; a dataset with problems stays in, so that the others are compared with what is known.
struct Found {
  DatasetLayout layout;
  bool three_dims = false;
  bool typed = false;
};

class Inspection {
 public:
  explicit Inspection(const CorpusPaths& paths) : paths_(paths) {}

  CorpusLayout run() {
    const Section section;
    file_ = open_hdf5(paths_.file, "input file");
    {
      const Descriptor descriptor = open_existing(paths_.file, "input file");
      const FileStatus status = status_of(descriptor.get(), paths_.file);
      corpus_.file_bytes = status.bytes, corpus_.modified_ns = status.modified_ns;
    }
    corpus_.paths = paths_;
    if (H5Aexists(file_.get(), "longspan_version") > 0 && read_integer_attribute(file_.get(), "complete") == 0) {
      report("input file is unfinished: the program that generated it was stopped", "attribute complete = 0", "1", "generate it again");
    }
    const auto q = look_at(paths_.q), k = look_at(paths_.k), v = look_at(paths_.v);
    compare(q, k, v);
    read_offsets(q && q->three_dims ? q->layout.dims[0] : -1);
    if (!problems_.empty()) throw Error(problems_);
    corpus_.shape = {.tokens = q->layout.dims[0],
                     .heads = static_cast<int>(q->layout.dims[1]),
                     .kv_heads = static_cast<int>(k->layout.dims[1]),
                     .head_dim = static_cast<int>(q->layout.dims[2]),
                     .type = q->layout.type};
    corpus_.q = q->layout, corpus_.k = k->layout, corpus_.v = v->layout;
    return corpus_;
  }

 private:
  void report(const std::string& what, const std::string& seen, const std::string& expected, const std::string& mend = "") {
    problems_.push_back({.code = ExitCode::input, .what = what, .seen = seen, .expected = expected, .from = paths_.file, .mend = mend});
  }

  std::optional<Found> look_at(const std::string& path) {
    const auto stored = open_dataset(file_.get(), paths_.file, path, {paths_.q, paths_.k, paths_.v}, problems_);
    if (!stored) return std::nullopt;
    Found found;
    found.layout.path = path, found.layout.dims = stored->dims;
    found.three_dims = stored->dims.size() == 3;
    if (!found.three_dims) {
      report("dataset " + path + " has the wrong number of dimensions",
             fmt::format("{} dimensions, {}", stored->dims.size(), shape_text(stored->dims)), "3: [tokens, heads, head_dim]");
    }
    const TypeHandle type(check(H5Dget_type(stored->handle.get()), "H5Dget_type", path, ExitCode::input));
    if (const auto known = element_type_of(type.get())) {
      found.typed = true;
      found.layout.type = *known;
      found.layout.native = H5Tequal(type.get(), hdf5_type(*known).get()) > 0;
      if (found.layout.native) found.layout.file_offset = stored->contiguous_offset;
    } else {
      report("dataset " + path + " has the wrong type", type_text(type.get()), "float16, bfloat16 (HDF5 float of 1+8+7 bits) or float32");
    }
    if (found.three_dims && stored->dims[0] > 0 && stored->dims[1] > 0 && stored->dims[2] > 0) {
      check_storage(*stored, paths_.file, path, corpus_.file_bytes, problems_);
    }
    return found;
  }

  void compare(const std::optional<Found>& q, const std::optional<Found>& k, const std::optional<Found>& v) {
    for (const auto* other : {&k, &v}) {
      if (q && *other && q->typed && (*other)->typed && q->layout.type != (*other)->layout.type) {
        report(fmt::format("datasets {} and {} differ in type", paths_.q, (*other)->layout.path),
               std::string(name_of((*other)->layout.type)), std::string(name_of(q->layout.type)), "write both in one type");
      }
    }
    const bool q_known = q && q->three_dims;
    bool kv_agree = true;
    for (const auto* other : {&k, &v}) {
      if (!q_known || !*other || !(*other)->three_dims) continue;
      const std::vector<int64_t>&a = q->layout.dims, &b = (*other)->layout.dims;
      if (a[0] != b[0] || a[2] != b[2]) {
        report("dataset " + (*other)->layout.path + " has the wrong shape", shape_text(b),
               fmt::format("[{}, kv_heads, {}] as {} has {}", a[0], a[2], paths_.q, shape_text(a)));
        kv_agree = false;
      }
    }
    if (kv_agree && k && v && k->three_dims && v->three_dims && k->layout.dims != v->layout.dims) {
      report("datasets " + paths_.k + " and " + paths_.v + " differ in shape", shape_text(v->layout.dims), shape_text(k->layout.dims));
    }
    if (q_known) {
      const std::vector<int64_t>& a = q->layout.dims;
      if (a[0] == 0) report("dataset " + paths_.q + " holds no tokens", shape_text(a), "at least one token");
      if (a[1] == 0 || a[1] > INT_MAX) report("dataset " + paths_.q + " has a wrong number of heads", std::to_string(a[1]), "1 or more");
      if (a[2] < 8 || a[2] > 256 || a[2] % 8 != 0) {
        report("head_dim of " + paths_.q + " is not supported", std::to_string(a[2]), "8, 16, 24, …, 256",
               "pad Q, K and V with zeros and set the scale");
      }
    }
    if (k && k->three_dims) {
      const int64_t kv_heads = k->layout.dims[1];
      if (kv_heads == 0 || kv_heads > INT_MAX) {
        report("dataset " + paths_.k + " has a wrong number of heads", std::to_string(kv_heads), "1 or more");
      } else if (q_known && q->layout.dims[1] % kv_heads != 0) {
        report("query heads are no multiple of KV heads", fmt::format("{} and {}", q->layout.dims[1], kv_heads), "heads % kv_heads = 0");
      }
    }
  }

  // `tokens` < 0: not known, /q has problems of its own.
  void read_offsets(int64_t tokens) {
    const std::string& path = paths_.document_offsets;
    if (!exists(file_.get(), path)) {
      // Only the usual name may be absent: a path that somebody gave and that is not there is an error.
      if (path != CorpusPaths{}.document_offsets) open_dataset(file_.get(), paths_.file, path, {}, problems_);
      corpus_.document_offsets = {0, std::max<int64_t>(tokens, 0)};
      return;
    }
    const auto stored = open_dataset(file_.get(), paths_.file, path, {}, problems_);
    if (!stored) return;
    const bool integers = is_integer(stored->handle.get());
    if (!integers) {
      const TypeHandle type(H5Dget_type(stored->handle.get()));
      report("dataset " + path + " has the wrong type", type_text(type.get()), "int64");
    }
    if (stored->dims.size() != 1) {
      report("dataset " + path + " has the wrong number of dimensions",
             fmt::format("{} dimensions, {}", stored->dims.size(), shape_text(stored->dims)), "1: [documents + 1]");
    }
    if (!integers || stored->dims.size() != 1) return;
    const size_t before = problems_.size();
    if (stored->dims[0] > 0) check_storage(*stored, paths_.file, path, corpus_.file_bytes, problems_);
    if (problems_.size() > before) return;
    const std::string from = paths_.file + ":" + path;
    try {
      const Documents documents(read_integers(stored->handle.get(), 0, 0, stored->dims[0], from), from);
      corpus_.document_offsets = documents.offsets();
      if (tokens >= 0 && documents.tokens() != tokens) {
        problems_.push_back({.code = ExitCode::input,
                             .what = "document offsets do not end at the number of tokens",
                             .seen = std::to_string(documents.tokens()),
                             .expected = std::to_string(tokens),
                             .from = from});
      }
    } catch (const Error& error) {
      for (Problem problem : error.problems()) {
        problem.code = ExitCode::input;
        problems_.push_back(problem);
      }
    }
  }

  CorpusPaths paths_;
  FileHandle file_;
  CorpusLayout corpus_;
  std::vector<Problem> problems_;
};

ordered_json json_of(const DatasetLayout& dataset) {
  return {{"path", plain_json(dataset.path)},
          {"dims", dataset.dims},
          {"type", name_of(dataset.type)},
          {"native", dataset.native},
          {"file_offset", dataset.file_offset}};
}

DatasetLayout dataset_of(const ordered_json& json) {
  DatasetLayout dataset;
  dataset.path = text_of(json.at("path"));
  dataset.dims = json.at("dims").get<std::vector<int64_t>>();
  dataset.type = element_type_named(json.at("type").get<std::string>()).value();
  dataset.native = json.at("native").get<bool>();
  dataset.file_offset = json.at("file_offset").get<int64_t>();
  return dataset;
}

}  // namespace

CorpusLayout inspect_corpus(const CorpusPaths& paths) {
  const Section section;  // until the inspection's handles are closed
  return Inspection(paths).run();
}

std::string CorpusLayout::to_json() const {
  const ordered_json json = {{"file", plain_json(paths.file)},
                             {"q_path", plain_json(paths.q)},
                             {"k_path", plain_json(paths.k)},
                             {"v_path", plain_json(paths.v)},
                             {"document_offsets_path", plain_json(paths.document_offsets)},
                             {"block_masks_path", plain_json(paths.block_masks)},
                             {"tokens", shape.tokens},
                             {"heads", shape.heads},
                             {"kv_heads", shape.kv_heads},
                             {"head_dim", shape.head_dim},
                             {"type", name_of(shape.type)},
                             {"q", json_of(q)},
                             {"k", json_of(k)},
                             {"v", json_of(v)},
                             {"document_offsets", document_offsets},
                             {"file_bytes", file_bytes},
                             {"modified_ns", modified_ns}};
  return json.dump();
}

CorpusLayout CorpusLayout::from_json(const std::string& text) {
  const ordered_json json = ordered_json::parse(text);
  CorpusLayout layout;
  layout.paths = {.file = text_of(json.at("file")),
                  .q = text_of(json.at("q_path")),
                  .k = text_of(json.at("k_path")),
                  .v = text_of(json.at("v_path")),
                  .document_offsets = text_of(json.at("document_offsets_path")),
                  .block_masks = text_of(json.at("block_masks_path"))};
  layout.shape = {.tokens = json.at("tokens").get<int64_t>(),
                  .heads = json.at("heads").get<int>(),
                  .kv_heads = json.at("kv_heads").get<int>(),
                  .head_dim = json.at("head_dim").get<int>(),
                  .type = element_type_named(json.at("type").get<std::string>()).value()};
  layout.q = dataset_of(json.at("q")), layout.k = dataset_of(json.at("k")), layout.v = dataset_of(json.at("v"));
  layout.document_offsets = json.at("document_offsets").get<std::vector<int64_t>>();
  layout.file_bytes = json.at("file_bytes").get<int64_t>();
  layout.modified_ns = json.at("modified_ns").get<int64_t>();
  return layout;
}

}  // namespace longspan::io
