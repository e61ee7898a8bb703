// Plain text tables: a header, aligned columns, a line under the header.
#pragma once

#include <string>
#include <vector>

namespace longspan::report {

class Table {
 public:
  // A header that starts with '<' makes a left-aligned column (the mark is not printed); others are right-aligned.
  explicit Table(std::vector<std::string> headers);
  // As many cells as there are headers; fewer leave the rest empty.
  void add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Lines that end in '\n', each indented by `indent` blanks.
  std::string text(int indent = 0) const;

 private:
  std::vector<std::string> headers_;
  std::vector<bool> left_;
  std::vector<std::vector<std::string>> rows_;
};

// "name   value" pairs below one another, values aligned.
std::string pairs_text(const std::vector<std::pair<std::string, std::string>>& pairs, int indent = 0);

}  // namespace longspan::report
