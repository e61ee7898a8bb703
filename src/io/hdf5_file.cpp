#include "io/hdf5_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>

namespace longspan::io {

static_assert(std::endian::native == std::endian::little, "elements are handed on as they lie in memory: little-endian");

namespace {

constexpr char kSignature[] = "\x89HDF\r\n\x1a\n";

// HDF5 looks for its signature at byte 0, 512, 1024, 2048, …: what lies before it is the user's own.
bool has_signature(int descriptor, int64_t bytes, const std::string& file) {
  std::array<char, 8> seen{};
  for (int64_t at = 0; at + 8 <= bytes; at = at == 0 ? 512 : 2 * at) {
    read_at(descriptor, at, seen.data(), 8, file);
    if (std::memcmp(seen.data(), kSignature, 8) == 0) return true;
  }
  return false;
}

Problem opening_problem(const std::string& file, const std::string& role, OpenMode mode, int64_t bytes, const Hdf5Failure& failure) {
  Problem problem{.code = ExitCode::input, .seen = "HDF5: " + failure.innermost, .from = file};
  if (failure.says("unable to lock file")) {
    const bool held = failure.says(fmt::format("errno = {}", EAGAIN).c_str());
    problem.what = held ? fmt::format("{} is open {} in another program", role, mode == OpenMode::read ? "for writing" : "")
                        : role + " cannot be locked: its file system offers no locks";
    problem.mend =
        held ? "close it there, or set HDF5_USE_FILE_LOCKING=FALSE if it is not being changed" : "set HDF5_USE_FILE_LOCKING=FALSE";
  } else if (failure.says("truncated file") || failure.says("end of file") || failure.says("eof") || failure.says("EOF") || bytes < 96) {
    problem.what = role + " is truncated";
    problem.seen = fmt::format("{} bytes; HDF5: {}", bytes, failure.innermost);
    problem.mend = "copy or write it again";
  } else if (failure.says("already open for read-only")) {
    problem.what = role + " is open in this program to read, so it cannot be changed";
  } else if (failure.says("already open for write")) {
    problem.what = role + " was left open by a program that died";
    problem.mend = "if nothing writes it any more: h5clear -s " + file;
  } else if (mode == OpenMode::change && (failure.says(fmt::format("errno = {}", EACCES).c_str()) || failure.says("errno = 30"))) {
    problem.what = role + " may not be written";
  } else {
    problem.what = role + " is damaged: HDF5 cannot open it";
    problem.mend = "copy or write it again";
  }
  return problem;
}

}  // namespace

FileHandle open_hdf5(const std::string& file, const std::string& role, OpenMode mode) {
  const Descriptor descriptor = open_existing(file, role);
  const int64_t bytes = status_of(descriptor.get(), file).bytes;
  if (!has_signature(descriptor.get(), bytes, file)) {
    throw Error({.code = ExitCode::input,
                 .what = role + " is not an HDF5 file",
                 .seen = bytes == 0 ? "an empty file" : fmt::format("{} bytes without HDF5's signature", bytes),
                 .expected = "HDF5",
                 .from = file});
  }
  const PropertyHandle access(check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", file));
#if H5_VERSION_GE(1, 10, 7)
  // Only ever an attribute's value changes in place: a reader elsewhere (h5ls, a plot) must not make a job's last act fail.
  if (mode == OpenMode::change) H5Pset_file_locking(access.get(), false, true);
#endif
  FileHandle opened(H5Fopen(file.c_str(), mode == OpenMode::read ? H5F_ACC_RDONLY : H5F_ACC_RDWR, access.get()));
  if (!opened) throw Error(opening_problem(file, role, mode, bytes, last_failure()));
  return opened;
}

std::optional<ElementType> element_type_of(hid_t type) {
  // HDF5 (1.10.8) converts elements whose bits do not start at bit 0 wrongly, and without an error.
  if (H5Tget_class(type) != H5T_FLOAT || H5Tget_offset(type) != 0) return std::nullopt;
  size_t sign = 0, exponent_at = 0, exponent = 0, mantissa_at = 0, mantissa = 0;
  if (H5Tget_fields(type, &sign, &exponent_at, &exponent, &mantissa_at, &mantissa) < 0 || H5Tget_norm(type) != H5T_NORM_IMPLIED)
    return std::nullopt;
  const size_t bias = H5Tget_ebias(type);
  if (exponent == 8 && mantissa == 23 && bias == 127) return ElementType::float32;
  if (exponent == 5 && mantissa == 10 && bias == 15) return ElementType::float16;
  if (exponent == 8 && mantissa == 7 && bias == 127) return ElementType::bfloat16;
  return std::nullopt;
}

TypeHandle hdf5_type(ElementType type) {
  TypeHandle made(check(H5Tcopy(H5T_IEEE_F32LE), "H5Tcopy", ""));
  if (type == ElementType::float32) return made;
  // sign bit, exponent's first bit and width, mantissa's first bit and width; the fields first: they must fit into the size at all times.
  const bool half = type == ElementType::float16;
  check(half ? H5Tset_fields(made.get(), 15, 10, 5, 0, 10) : H5Tset_fields(made.get(), 15, 7, 8, 0, 7), "H5Tset_fields", "");
  check(H5Tset_size(made.get(), 2), "H5Tset_size", "");
  check(H5Tset_ebias(made.get(), half ? 15 : 127), "H5Tset_ebias", "");
  return made;
}

std::string type_text(hid_t type) {
  const size_t size = H5Tget_size(type);
  const std::string big = H5Tget_order(type) == H5T_ORDER_BE && size > 1 ? "big-endian " : "";
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return fmt::format("{}{}{}-bit integer", big, H5Tget_sign(type) == H5T_SGN_NONE ? "unsigned " : "", 8 * size);
    case H5T_FLOAT: {
      if (const auto known = element_type_of(type)) {
        return fmt::format("{}{}{}", big, name_of(*known), size == size_of(*known) ? "" : fmt::format(" in {} bytes", size));
      }
      size_t sign = 0, exponent_at = 0, exponent = 0, mantissa_at = 0, mantissa = 0;
      H5Tget_fields(type, &sign, &exponent_at, &exponent, &mantissa_at, &mantissa);
      if (exponent == 11 && mantissa == 52) return big + "float64";
      return fmt::format("{}{}-bit float with {} exponent and {} mantissa bits, bias {}", big, 8 * size, exponent, mantissa,
                         H5Tget_ebias(type));
    }
    case H5T_STRING:
      return "string";
    case H5T_BITFIELD:
      return fmt::format("{}-bit bit field", 8 * size);
    case H5T_OPAQUE:
      return fmt::format("opaque, {} bytes", size);
    case H5T_COMPOUND:
      return "compound (structure)";
    case H5T_REFERENCE:
      return "reference";
    case H5T_ENUM:
      return "enumeration (boolean?)";
    case H5T_VLEN:
      return "variable-length sequence";
    case H5T_ARRAY:
      return "array";
    default:
      return "unknown type";
  }
}

std::string shape_text(const std::vector<int64_t>& dims) { return dims.empty() ? "a scalar" : fmt::format("[{}]", fmt::join(dims, ", ")); }

bool exists(hid_t file, const std::string& path) {
  // HDF5 wants every group on the way asked for by itself.
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string group = path.substr(0, slash);
    if (group.find_first_not_of('/') == std::string::npos) continue;
    if (H5Lexists(file, group.c_str(), H5P_DEFAULT) <= 0 || H5Oexists_by_name(file, group.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  if (path.find_first_not_of('/') == std::string::npos) return !path.empty();
  return H5Lexists(file, path.c_str(), H5P_DEFAULT) > 0 && H5Oexists_by_name(file, path.c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> dataset_paths(hid_t file) {
  std::vector<std::string> paths;
  const auto visit = [](hid_t group, const char* name, const H5L_info_t*, void* data) -> herr_t {
    auto& found = *static_cast<std::vector<std::string>*>(data);
    const ObjectHandle object(H5Oopen(group, name, H5P_DEFAULT));
    if (object && H5Iget_type(object.get()) == H5I_DATASET) found.push_back("/" + std::string(name));
    return found.size() >= 10'000 ? 1 : 0;
  };
  H5Lvisit(file, H5_INDEX_NAME, H5_ITER_NATIVE, visit, &paths);
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<std::string> group_members(hid_t file, const std::string& group) {
  std::vector<std::string> names;
  if (!exists(file, group)) return names;
  const auto visit = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  const GroupHandle opened(H5Gopen2(file, group.c_str(), H5P_DEFAULT));
  if (opened) H5Literate(opened.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &names);
  return names;
}

namespace {

// The dataset of the file a wrong path most likely meant: the same last name elsewhere, else the nearest spelling.
std::string nearest_dataset(hid_t file, const std::string& path, const std::vector<std::string>& others, std::string& all) {
  std::vector<std::string> candidates;
  const std::vector<std::string> paths = dataset_paths(file);
  for (const std::string& candidate : paths) {
    if (std::find(others.begin(), others.end(), candidate) == others.end()) candidates.push_back(candidate);
  }
  const auto shown = std::vector<std::string>(paths.begin(), paths.begin() + static_cast<int64_t>(std::min<size_t>(paths.size(), 8)));
  all = paths.empty() ? "a file without datasets" : fmt::format("{}{}", fmt::join(shown, ", "), paths.size() > shown.size() ? ", …" : "");
  const auto last_name = [](const std::string& name) { return name.substr(name.rfind('/') + 1); };
  for (const std::string& candidate : candidates) {
    const std::string a = last_name(candidate), b = last_name(path);
    if (std::equal(a.begin(), a.end(), b.begin(), b.end(),
                   [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); })) {
      return candidate;
    }
  }
  return nearest_name(path, candidates);
}

}  // namespace

std::optional<StoredDataset> open_dataset(hid_t file, const std::string& file_name, const std::string& path,
                                          const std::vector<std::string>& others, std::vector<Problem>& problems) {
  const std::string from = file_name + ":" + path;
  if (!exists(file, path)) {
    Problem problem{.code = ExitCode::input, .what = "dataset " + path + " is missing", .from = file_name};
    const std::string near = nearest_dataset(file, path, others, problem.seen);
    problem.mend = near.empty() ? "name its path by option" : "did you mean " + near + "? Name its path by option";
    problems.push_back(problem);
    return std::nullopt;
  }
  StoredDataset stored;
  stored.handle = DatasetHandle(H5Dopen2(file, path.c_str(), H5P_DEFAULT));
  if (!stored.handle) {
    const std::string reason = last_failure().innermost;
    const ObjectHandle object(H5Oopen(file, path.c_str(), H5P_DEFAULT));
    if (object && H5Iget_type(object.get()) != H5I_DATASET) {
      problems.push_back({.code = ExitCode::input,
                          .what = path + " is not a dataset",
                          .seen = "a group or a type",
                          .expected = "a dataset",
                          .from = file_name});
    } else {
      problems.push_back(
          {.code = ExitCode::input, .what = "dataset " + path + " is damaged", .seen = "HDF5: " + reason, .from = file_name});
    }
    return std::nullopt;
  }
  const hid_t dataset = stored.handle.get();
  const SpaceHandle space(check(H5Dget_space(dataset), "H5Dget_space", from, ExitCode::input));
  const int rank = H5Sget_simple_extent_ndims(space.get());
  std::vector<hsize_t> dims(static_cast<size_t>(std::max(rank, 0)));
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  stored.dims.assign(dims.begin(), dims.end());

  const PropertyHandle creation(check(H5Dget_create_plist(dataset), "H5Dget_create_plist", from, ExitCode::input));
  // A link may lead into another file: then the offset is one of that file.
  std::string own(static_cast<size_t>(std::max<ssize_t>(H5Fget_name(file, nullptr, 0), 0)), '\0'), its(own.size() + 1, '\0');
  H5Fget_name(file, own.data(), own.size() + 1);
  const ssize_t its_length = H5Fget_name(dataset, its.data(), its.size() + 1);
  const bool here = its_length == static_cast<ssize_t>(own.size()) && its.compare(0, own.size(), own) == 0;
  if (here && H5Pget_layout(creation.get()) == H5D_CONTIGUOUS && H5Pget_external_count(creation.get()) == 0) {
    const haddr_t offset = H5Dget_offset(dataset);  // undefined: allocated late and never written; HDF5 then reads fill values
    if (offset != HADDR_UNDEF) {
      const TypeHandle type(check(H5Dget_type(dataset), "H5Dget_type", from, ExitCode::input));
      stored.contiguous_offset = static_cast<int64_t>(offset);
      stored.stored_bytes = static_cast<int64_t>(H5Tget_size(type.get()));
      for (int64_t dim : stored.dims) stored.stored_bytes *= dim;
    }
  }
  return stored;
}

namespace {

bool first_element_reads(const StoredDataset& stored) {
  const SpaceHandle space(H5Dget_space(stored.handle.get()));
  const TypeHandle type(H5Dget_type(stored.handle.get()));
  const std::vector<hsize_t> start(stored.dims.size(), 0), one(stored.dims.size(), 1);
  const hsize_t count = 1;
  const SpaceHandle memory(H5Screate_simple(1, &count, nullptr));
  std::vector<std::byte> element(H5Tget_size(type.get()));
  return H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, one.data(), nullptr) >= 0 &&
         H5Dread(stored.handle.get(), type.get(), memory.get(), space.get(), H5P_DEFAULT, element.data()) >= 0;
}

}  // namespace

void check_storage(const StoredDataset& stored, const std::string& file_name, const std::string& path, int64_t file_bytes,
                   std::vector<Problem>& problems) {
  const hid_t dataset = stored.handle.get();
  if (stored.contiguous_offset >= 0 && stored.contiguous_offset + stored.stored_bytes > file_bytes) {
    problems.push_back({.code = ExitCode::input,
                        .what = "the file is truncated: dataset " + path + " passes its end",
                        .seen = fmt::format("{} bytes", file_bytes),
                        .expected = fmt::format("at least {}", stored.contiguous_offset + stored.stored_bytes),
                        .from = file_name,
                        .mend = "copy or write it again"});
    return;
  }
  const PropertyHandle creation(check(H5Dget_create_plist(dataset), "H5Dget_create_plist", file_name + ":" + path, ExitCode::input));
  if (H5Pget_layout(creation.get()) == H5D_CHUNKED) {
    for (unsigned i = 0; i < static_cast<unsigned>(std::max(H5Pget_nfilters(creation.get()), 0)); ++i) {
      unsigned flags = 0, info = 0;
      size_t values = 0;
      std::array<char, 256> name{};
      const H5Z_filter_t filter = H5Pget_filter2(creation.get(), i, &flags, &values, nullptr, name.size() - 1, name.data(), &info);
      // An optional filter may have been skipped when the data were written: only data that do not read are a problem.
      if (filter < 0 || H5Zfilter_avail(filter) > 0 || first_element_reads(stored)) continue;
      problems.push_back({.code = ExitCode::input,
                          .what = "dataset " + path + " is compressed by a filter that this HDF5 does not have",
                          .seen = fmt::format("filter {} ({})", filter, name.data()),
                          .from = file_name,
                          .mend = "set HDF5_PLUGIN_PATH to the folder of its plug-in, or: h5repack -f GZIP=1 OLD NEW"});
    }
  }
  if (H5Pget_layout(creation.get()) == H5D_VIRTUAL) {
    // HDF5 reads the parts of a missing source as zeros, without a word.
    size_t sources = 0;
    H5Pget_virtual_count(creation.get(), &sources);
    for (size_t i = 0; i < sources; ++i) {
      std::string source(static_cast<size_t>(std::max<ssize_t>(H5Pget_virtual_filename(creation.get(), i, nullptr, 0), 0)), '\0');
      H5Pget_virtual_filename(creation.get(), i, source.data(), source.size() + 1);
      if (source == "." || source.find('%') != std::string::npos) continue;
      const std::string beside = folder_of(file_name) + "/" + source;
      if (::access(source.c_str(), R_OK) == 0 || ::access(beside.c_str(), R_OK) == 0) continue;
      problems.push_back(
          {.code = ExitCode::input, .what = "virtual dataset " + path + " lacks a source file", .seen = "no " + source, .from = file_name});
    }
  }
}

bool is_integer(hid_t dataset) {
  const TypeHandle type(H5Dget_type(dataset));
  return type && H5Tget_class(type.get()) == H5T_INTEGER;
}

std::vector<int64_t> read_integers(hid_t dataset, int64_t row, int64_t begin, int64_t count, const std::string& from) {
  std::vector<int64_t> values(static_cast<size_t>(count));
  if (count == 0) return values;
  const SpaceHandle space(check(H5Dget_space(dataset), "H5Dget_space", from));
  const bool two = H5Sget_simple_extent_ndims(space.get()) == 2;
  for (int64_t done = 0; done < count;) {
    const int64_t piece = std::min(count - done, kPieceBytes / 8);
    const std::array<hsize_t, 2> start{static_cast<hsize_t>(two ? row : begin + done), static_cast<hsize_t>(begin + done)};
    const std::array<hsize_t, 2> extent{two ? 1 : static_cast<hsize_t>(piece), static_cast<hsize_t>(piece)};
    check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr), "H5Sselect_hyperslab", from);
    const auto length = static_cast<hsize_t>(piece);
    const SpaceHandle memory(check(H5Screate_simple(1, &length, nullptr), "H5Screate_simple", from));
    check(H5Dread(dataset, H5T_NATIVE_INT64, memory.get(), space.get(), H5P_DEFAULT, values.data() + done), "H5Dread", from);
    done += piece;
  }
  return values;
}

std::optional<AttributeValue> read_attribute(hid_t object, const std::string& name) {
  if (H5Aexists(object, name.c_str()) <= 0) return std::nullopt;
  const AttributeHandle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT));
  if (!attribute) return std::nullopt;
  const SpaceHandle space(H5Aget_space(attribute.get()));
  const TypeHandle type(H5Aget_type(attribute.get()));
  if (!space || !type || H5Sget_simple_extent_npoints(space.get()) != 1) return std::nullopt;
  switch (H5Tget_class(type.get())) {
    case H5T_INTEGER: {
      int64_t value = 0;
      if (H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) return std::nullopt;
      return value;
    }
    case H5T_FLOAT: {
      double value = 0;
      if (H5Aread(attribute.get(), H5T_NATIVE_DOUBLE, &value) < 0) return std::nullopt;
      return value;
    }
    case H5T_STRING: {
      if (H5Tis_variable_str(type.get()) > 0) {
        char* text = nullptr;
        if (H5Aread(attribute.get(), type.get(), &text) < 0) return std::nullopt;
        std::string value = text ? text : "";
        H5free_memory(text);
        return value;
      }
      std::string value(H5Tget_size(type.get()), '\0');
      if (H5Aread(attribute.get(), type.get(), value.data()) < 0) return std::nullopt;
      value.resize(std::strlen(value.c_str()));
      if (H5Tget_strpad(type.get()) == H5T_STR_SPACEPAD) value.erase(value.find_last_not_of(' ') + 1);
      return value;
    }
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> read_integer_attribute(hid_t object, const std::string& name) {
  const auto value = read_attribute(object, name);
  if (!value || !std::holds_alternative<int64_t>(*value)) return std::nullopt;
  return std::get<int64_t>(*value);
}

std::vector<std::string> attribute_names(hid_t object) {
  std::vector<std::string> names;
  const auto visit = [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &names);
  return names;
}

namespace {

// Variable-length UTF-8: h5py reads it as str, and it may be longer than the 64 KiB that an attribute itself holds.
TypeHandle text_type(const std::string& from) {
  TypeHandle type(check(H5Tcopy(H5T_C_S1), "H5Tcopy", from));
  check(H5Tset_size(type.get(), H5T_VARIABLE), "H5Tset_size", from);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset", from);
  return type;
}

void create_attribute(hid_t object, const char* name, hid_t type, hid_t space, hid_t memory_type, const void* data,
                      const std::string& from) {
  const AttributeHandle attribute(check(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), "H5Acreate", from));
  check(H5Awrite(attribute.get(), memory_type, data), "H5Awrite", from);
}

}  // namespace

void write_attribute(hid_t object, const std::string& name, const AttributeValue& value, const std::string& from) {
  const SpaceHandle scalar(check(H5Screate(H5S_SCALAR), "H5Screate", from));
  if (const auto* integer = std::get_if<int64_t>(&value)) {
    create_attribute(object, name.c_str(), H5T_STD_I64LE, scalar.get(), H5T_NATIVE_INT64, integer, from);
  } else if (const auto* real = std::get_if<double>(&value)) {
    create_attribute(object, name.c_str(), H5T_IEEE_F64LE, scalar.get(), H5T_NATIVE_DOUBLE, real, from);
  } else {
    const TypeHandle type = text_type(from);
    const char* text = std::get<std::string>(value).c_str();
    create_attribute(object, name.c_str(), type.get(), scalar.get(), type.get(), &text, from);
  }
}

void label_dimensions(hid_t dataset, const std::vector<std::string>& labels, const std::string& from) {
  const TypeHandle type(check(H5Tcopy(H5T_C_S1), "H5Tcopy", from));
  check(H5Tset_size(type.get(), H5T_VARIABLE), "H5Tset_size", from);
  const hsize_t count = labels.size();
  const SpaceHandle space(check(H5Screate_simple(1, &count, nullptr), "H5Screate_simple", from));
  std::vector<const char*> texts;
  for (const std::string& label : labels) texts.push_back(label.c_str());
  create_attribute(dataset, "DIMENSION_LABELS", type.get(), space.get(), type.get(), texts.data(), from);
}

}  // namespace longspan::io
