#include "report/block_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "report/format.hpp"
#include "report/svg_text.hpp"

namespace longspan::report {

BlockMap::BlockMap(int64_t tile_blocks) : blocks(tile_blocks), cells(std::min(tile_blocks, kMostCells)) {
  full.resize(static_cast<size_t>(cells * cells));
  partial.resize(full.size());
}

void BlockMap::add(std::vector<int64_t>& counts, int64_t row, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t base = cell_of(row) * cells;
  for (int64_t cell = cell_of(begin); begin < end; ++cell) {
    const int64_t next = std::min(end, first_block(cell + 1));
    counts[static_cast<size_t>(base + cell)] += next - begin;
    begin = next;
  }
}

namespace {

// What a square of the picture shows: how much of it is visited, and whether mostly by full tiles.
struct Square {
  int64_t full = 0, partial = 0, tiles = 0;
  bool visited() const { return full + partial > 0; }
  bool mostly_full() const { return full >= partial; }
  // 0 (nothing) … 8 (every tile is visited); anything visited shows.
  int level() const { return visited() ? static_cast<int>(std::max<int64_t>(1, 8 * (full + partial) / tiles)) : 0; }
};

Square square(const BlockMap& map, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end) {
  Square sum;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t column = column_begin; column < column_end; ++column) {
      const auto cell = static_cast<size_t>(row * map.cells + column);
      sum.full += map.full[cell];
      sum.partial += map.partial[cell];
      sum.tiles += map.tiles_in(row, column);
    }
  }
  return sum;
}

char letter(const Square& square) {
  if (!square.visited()) return ' ';
  if (square.full == square.tiles) return '#';
  if (square.full + square.partial == square.tiles) return square.mostly_full() ? '*' : '+';
  return 2 * (square.full + square.partial) >= square.tiles ? '-' : '.';
}

// Lines of at most `width` characters, broken at blanks where there are any.
std::vector<std::string> wrapped(const std::string& text, size_t width) {
  std::vector<std::string> lines;
  size_t begin = 0;
  while (text.size() - begin > width) {
    size_t end = text.rfind(' ', begin + width);
    if (end == std::string::npos || end <= begin) end = begin + width;
    lines.push_back(text.substr(begin, end - begin));
    begin = text[end] == ' ' ? end + 1 : end;
  }
  lines.push_back(text.substr(begin));
  return lines;
}

constexpr int kSide = 512;  // pixels of a panel
constexpr int kGap = 56;    // between panels, and their left margin
constexpr const char* kFullColour = "#1f4e8c";
constexpr const char* kPartialColour = "#e0842b";

// Squares of equal look that touch in a row become one rectangle; rows of equal look become one taller rectangle.
std::string squares_svg(const BlockMap& map, int x, int y) {
  struct Run {
    int64_t begin, end;
    bool full;
    int level;
    bool operator==(const Run&) const = default;
  };
  const auto runs_of = [&](int64_t row) {
    std::vector<Run> runs;
    for (int64_t column = 0; column < map.cells; ++column) {
      const Square look = square(map, row, row + 1, column, column + 1);
      if (look.level() == 0) continue;
      if (!runs.empty() && runs.back().end == column && runs.back().full == look.mostly_full() && runs.back().level == look.level()) {
        ++runs.back().end;
      } else {
        runs.push_back({column, column + 1, look.mostly_full(), look.level()});
      }
    }
    return runs;
  };
  const double pixel = static_cast<double>(kSide) / static_cast<double>(map.cells);
  std::string svg;
  for (int64_t row = 0; row < map.cells;) {
    const std::vector<Run> runs = runs_of(row);
    int64_t next = row + 1;
    while (next < map.cells && runs_of(next) == runs) ++next;
    for (const Run& run : runs) {
      svg += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" class=\"{}{}\"/>\n",
                         x + static_cast<double>(run.begin) * pixel, y + static_cast<double>(row) * pixel,
                         static_cast<double>(run.end - run.begin) * pixel, static_cast<double>(next - row) * pixel, run.full ? 'f' : 'p',
                         run.level);
    }
    row = next;
  }
  return svg;
}

std::string panel_svg(const MapPanel& panel, int x, int y) {
  const BlockMap& map = panel.map;
  std::string svg = fmt::format("<g><text x=\"{}\" y=\"{}\" class=\"b\">{}</text>\n", x, y - 26, escaped_for_svg(panel.title));
  svg += fmt::format("<text x=\"{}\" y=\"{}\">keys: block 0 … {}</text>\n", x, y - 8, count_text(std::max<int64_t>(0, map.blocks - 1)));
  svg += fmt::format("<text transform=\"translate({},{}) rotate(-90)\" text-anchor=\"end\">queries: block 0 … {}</text>\n", x - 8, y,
                     count_text(std::max<int64_t>(0, map.blocks - 1)));
  svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#fbfbf8\" stroke=\"none\"/>\n", x, y, kSide, kSide);
  if (map.blocks > 0) svg += squares_svg(map, x, y);
  for (const int64_t border : map.borders) {
    const double at = static_cast<double>(border) * kSide / static_cast<double>(map.blocks);
    svg += fmt::format("<path class=\"d\" d=\"M{:.2f} {}v{}M{} {:.2f}h{}\"/>\n", x + at, y, kSide, x, y + at, kSide);
  }
  svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#333\"/></g>\n", x, y, kSide, kSide);
  return svg;
}

}  // namespace

std::string terminal_picture(const BlockMap& map, int indent) {
  if (map.blocks == 0) return {};
  const int64_t lines = std::min<int64_t>(map.cells, 32);
  // Characters are about twice as tall as wide: small maps take two per tile, large ones twice as many columns as lines.
  const int64_t columns = map.cells <= 32 ? map.cells : std::min<int64_t>(map.cells, 64);
  const int repeat = map.cells <= 32 ? 2 : 1;
  const std::string margin(static_cast<size_t>(indent), ' ');
  const std::string frame = margin + '+' + std::string(static_cast<size_t>(columns * repeat), '-') + "+\n";
  std::string text = frame;
  for (int64_t line = 0; line < lines; ++line) {
    text += margin + '|';
    for (int64_t column = 0; column < columns; ++column) {
      const Square look = square(map, line * map.cells / lines, (line + 1) * map.cells / lines, column * map.cells / columns,
                                 (column + 1) * map.cells / columns);
      text += std::string(static_cast<size_t>(repeat), letter(look));
    }
    text += "|\n";
  }
  text += frame;
  text +=
      margin + "queries down, keys to the right; all tiles visited: # all full, * mostly full, + mostly partial; - half or more, . fewer\n";
  return text;
}

std::string svg_picture(const std::string& title, const std::string& subtitle, const std::vector<MapPanel>& panels) {
  const int across = panels.size() > 1 ? 2 : 1;
  const int down = static_cast<int>((panels.size() + 1) / 2);
  const int width = across * (kSide + kGap) + 24;
  std::vector<std::string> heading = wrapped(title, static_cast<size_t>(width / 8));
  const int top = 20 + 20 * static_cast<int>(heading.size()) + 20;
  const int height = top + std::max(1, down) * (kSide + 72) + 44;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "role=\"img\">\n<title>{2}</title>\n<style>\n"
      "rect{{shape-rendering:crispEdges}}text{{font:13px sans-serif;fill:#222}}.b{{font-weight:bold}}.m{{font:bold 13px "
      "monospace}}.d{{fill:none;stroke:#888;stroke-width:.6;stroke-dasharray:3 3}}\n",
      width, height, escaped_for_svg(title));
  for (int level = 1; level <= 8; ++level)
    svg += fmt::format(".f{0}{{fill:{1};fill-opacity:{3:.2f}}}.p{0}{{fill:{2};fill-opacity:{3:.2f}}}\n", level, kFullColour, kPartialColour,
                       0.2 + 0.1 * level);
  svg += fmt::format("</style>\n<rect width=\"{}\" height=\"{}\" fill=\"#fff\"/>\n", width, height);
  int y = 26;
  for (const std::string& line : heading) {
    svg += fmt::format("<text x=\"{}\" y=\"{}\" class=\"m\">{}</text>\n", kGap / 2, y, escaped_for_svg(line));
    y += 20;
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", kGap / 2, y, escaped_for_svg(subtitle));
  for (size_t i = 0; i < panels.size(); ++i)
    svg +=
        panel_svg(panels[i], kGap / 2 + 16 + static_cast<int>(i) % 2 * (kSide + kGap), top + 56 + static_cast<int>(i) / 2 * (kSide + 72));
  const int legend = height - 22;
  struct Entry {
    const char* style;
    const char* text;
    int x;
  };
  for (const Entry& entry :
       {Entry{"f8", "full tiles", 0}, Entry{"p8", "partial tiles", 96}, Entry{"f1", "few of the square's tiles", 222}}) {
    svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"14\" class=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
                       kGap / 2 + entry.x, legend - 11, entry.style, kGap / 2 + entry.x + 20, legend + 1, entry.text);
  }
  svg += fmt::format("<path class=\"d\" d=\"M{} {}h20\"/><text x=\"{}\" y=\"{}\">document border</text>\n", kGap / 2 + 410, legend - 4,
                     kGap / 2 + 434, legend + 1);
  return svg + "</svg>\n";
}

}  // namespace longspan::report
