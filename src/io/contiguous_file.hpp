// Creates the HDF5 files that ranks then fill with plain writes: every dataset in one piece, unfiltered, its room reserved on disk, all
// metadata flushed, under a temporary name that is renamed at the end. A program killed later leaves a file that opens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5_file.hpp"

namespace longspan::io {

struct NewDataset {
  std::string path;  // groups on the way are made
  std::vector<int64_t> dims;
  ElementType type = ElementType::float32;
  std::vector<std::string> labels;  // of the dimensions
};

struct NewFile {
  std::vector<NewDataset> datasets;
  Attributes attributes;          // of the root
  std::string integers_path;      // "": none
  std::vector<int64_t> integers;  // small enough to be written at once, int64
  std::vector<std::string> integer_labels;
};

struct CreatedFile {
  std::vector<int64_t> offsets;  // of each dataset's first byte
  FileStatus status;
};

// On one rank. Throws Error(io): folder missing or not writable, no room; nothing is left behind then.
CreatedFile create_contiguous(const std::string& file, const NewFile& contents);

// Sets the integer attribute of the root that is there already, and syncs. Throws Error(input/io).
void change_attribute(const std::string& file, const std::string& role, const std::string& name, int64_t value);

}  // namespace longspan::io
