// What a command is about: a pattern, a shape and documents, from options or from an input file.
#pragma once

#include <memory>
#include <vector>

#include "cli/options.hpp"
#include "io/corpus.hpp"
#include "longspan/shape.hpp"
#include "pattern/pattern.hpp"

namespace longspan::cli {

// --input and the --…-path options.
io::CorpusPaths corpus_paths(const Settings& settings);

// --pattern, parsed; problems name the option and where its text came from.
pattern::Pattern pattern_from(const Settings& settings);

// One source for each block_mask term of the pattern, out of the file. Throws Error(input).
std::vector<std::shared_ptr<const pattern::BlockMaskSource>> block_mask_sources(const pattern::Pattern& pattern,
                                                                                const io::CorpusPaths& paths, const Shape& shape,
                                                                                const Documents& documents);

struct Subject {
  Shape shape;
  Documents documents = Documents::single(0);
  std::vector<std::shared_ptr<const pattern::BlockMaskSource>> sources;
};
// For plan and inspect pattern: with --input the file says it all, and --tokens, --heads … may only repeat what it says; without it they
// say it and block_mask terms are an error. `settings` may lack head-dim and type. Throws Error(usage or input).
Subject subject_from(const Settings& settings, const pattern::Pattern& pattern);

// Checks heads, kv-heads and head-dim against one another; kv-heads defaults to heads.
Shape shape_from(const Settings& settings, int64_t tokens);

}  // namespace longspan::cli
