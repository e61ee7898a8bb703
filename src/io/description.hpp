// What `longspan inspect file` and `--version` say of any HDF5 file and of the library.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace longspan::io {

struct DatasetDescription {
  std::string path;
  std::vector<int64_t> dims;
  std::string type;     // "bfloat16", "64-bit integer", …
  std::string storage;  // "contiguous", "chunks of [128, 9, 64], shuffle, deflate", "compact", "virtual"
};

struct FileDescription {
  int64_t bytes = 0;
  std::vector<DatasetDescription> datasets;                     // of all groups, by path; at most 10,000
  std::vector<std::pair<std::string, std::string>> attributes;  // of the root; arrays and other kinds are named by their type
};
// Throws Error(input) as inspect_corpus does for files that cannot be opened.
FileDescription describe_file(const std::string& file);

// "1.10.8 (parallel)": of the headers it was built with, and of the library it runs with.
std::string hdf5_built_with();
std::string hdf5_running_with();

}  // namespace longspan::io
