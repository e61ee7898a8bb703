// What src/io needs of an HDF5 file beyond single calls: opening with a diagnosis, element types, names, attributes, places of bytes.
// Every function holds a Section itself or says that its caller does (handles must be closed inside one).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "io/hdf5_handle.hpp"
#include "io/posix_file.hpp"
#include "longspan/element_type.hpp"

namespace longspan::io {

// Opens an HDF5 file; the caller holds a Section. Throws Error(input) that tells apart: missing, may not be read, no regular file, not
// HDF5, truncated, damaged, locked by another program, locks not available. `role`: "input file", … starts the message.
enum class OpenMode { read, change };
FileHandle open_hdf5(const std::string& file, const std::string& role, OpenMode mode = OpenMode::read);

// --- element types ---
// float32, float16 or bfloat16 by the widths of exponent and mantissa and the bias, in any byte order, padded or not.
std::optional<ElementType> element_type_of(hid_t type);
// The little-endian HDF5 type of these bits, in files and in memory.
TypeHandle hdf5_type(ElementType type);
// "float64", "64-bit integer", "big-endian bfloat16", "string", "float with 5 exponent and 2 mantissa bits": what a person would say.
std::string type_text(hid_t type);

// --- objects; the caller holds a Section ---
std::string shape_text(const std::vector<int64_t>& dims);  // "[4154, 9, 64]"; "a scalar"
bool exists(hid_t file, const std::string& path);          // and the object behind the link does
std::vector<std::string> dataset_paths(hid_t file);        // "/q", "/layer12/k", …: at most 10,000
std::vector<std::string> group_members(hid_t file, const std::string& group);

struct StoredDataset {
  DatasetHandle handle;
  std::vector<int64_t> dims;
  int64_t contiguous_offset = -1;  // of its first byte in *this* file when stored as one run of unfiltered bytes; −1 otherwise
  int64_t stored_bytes = 0;        // length of that run
};
// Opens a dataset of any shape and type. If there is none (or it cannot be opened) adds the problem, naming the nearest dataset of the
// file that is not one of `others`, and returns nothing.
std::optional<StoredDataset> open_dataset(hid_t file, const std::string& file_name, const std::string& path,
                                          const std::vector<std::string>& others, std::vector<Problem>& problems);
// Storage that HDF5 knows but cannot read here: a filter without its plug-in, a virtual dataset without its sources, a truncated run.
void check_storage(const StoredDataset& stored, const std::string& file_name, const std::string& path, int64_t file_bytes,
                   std::vector<Problem>& problems);

bool is_integer(hid_t dataset);
// Elements [begin, begin + count) of row `row` of an integer dataset with one or two dimensions (`row` is 0 with one), as int64.
std::vector<int64_t> read_integers(hid_t dataset, int64_t row, int64_t begin, int64_t count, const std::string& from);

// --- attributes; the caller holds a Section ---
using AttributeValue = std::variant<int64_t, double, std::string>;
using Attributes = std::vector<std::pair<std::string, AttributeValue>>;
// A scalar (or single-element) integer, float or string attribute; nothing if it is absent or of another kind.
std::optional<AttributeValue> read_attribute(hid_t object, const std::string& name);
std::optional<int64_t> read_integer_attribute(hid_t object, const std::string& name);
std::vector<std::string> attribute_names(hid_t object);
void write_attribute(hid_t object, const std::string& name, const AttributeValue& value, const std::string& from);
// Names of the dimensions, as HDF5's dimension scale specification stores them (h5py: dataset.dims[0].label).
void label_dimensions(hid_t dataset, const std::vector<std::string>& labels, const std::string& from);

}  // namespace longspan::io
