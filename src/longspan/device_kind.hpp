// Which kind of device a job asks for.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace longspan {

enum class DeviceKind : uint8_t { automatic, cpu, cuda };

constexpr std::string_view name_of(DeviceKind kind) { return kind == DeviceKind::cpu ? "cpu" : kind == DeviceKind::cuda ? "cuda" : "auto"; }
constexpr std::optional<DeviceKind> device_kind_named(std::string_view name) {
  for (DeviceKind kind : {DeviceKind::automatic, DeviceKind::cpu, DeviceKind::cuda})
    if (name_of(kind) == name) return kind;
  return std::nullopt;
}

}  // namespace longspan
