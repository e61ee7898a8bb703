// What this host has sent over its network interfaces, by their own counters: a check on what a job says it sends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace longspan::launch {

// Bytes that left through all interfaces but the loopback since they came up, headers included (/proc/net/dev of this process' network
// namespace). Nothing where that cannot be read. InfiniBand and other networks that bypass the kernel do not count there.
std::optional<int64_t> network_bytes_sent(const std::filesystem::path& root = "/");

}  // namespace longspan::launch
