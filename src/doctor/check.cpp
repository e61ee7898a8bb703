#include "doctor/check.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace longspan::doctor {

Spread spread_of(const std::vector<double>& values, Better better) {
  std::vector<double> known;
  Spread spread;
  for (size_t r = 0; r < values.size(); ++r) {
    if (std::isnan(values[r])) continue;
    known.push_back(values[r]);
    const double worst = spread.worst_rank < 0 ? values[r] : values[static_cast<size_t>(spread.worst_rank)];
    if (spread.worst_rank < 0 || (better == Better::higher ? values[r] < worst : values[r] > worst))
      spread.worst_rank = static_cast<int>(r);
  }
  if (known.empty()) return spread;
  std::sort(known.begin(), known.end());
  spread.least = known.front(), spread.most = known.back();
  const size_t half = known.size() / 2;
  spread.median = known.size() % 2 == 1 ? known[half] : (known[half - 1] + known[half]) / 2;
  return spread;
}

double worse_by(const Spread& spread, Better better) {
  if (spread.worst_rank < 0) return 1;
  const double slow = better == Better::higher ? spread.median : spread.most,
               fast = better == Better::higher ? spread.least : spread.median;
  if (slow <= fast) return 1;
  return fast > 0 ? slow / fast : std::numeric_limits<double>::infinity();
}

Verdict judge(const Spread& spread, Better better, double tolerance) {
  const double factor = worse_by(spread, better);
  return factor >= tolerance ? Verdict::unfit : factor >= std::min(kSlow, tolerance) ? Verdict::slow : Verdict::ok;
}

}  // namespace longspan::doctor
