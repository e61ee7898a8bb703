#include "report/table.hpp"

#include <algorithm>

#include "report/format.hpp"

namespace longspan::report {

namespace {

std::string padded(const std::string& cell, int64_t width, bool left) {
  const std::string blanks(static_cast<size_t>(std::max<int64_t>(0, width - columns_of(cell))), ' ');
  return left ? cell + blanks : blanks + cell;
}

std::string trimmed_line(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line + '\n';
}

}  // namespace

Table::Table(std::vector<std::string> headers) : headers_(std::move(headers)) {
  for (std::string& header : headers_) {
    left_.push_back(header.starts_with('<'));
    if (left_.back()) header.erase(0, 1);
  }
}

void Table::add(std::vector<std::string> cells) {
  cells.resize(headers_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(int indent) const {
  std::vector<int64_t> widths;
  for (size_t column = 0; column < headers_.size(); ++column) {
    widths.push_back(columns_of(headers_[column]));
    for (const auto& row : rows_) widths.back() = std::max(widths.back(), columns_of(row[column]));
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text(static_cast<size_t>(indent), ' ');
    for (size_t column = 0; column < cells.size(); ++column)
      text += (column ? "  " : "") + padded(cells[column], widths[column], left_[column]);
    return trimmed_line(std::move(text));
  };
  std::string text = line(headers_);
  std::vector<std::string> rule;
  for (const int64_t width : widths) rule.emplace_back(static_cast<size_t>(width), '-');
  text += line(rule);
  for (const auto& row : rows_) text += line(row);
  return text;
}

std::string pairs_text(const std::vector<std::pair<std::string, std::string>>& pairs, int indent) {
  int64_t width = 0;
  for (const auto& [name, value] : pairs) width = std::max(width, columns_of(name));
  std::string text;
  for (const auto& [name, value] : pairs)
    text += trimmed_line(std::string(static_cast<size_t>(indent), ' ') + padded(name, width, true) + "  " + value);
  return text;
}

}  // namespace longspan::report
