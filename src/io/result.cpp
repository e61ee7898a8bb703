#include "io/result.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <climits>
#include <nlohmann/json.hpp>

#include "io/contiguous_file.hpp"
#include "io/plain_json.hpp"

namespace longspan::io {

namespace {

using nlohmann::ordered_json;

int64_t o_row_bytes(const ResultLayout& layout) {
  return int64_t{layout.heads} * layout.head_dim * static_cast<int64_t>(size_of(layout.output_type));
}
int64_t lse_row_bytes(const ResultLayout& layout) { return int64_t{layout.heads} * static_cast<int64_t>(sizeof(float)); }

}  // namespace

ResultLayout create_result(const std::string& file, int64_t tokens, int heads, int head_dim, ElementType output_type,
                           const ResultAttributes& attributes) {
  if (tokens < 1 || heads < 1 || head_dim < 1) internal_error(fmt::format("result of shape [{}, {}, {}]", tokens, heads, head_dim));
  NewFile contents;
  contents.datasets = {{.path = "/o", .dims = {tokens, heads, head_dim}, .type = output_type, .labels = {"token", "head", "dim"}},
                       {.path = "/lse", .dims = {tokens, heads}, .type = ElementType::float32, .labels = {"token", "head"}}};
  contents.attributes = {{"longspan_version", attributes.longspan_version},
                         {"pattern", attributes.pattern},
                         {"scale", attributes.scale},
                         {"input", attributes.input_name},
                         {"input_bytes", attributes.input_bytes},
                         {"input_modified_ns", attributes.input_modified_ns},
                         {"complete", int64_t{attributes.complete}},
                         {"device", attributes.device}};
  const CreatedFile created = create_contiguous(file, contents);
  return {.file = file,
          .tokens = tokens,
          .heads = heads,
          .head_dim = head_dim,
          .output_type = output_type,
          .o_offset = created.offsets[0],
          .lse_offset = created.offsets[1],
          .device = created.status.device,
          .inode = created.status.inode,
          .attributes = attributes};
}

ResultLayout inspect_result(const std::string& file) {
  const Section section;
  const FileHandle opened = open_hdf5(file, "output file");
  const Descriptor descriptor = open_existing(file, "output file");
  const FileStatus status = status_of(descriptor.get(), file);
  ResultLayout layout{.file = file, .device = status.device, .inode = status.inode};
  std::vector<Problem> problems;
  const auto missing = [&](const std::string& what, const std::string& seen, const std::string& expected) {
    problems.push_back({.code = ExitCode::input,
                        .what = what,
                        .seen = seen,
                        .expected = expected,
                        .from = file,
                        .mend = "give a file that longspan attend has written"});
  };

  const auto attribute = [&](const char* name, auto& value) {
    using Value = std::remove_reference_t<decltype(value)>;
    const auto stored = read_attribute(opened.get(), name);
    if (stored && std::holds_alternative<Value>(*stored)) {
      value = std::get<Value>(*stored);
    } else {
      missing(fmt::format("not a result of longspan: attribute {} is {}", name, stored ? "of another type" : "missing"), "", "");
    }
  };
  int64_t complete = 0;
  attribute("longspan_version", layout.attributes.longspan_version);
  attribute("pattern", layout.attributes.pattern);
  attribute("scale", layout.attributes.scale);
  attribute("input", layout.attributes.input_name);
  attribute("input_bytes", layout.attributes.input_bytes);
  attribute("input_modified_ns", layout.attributes.input_modified_ns);
  attribute("complete", complete);
  layout.attributes.complete = static_cast<int>(complete);
  if (const auto device = read_attribute(opened.get(), "device"); device && std::holds_alternative<std::string>(*device))
    layout.attributes.device = std::get<std::string>(*device);

  const auto o = open_dataset(opened.get(), file, "/o", {"/lse"}, problems);
  const auto lse = open_dataset(opened.get(), file, "/lse", {"/o"}, problems);
  for (const auto* dataset : {&o, &lse}) {
    if (!*dataset) continue;
    const std::string name = dataset == &o ? "/o" : "/lse";
    const TypeHandle type(check(H5Dget_type((*dataset)->handle.get()), "H5Dget_type", file + ":" + name, ExitCode::input));
    const auto known = element_type_of(type.get());
    if (!known || (dataset == &lse && *known != ElementType::float32) || H5Tequal(type.get(), hdf5_type(*known).get()) <= 0) {
      missing("dataset " + name + " has the wrong type", type_text(type.get()),
              dataset == &o ? "little-endian float16, bfloat16 or float32" : "little-endian float32");
    } else if (dataset == &o) {
      layout.output_type = *known;
    }
    const size_t rank = dataset == &o ? 3 : 2;
    bool shaped = (*dataset)->dims.size() == rank;
    for (size_t d = 0; d < (*dataset)->dims.size(); ++d)
      shaped = shaped && (*dataset)->dims[d] >= 1 && (d == 0 || (*dataset)->dims[d] <= INT_MAX);
    if (!shaped) {
      missing("dataset " + name + " has the wrong shape", shape_text((*dataset)->dims),
              dataset == &o ? "[tokens, heads, head_dim]" : "[tokens, heads]");
    } else if ((*dataset)->contiguous_offset < 0) {
      missing("dataset " + name + " is chunked, compressed or elsewhere", "", "stored in one piece, as longspan writes it");
    } else {
      check_storage(**dataset, file, name, status.bytes, problems);
    }
  }
  if (problems.empty() && (o->dims[0] != lse->dims[0] || o->dims[1] != lse->dims[1]))
    missing("datasets /o and /lse disagree", shape_text(lse->dims), shape_text(o->dims));
  if (!problems.empty()) throw Error(problems);
  layout.tokens = o->dims[0], layout.heads = static_cast<int>(o->dims[1]), layout.head_dim = static_cast<int>(o->dims[2]);
  layout.o_offset = o->contiguous_offset, layout.lse_offset = lse->contiguous_offset;
  return layout;
}

void mark_complete(const std::string& file) { change_attribute(file, "output file", "complete", 1); }

ResultFile::ResultFile(const ResultLayout& layout, Access access) : layout_(layout) {
  const std::string& file = layout_.file;
  Descriptor descriptor;
  if (access == Access::read) {
    descriptor = open_existing(file, "output file");
  } else {
    // To read as well: a job that goes on looks at what it wrote before.
    descriptor = Descriptor(::open(file.c_str(), O_RDWR | O_CLOEXEC));
    const int error = errno;
    if (descriptor.get() < 0) {
      throw Error({.code = ExitCode::io,
                   .what = error == ENOENT ? "output file is not there on this rank" : "output file cannot be written",
                   .seen = errno_text(error),
                   .from = file,
                   .mend = error == ENOENT ? "all hosts must share the output folder" : ""});
    }
  }
  // Inode and size, not the device: its number is each host's own for a file of a network file system.
  const FileStatus status = status_of(descriptor.get(), file);
  const int64_t end =
      std::max(layout_.o_offset + layout_.tokens * o_row_bytes(layout_), layout_.lse_offset + layout_.tokens * lse_row_bytes(layout_));
  if (status.inode != layout_.inode || status.bytes < end) {
    throw Error({.code = ExitCode::io,
                 .what = "output file is another one than rank 0 has",
                 .seen = fmt::format("inode {}, {} bytes", status.inode, status.bytes),
                 .expected = fmt::format("inode {}, at least {} bytes", layout_.inode, end),
                 .from = file,
                 .mend = "all hosts must share the output folder, and nothing else may replace the file during the job"});
  }
  descriptor_ = descriptor.release();
}

ResultFile::~ResultFile() { const Descriptor closed(descriptor_); }

void ResultFile::write(int64_t begin, int64_t count, const std::byte* o, const float* lse) {
  if (begin < 0 || count < 0 || begin > layout_.tokens - count)
    internal_error(fmt::format("write of tokens [{}, {}+{}) of {}", begin, begin, count, layout_.tokens));
  write_at(descriptor_, layout_.o_offset + begin * o_row_bytes(layout_), o, count * o_row_bytes(layout_), layout_.file);
  write_at(descriptor_, layout_.lse_offset + begin * lse_row_bytes(layout_), lse, count * lse_row_bytes(layout_), layout_.file);
}

void ResultFile::read(int64_t begin, int64_t count, std::byte* o, float* lse) const {
  if (begin < 0 || count < 0 || begin > layout_.tokens - count)
    internal_error(fmt::format("read of tokens [{}, {}+{}) of {}", begin, begin, count, layout_.tokens));
  read_at(descriptor_, layout_.o_offset + begin * o_row_bytes(layout_), o, count * o_row_bytes(layout_), layout_.file);
  read_at(descriptor_, layout_.lse_offset + begin * lse_row_bytes(layout_), lse, count * lse_row_bytes(layout_), layout_.file);
}

void ResultFile::sync() { sync_file(descriptor_, layout_.file); }

std::string ResultLayout::to_json() const {
  const ordered_json json = {{"file", plain_json(file)},
                             {"tokens", tokens},
                             {"heads", heads},
                             {"head_dim", head_dim},
                             {"output_type", name_of(output_type)},
                             {"o_offset", o_offset},
                             {"lse_offset", lse_offset},
                             {"device", device},
                             {"inode", inode},
                             {"longspan_version", attributes.longspan_version},
                             {"pattern", plain_json(attributes.pattern)},
                             {"scale", attributes.scale},
                             {"input", plain_json(attributes.input_name)},
                             {"input_bytes", attributes.input_bytes},
                             {"input_modified_ns", attributes.input_modified_ns},
                             {"complete", attributes.complete},
                             {"computed_on", plain_json(attributes.device)}};
  return json.dump();
}

ResultLayout ResultLayout::from_json(const std::string& text) {
  const ordered_json json = ordered_json::parse(text);
  ResultLayout layout{.file = text_of(json.at("file")),
                      .tokens = json.at("tokens").get<int64_t>(),
                      .heads = json.at("heads").get<int>(),
                      .head_dim = json.at("head_dim").get<int>(),
                      .output_type = element_type_named(json.at("output_type").get<std::string>()).value(),
                      .o_offset = json.at("o_offset").get<int64_t>(),
                      .lse_offset = json.at("lse_offset").get<int64_t>(),
                      .device = json.at("device").get<int64_t>(),
                      .inode = json.at("inode").get<int64_t>()};
  layout.attributes = {.longspan_version = json.at("longspan_version").get<std::string>(),
                       .pattern = text_of(json.at("pattern")),
                       .scale = json.at("scale").get<double>(),
                       .input_name = text_of(json.at("input")),
                       .input_bytes = json.at("input_bytes").get<int64_t>(),
                       .input_modified_ns = json.at("input_modified_ns").get<int64_t>(),
                       .complete = json.at("complete").get<int>(),
                       .device = text_of(json.at("computed_on"))};
  return layout;
}

}  // namespace longspan::io
