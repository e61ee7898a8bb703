// A picture of how a job scales: throughput over one rank's against the number of ranks, both axes in powers of two.
#pragma once

#include <string>
#include <vector>

namespace longspan::report {

struct ScalingCurve {
  struct Point {
    double ranks = 1, speedup = 1;
  };
  std::string title;  // in the legend
  std::vector<Point> points;
  bool dashed = false;  // not measured
};

// One SVG document with the ideal line, which is speedup = ranks; `subtitle` of two lines at most. At most six curves are told apart. The
// same input gives the same bytes.
std::string scaling_svg(const std::string& title, const std::string& subtitle, const std::vector<ScalingCurve>& curves);

}  // namespace longspan::report
