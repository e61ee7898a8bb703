// Strings of the layouts as JSON. A path on Linux is any bytes, JSON only UTF-8: other paths go as a list of byte values.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace longspan::io {

inline nlohmann::ordered_json plain_json(const std::string& text) {
  nlohmann::ordered_json json = text;
  try {
    json.dump();
    return json;
  } catch (const nlohmann::ordered_json::type_error&) {
    return std::vector<unsigned char>(text.begin(), text.end());
  }
}

inline std::string text_of(const nlohmann::ordered_json& json) {
  if (json.is_string()) return json.get<std::string>();
  const auto bytes = json.get<std::vector<unsigned char>>();
  return {bytes.begin(), bytes.end()};
}

}  // namespace longspan::io
