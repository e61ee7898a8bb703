#include "launch/network_counters.hpp"

#include <fstream>
#include <sstream>
#include <string>

namespace longspan::launch {

std::optional<int64_t> network_bytes_sent(const std::filesystem::path& root) {
  // Inter-|   Receive                                                |  Transmit
  //  face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs …
  //   eth0: 1296     14      0    0    0     0          0         0   976      12       0 …
  std::ifstream file(root / "proc/self/net/dev");
  std::optional<int64_t> sent;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string name = line.substr(line.find_first_not_of(' '), colon - line.find_first_not_of(' '));
    std::istringstream fields(line.substr(colon + 1));
    int64_t value = 0;
    for (int field = 0; field < 9 && fields >> value;) ++field;
    if (fields) sent = sent.value_or(0) + (name == "lo" ? 0 : value);
  }
  return sent;
}

}  // namespace longspan::launch
