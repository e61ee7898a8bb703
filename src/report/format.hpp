// Numbers as people read them. All deterministic and independent of the locale.
#pragma once

#include <cstdint>
#include <string>

namespace longspan::report {

std::string count_text(int64_t count);                              // 12,582,912
std::string bytes_text(int64_t bytes);                              // 512 B, 8.00 GiB
std::string duration_text(double seconds);                          // 0.42 ms, 3.1 s, 2 min 05 s, 1 h 02 min
std::string percent_text(double share);                             // share 0.1234 -> 12.3 %; tiny shares keep two digits: 0.0013 %
std::string number_text(double value);                              // five significant digits at most: 1.5, 0.0012, 3.2e-07
std::string exact_text(double value);                               // the shortest text that reads back as the same double
std::string amount_text(double amount, const std::string& unit);    // 1.23 T FLOP
std::string rate_text(double per_second, const std::string& unit);  // 1.23 M tokens/s
// Columns that `utf8` takes on a terminal, as far as this program prints: code points.
int64_t columns_of(const std::string& utf8);

}  // namespace longspan::report
