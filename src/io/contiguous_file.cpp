#include "io/contiguous_file.hpp"

#include <fcntl.h>
#include <unistd.h>

namespace longspan::io {

namespace {

constexpr int64_t kMetadataBytes = int64_t{256} << 10;  // generous: headers, attributes, alignment
constexpr hsize_t kAlignment = 4096;                    // of datasets of a page or more: ranks' pages are then the datasets' own

int64_t bytes_of(const NewDataset& dataset) {
  auto bytes = static_cast<int64_t>(size_of(dataset.type));
  for (int64_t dim : dataset.dims) bytes *= dim;
  return bytes;
}

DatasetHandle new_dataset(hid_t file, const std::string& path, hid_t type, const std::vector<int64_t>& dims,
                          const std::vector<std::string>& labels, const std::string& from) {
  const PropertyHandle links(check(H5Pcreate(H5P_LINK_CREATE), "H5Pcreate", from));
  check(H5Pset_create_intermediate_group(links.get(), 1), "H5Pset_create_intermediate_group", from);
  const PropertyHandle creation(check(H5Pcreate(H5P_DATASET_CREATE), "H5Pcreate", from));
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), "H5Pset_layout", from);
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time", from);
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), "H5Pset_fill_time", from);
  const std::vector<hsize_t> extent(dims.begin(), dims.end());
  const SpaceHandle space(check(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), "H5Screate_simple", from));
  DatasetHandle dataset(
      check(H5Dcreate2(file, path.c_str(), type, space.get(), links.get(), creation.get(), H5P_DEFAULT), "H5Dcreate", from));
  if (!labels.empty()) label_dimensions(dataset.get(), labels, from);
  return dataset;
}

// Returns the offsets of the datasets.
std::vector<int64_t> write_metadata(const std::string& path, const NewFile& contents) {
  const Section section;
  const PropertyHandle access(check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", path));
  check(H5Pset_alignment(access.get(), kAlignment, kAlignment), "H5Pset_alignment", path);
#if H5_VERSION_GE(1, 10, 7)
  // The name is this process's own; file systems without locks are fine.
  check(H5Pset_file_locking(access.get(), false, true), "H5Pset_file_locking", path);
#endif
  FileHandle file(check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), "H5Fcreate", path));
  for (const auto& [name, value] : contents.attributes) write_attribute(file.get(), name, value, path);
  std::vector<int64_t> offsets;
  for (const NewDataset& planned : contents.datasets) {
    const std::string from = path + ":" + planned.path;
    const DatasetHandle dataset = new_dataset(file.get(), planned.path, hdf5_type(planned.type).get(), planned.dims, planned.labels, from);
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (offset == HADDR_UNDEF) internal_error("HDF5 gave " + from + " no place in the file");
    offsets.push_back(static_cast<int64_t>(offset));
  }
  if (!contents.integers_path.empty()) {
    const std::string from = path + ":" + contents.integers_path;
    const DatasetHandle dataset = new_dataset(file.get(), contents.integers_path, H5T_STD_I64LE,
                                              {static_cast<int64_t>(contents.integers.size())}, contents.integer_labels, from);
    check(H5Dwrite(dataset.get(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, contents.integers.data()), "H5Dwrite", from);
  }
  check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "H5Fflush", path);
  check(H5Fclose(file.release()), "H5Fclose", path);
  return offsets;
}

}  // namespace

CreatedFile create_contiguous(const std::string& file, const NewFile& contents) {
  int64_t bytes = kMetadataBytes + 8 * static_cast<int64_t>(contents.integers.size());
  for (const NewDataset& dataset : contents.datasets) bytes += bytes_of(dataset);
  TemporaryFile temporary(file);
  // Once before HDF5 starts (it does not recover from a full disk), once more when it has laid the file out and cut it to size.
  try {
    reserve(temporary.descriptor(), bytes, file);
    if (::ftruncate(temporary.descriptor(), 0) != 0) throw Error(disk_full(file, bytes));
    CreatedFile created;
    created.offsets = write_metadata(temporary.path(), contents);
    reserve(temporary.descriptor(), status_of(temporary.descriptor(), file).bytes, file);
    temporary.commit();
    created.status = status_of(temporary.descriptor(), file);
    return created;
  } catch (const Error& error) {
    Problem problem = error.problems().front();
    if (problem.seen.find("errno = 28") != std::string::npos || problem.seen.find("No space left") != std::string::npos)
      problem = disk_full(file, bytes);
    throw Error(problem);
  }
}

void change_attribute(const std::string& file, const std::string& role, const std::string& name, int64_t value) {
  {
    const Section section;
    FileHandle opened = open_hdf5(file, role, OpenMode::change);
    const AttributeHandle attribute(
        check(H5Aopen(opened.get(), name.c_str(), H5P_DEFAULT), "H5Aopen", file + ", attribute " + name, ExitCode::input));
    check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), "H5Awrite", file + ", attribute " + name);
    check(H5Fflush(opened.get(), H5F_SCOPE_GLOBAL), "H5Fflush", file);
  }
  const Descriptor descriptor(::open(file.c_str(), O_RDWR | O_CLOEXEC));
  sync_file(descriptor.get(), file);
}

}  // namespace longspan::io
