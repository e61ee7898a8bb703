#include "report/scaling_chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "report/svg_text.hpp"

namespace longspan::report {

namespace {

constexpr int kLeft = 64, kTop = 96, kWidth = 560, kHeight = 400;
// Told apart by people who do not see all colours as well (Okabe and Ito, "Color Universal Design", 2008).
constexpr std::array kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"};

}  // namespace

std::string scaling_svg(const std::string& title, const std::string& subtitle, const std::vector<ScalingCurve>& curves) {
  double most_ranks = 2, most = 2, least = 1;
  for (const ScalingCurve& curve : curves) {
    for (const ScalingCurve::Point& point : curve.points) {
      most_ranks = std::max(most_ranks, point.ranks);
      most = std::max(most, point.speedup);
      if (point.speedup > 0) least = std::min(least, point.speedup);
    }
  }
  const double columns = std::ceil(std::log2(most_ranks)), low = std::floor(std::log2(least)),
               rows = std::max(1.0, std::ceil(std::log2(std::max(most, most_ranks))) - low);
  const auto x = [&](double ranks) { return kLeft + std::log2(ranks) / columns * kWidth; };
  const auto y = [&](double speedup) { return kTop + kHeight - (std::log2(std::max(speedup, 1e-9)) - low) / rows * kHeight; };

  const int legend = kTop + kHeight + 60, height = legend + 22 * static_cast<int>(curves.size() + 1) + 8;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\">\n<title>{2}</title>\n"
      "<style>text{{font:13px sans-serif;fill:#222}}.b{{font-weight:bold}}.g{{stroke:#ddd;fill:none}}.i{{stroke:#888;fill:none;"
      "stroke-dasharray:2 4;stroke-width:1.5}}</style>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"{3}\" y=\"26\" class=\"b\">{2}</text>\n<text x=\"{3}\" y=\"48\">{4}</text>\n<text x=\"{3}\" y=\"68\">{5}</text>\n",
      kLeft + kWidth + 40, height, escaped_for_svg(title), kLeft, escaped_for_svg(subtitle.substr(0, subtitle.find('\n'))),
      subtitle.find('\n') == std::string::npos ? "" : escaped_for_svg(subtitle.substr(subtitle.find('\n') + 1)));
  for (double exponent = 0; exponent <= columns; ++exponent)
    svg += fmt::format("<path class=\"g\" d=\"M{0:.1f} {1}v{2}\"/><text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4:.0f}</text>\n",
                       x(std::exp2(exponent)), kTop, kHeight, kTop + kHeight + 18, std::exp2(exponent));
  for (double exponent = low; exponent <= low + rows; ++exponent)
    svg += fmt::format("<path class=\"g\" d=\"M{0} {1:.1f}h{2}\"/><text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:g}</text>\n", kLeft,
                       y(std::exp2(exponent)), kWidth, kLeft - 8, y(std::exp2(exponent)) + 4, std::exp2(exponent));
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">ranks</text>\n", kLeft + kWidth / 2, kTop + kHeight + 38);
  svg += fmt::format("<text transform=\"translate(18,{}) rotate(-90)\" text-anchor=\"middle\">throughput, one rank = 1</text>\n",
                     kTop + kHeight / 2);
  svg += fmt::format("<path class=\"i\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>\n", x(1), y(1), x(most_ranks), y(most_ranks));
  svg += fmt::format("<path class=\"i\" d=\"M{} {}h28\"/><text x=\"{}\" y=\"{}\">ideal</text>\n", kLeft, legend - 4, kLeft + 38, legend);
  for (size_t c = 0; c < curves.size(); ++c) {
    const char* colour = kColours[c % kColours.size()];
    const char* dash = curves[c].dashed ? " stroke-dasharray=\"7 4\"" : "";
    std::string path;
    for (const ScalingCurve::Point& point : curves[c].points)
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? 'M' : 'L', x(point.ranks), y(point.speedup));
    svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", path, colour, dash);
    for (const ScalingCurve::Point& point : curves[c].points)
      svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", x(point.ranks), y(point.speedup), colour);
    const int at = legend + 22 * static_cast<int>(c + 1);
    svg += fmt::format("<path d=\"M{} {}h28\" stroke=\"{}\" stroke-width=\"2\"{}/><text x=\"{}\" y=\"{}\">{}</text>\n", kLeft, at - 4,
                       colour, dash, kLeft + 38, at, escaped_for_svg(curves[c].title));
  }
  return svg + "</svg>\n";
}

}  // namespace longspan::report
