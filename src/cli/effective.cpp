#include "cli/effective.hpp"

#include "report/table.hpp"

namespace longspan::cli {

std::string settings_text(const Settings& settings, bool given_only, int indent) {
  report::Table table({"<option", "<value", "<from"});
  for (const Setting& setting : settings.all())
    if (!given_only || settings.given(setting.name)) table.add({setting.name, setting.shown, setting.origin});
  return table.empty() ? std::string() : table.text(indent);
}

nlohmann::ordered_json settings_json(const Settings& settings) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const Setting& setting : settings.all()) {
    json[setting.name]["value"] = settings.has(setting.name) ? nlohmann::ordered_json(setting.text) : nlohmann::ordered_json();
    json[setting.name]["from"] = setting.origin;
  }
  return json;
}

}  // namespace longspan::cli
