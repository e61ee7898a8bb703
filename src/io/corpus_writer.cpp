#include "io/corpus_writer.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>

#include "io/contiguous_file.hpp"

namespace longspan::io {

CorpusLayout create_corpus(const CorpusPaths& paths, const Shape& shape, const std::vector<int64_t>& document_offsets,
                           const std::string& longspan_version, const CorpusAttributes& attributes) {
  if (shape.tokens < 1 || shape.heads < 1 || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0 || shape.head_dim < 8 ||
      shape.head_dim > 256 || shape.head_dim % 8 != 0) {
    throw Error(
        {.code = ExitCode::input,
         .what = "no corpus can have this shape",
         .seen = fmt::format("{} tokens, {} heads, {} KV heads, head_dim {}", shape.tokens, shape.heads, shape.kv_heads, shape.head_dim),
         .expected = "tokens >= 1, heads a multiple of kv_heads, head_dim 8, 16, …, 256",
         .from = paths.file});
  }
  if (!document_offsets.empty() && Documents(document_offsets).tokens() != shape.tokens) {
    throw Error({.code = ExitCode::input,
                 .what = "document offsets do not end at the number of tokens",
                 .seen = std::to_string(document_offsets.back()),
                 .expected = std::to_string(shape.tokens),
                 .from = paths.file});
  }
  const std::vector<int64_t> q_dims{shape.tokens, shape.heads, shape.head_dim}, kv_dims{shape.tokens, shape.kv_heads, shape.head_dim};
  NewFile contents;
  contents.datasets = {{.path = paths.q, .dims = q_dims, .type = shape.type, .labels = {"token", "head", "dim"}},
                       {.path = paths.k, .dims = kv_dims, .type = shape.type, .labels = {"token", "kv_head", "dim"}},
                       {.path = paths.v, .dims = kv_dims, .type = shape.type, .labels = {"token", "kv_head", "dim"}}};
  if (!document_offsets.empty()) {
    contents.integers_path = paths.document_offsets;
    contents.integers = document_offsets;
    contents.integer_labels = {"document"};
  }
  contents.attributes = {{"longspan_version", longspan_version}, {"complete", int64_t{0}}};
  for (const auto& [name, text] : attributes) contents.attributes.emplace_back(name, text);
  const CreatedFile created = create_contiguous(paths.file, contents);

  CorpusLayout layout;
  layout.paths = paths;
  layout.shape = shape;
  DatasetLayout* tensors[] = {&layout.q, &layout.k, &layout.v};
  for (size_t i = 0; i < 3; ++i) {
    *tensors[i] = {.path = contents.datasets[i].path,
                   .dims = contents.datasets[i].dims,
                   .type = shape.type,
                   .native = true,
                   .file_offset = created.offsets[i]};
  }
  layout.document_offsets = document_offsets.empty() ? std::vector<int64_t>{0, shape.tokens} : document_offsets;
  layout.file_bytes = created.status.bytes, layout.modified_ns = created.status.modified_ns;
  return layout;
}

CorpusWriter::CorpusWriter(CorpusLayout layout) : layout_(std::move(layout)) {
  const std::string& file = layout_.paths.file;
  descriptor_ = Descriptor(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
  const int error = errno;
  if (descriptor_.get() < 0) {
    throw Error({.code = ExitCode::io,
                 .what = error == ENOENT ? "the new corpus is not there on this rank" : "the new corpus cannot be written",
                 .seen = errno_text(error),
                 .from = file,
                 .mend = error == ENOENT ? "all hosts must share the folder" : ""});
  }
  if (const int64_t bytes = status_of(descriptor_.get(), file).bytes; bytes != layout_.file_bytes) {
    throw Error({.code = ExitCode::io,
                 .what = "the new corpus is another file than rank 0 has created",
                 .seen = fmt::format("{} bytes", bytes),
                 .expected = fmt::format("{} bytes", layout_.file_bytes),
                 .from = file,
                 .mend = "all hosts must share the folder"});
  }
}

void CorpusWriter::write(Tensor tensor, int64_t begin, int64_t count, const std::byte* bytes) {
  const DatasetLayout& dataset = tensor == Tensor::q ? layout_.q : tensor == Tensor::k ? layout_.k : layout_.v;
  if (begin < 0 || count < 0 || begin > dataset.dims[0] - count)
    internal_error(fmt::format("write of tokens [{}, {}+{}) of {}", begin, begin, count, dataset.dims[0]));
  const int64_t row_bytes = dataset.dims[1] * dataset.dims[2] * static_cast<int64_t>(size_of(dataset.type));
  write_at(descriptor_.get(), dataset.file_offset + begin * row_bytes, bytes, count * row_bytes, layout_.paths.file);
}

void CorpusWriter::sync() { sync_file(descriptor_.get(), layout_.paths.file); }

void finish_corpus(const CorpusPaths& paths) { change_attribute(paths.file, "new corpus", "complete", 1); }

void add_block_mask(const CorpusPaths& paths, const std::string& name, const BlockMaskLists& lists) {
  if (lists.list_heads < 1 || lists.indptr.size() % static_cast<size_t>(lists.list_heads) != 0)
    internal_error("block mask lists whose heads differ in rows");
  const Section section;
  const std::string path = paths.block_masks + "/" + name, from = paths.file + ":" + path;
  const FileHandle file = open_hdf5(paths.file, "corpus", OpenMode::change);
  const PropertyHandle links(check(H5Pcreate(H5P_LINK_CREATE), "H5Pcreate", from));
  check(H5Pset_create_intermediate_group(links.get(), 1), "H5Pset_create_intermediate_group", from);
  const GroupHandle group(check(H5Gcreate2(file.get(), path.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT), "H5Gcreate", from));
  write_attribute(group.get(), "block", lists.block, from);
  const auto write = [&](const char* dataset_name, const std::vector<int64_t>& values, std::vector<hsize_t> dims) {
    const SpaceHandle space(check(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), "H5Screate_simple", from));
    const DatasetHandle dataset(
        check(H5Dcreate2(group.get(), dataset_name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), "H5Dcreate", from));
    check(H5Dwrite(dataset.get(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dwrite", from);
  };
  const hsize_t heads = static_cast<hsize_t>(lists.list_heads), rows = lists.indptr.size() / heads;
  write("indptr", lists.indptr, lists.list_heads == 1 ? std::vector<hsize_t>{rows} : std::vector<hsize_t>{heads, rows});
  write("indices", lists.indices, {lists.indices.size()});
  check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "H5Fflush", from);
}

}  // namespace longspan::io
