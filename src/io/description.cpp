#include "io/description.hpp"

#include <fmt/format.h>

#include <array>

#include "io/hdf5_file.hpp"

namespace longspan::io {

namespace {

std::string storage_text(hid_t dataset, size_t rank) {
  const PropertyHandle creation(H5Dget_create_plist(dataset));
  std::string text;
  switch (H5Pget_layout(creation.get())) {
    case H5D_CONTIGUOUS:
      return H5Pget_external_count(creation.get()) > 0 ? "external" : "contiguous";
    case H5D_COMPACT:
      return "compact";
    case H5D_VIRTUAL:
      return "virtual";
    case H5D_CHUNKED: {
      std::vector<hsize_t> chunk(rank);
      H5Pget_chunk(creation.get(), static_cast<int>(rank), chunk.data());
      text = fmt::format("chunks of [{}]", fmt::join(chunk, ", "));
      break;
    }
    default:
      return "unknown";
  }
  for (int i = 0; i < H5Pget_nfilters(creation.get()); ++i) {
    unsigned flags = 0, info = 0;
    size_t values = 0;
    std::array<char, 256> name{};
    const H5Z_filter_t filter =
        H5Pget_filter2(creation.get(), static_cast<unsigned>(i), &flags, &values, nullptr, name.size() - 1, name.data(), &info);
    text += name[0] ? fmt::format(", {}", name.data()) : fmt::format(", filter {}", filter);
  }
  return text;
}

}  // namespace

FileDescription describe_file(const std::string& file) {
  const Section section;
  const FileHandle opened = open_hdf5(file, "file");
  const Descriptor descriptor = open_existing(file, "file");
  FileDescription description{.bytes = status_of(descriptor.get(), file).bytes};
  for (const std::string& path : dataset_paths(opened.get())) {
    std::vector<Problem> problems;
    const auto stored = open_dataset(opened.get(), file, path, {}, problems);
    if (!stored) {
      description.datasets.push_back({.path = path, .type = problems.front().what});
      continue;
    }
    const TypeHandle type(H5Dget_type(stored->handle.get()));
    description.datasets.push_back({.path = path,
                                    .dims = stored->dims,
                                    .type = type_text(type.get()),
                                    .storage = storage_text(stored->handle.get(), stored->dims.size())});
  }
  for (const std::string& name : attribute_names(opened.get())) {
    std::string text;
    if (const auto value = read_attribute(opened.get(), name)) {
      text = std::visit([](const auto& held) { return fmt::format("{}", held); }, *value);
    } else {
      const AttributeHandle attribute(H5Aopen(opened.get(), name.c_str(), H5P_DEFAULT));
      const TypeHandle type(H5Aget_type(attribute.get()));
      const SpaceHandle space(H5Aget_space(attribute.get()));
      text = fmt::format("({} × {})", H5Sget_simple_extent_npoints(space.get()), type_text(type.get()));
    }
    description.attributes.emplace_back(name, text);
  }
  return description;
}

std::string hdf5_built_with() {
#ifdef H5_HAVE_PARALLEL
  const char* kind = "parallel";
#else
  const char* kind = "serial";
#endif
  return fmt::format("{}.{}.{} ({})", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE, kind);
}

std::string hdf5_running_with() {
  const Section section;
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace longspan::io
